"""What a report is written with: the page's template, and Markdown of tables and texts."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from qwen3_jax.reporting.run_record import visible
from qwen3_jax.reporting.table import Table


def template() -> jinja2.Template:
  environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
  return environment.from_string((Path(__file__).parent / "template.html").read_text(encoding="utf-8"))


def markdown_table(table: Table) -> str:
  rule = ["---" if column in table.text_columns else "---:" for column in range(len(table.header))]
  rows = [[markdown_text(cell) for cell in row] for row in (table.header, *table.rows)]
  lines = ["| " + " | ".join(row) + " |" for row in rows]
  return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def markdown_text(text: str) -> str:
  """One line of Markdown that shows `text` as it is."""
  return re.sub(r"([\\`*_\[\]<>|#&])", r"\\\1", visible(text)).replace("\n", " ")


def fenced(text: str) -> str:
  longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
  fence = "`" * max(3, longest + 1)
  return f"{fence}text\n{visible(text)}\n{fence}"
