"""Whether the text of an answer has the form of its mode (Qwen3 report, section 4.3 and Table 9).

Faults are few and fixed, so that they can be counted; "" stands for none.
"""

from __future__ import annotations

import re

_TAG = re.compile(r"</?think>")
_NO_RESPONSE = " .\n\t"  # a budget's sentence ends with a full stop after </think>


def disobedience(text: str, thinks: bool) -> str:
  """Why a turn is not in its mode: one closed think block with something in it, or with nothing in it."""
  if fault := _block_fault(text):
    return fault
  is_empty = not _parts(text)[1].strip()
  if is_empty == thinks:
    return "does not think" if thinks else "thinks"
  return ""


def format_fault(text: str, thinks: bool) -> str:
  """Why an answer is not one closed think block, empty unless it thinks, and a response after it."""
  if fault := _block_fault(text):
    return fault
  before, thinking, response = _parts(text)
  if before.strip():
    return "text before the block"
  if thinking.strip() and not thinks:
    return "thinks"
  return "" if response.strip(_NO_RESPONSE) else "no response"


def _block_fault(text: str) -> str:
  tags = _TAG.findall(text)
  if tags == ["<think>", "</think>"]:
    return ""
  if not tags:
    return "no think block"
  if tags == ["<think>"]:
    return "not closed"
  return "not opened" if tags == ["</think>"] else "more than one block"


def _parts(text: str) -> tuple[str, str, str]:
  """Before, in and after the one block."""
  before, thinking, after = _TAG.split(text)
  return before, thinking, after
