"""Criterion 5 (Qwen3 report, section 4.1), second half: the style shifts.

Every sentence has a few marks of style; a stretch of sentences with a mark that the others do not have is a shift. A
trace that is written in one way throughout, whichever, does not shift.
"""

from __future__ import annotations

import re

from qwen3_jax.curation.text import answer_block, prose, sentences, words

_FEWEST = 12  # words with a mark, in two sentences or more
_ELSEWHERE = 0.75  # share of all sentences that have the mark, at most: else it is the style
_PICTURE = re.compile(r"[\U0001F300-\U0001FAFF\u2600-\u26FF\u2728\u2764\U0001F1E6-\U0001F1FF]")
_CHAT = re.compile(
  r"\b(?:lol|lmao|rofl|omg|wtf|bruh|bro|dude|fam|tbh|ngl|idk|imo|imho|btw|gonna|wanna|gotta|kinda|sorta|ya|yeah|yep"
  r"|nope|yo|haha+|hehe+|ur|thx|pls|plz|cuz|coz|tho|y'?all|ain't|lemme|gimme|dunno|legit|lowkey|highkey|sus|bestie"
  r"|slay|vibes?|hella|dope|smh|fr|folks|guys|innit|mate|reckon|blimey|cheers|oi|cap)\b"
  r"|\bu (?:guys|all|r|are|know|can|need|have|do|got|see|should|want|will)\b"
  r"|\w*([d-z])\1{2,}\w*|!{2,}|\?{2,}|\?!|:-?[)D(P]|;-?\)|\^_\^|xD\b",
  re.IGNORECASE,
)
_OLD = re.compile(
  r"\b(?:thou|thee|thy|thine|hath|doth|dost|hast|shalt|wilt|art|verily|hark|lo|behold|forsooth|prithee|'tis|'twas|ere"
  r"|ye|nay|alas|whence|thence|hither|thither|o'er|ne'er|e'en|methinks|arrr*|ahoy|matey|aye|yer|me hearties"
  r"|whilst|henceforth|wherefore|betwixt|anon|quoth|unto|oft|yonder)\b",
  re.IGNORECASE,
)
_ADDRESS = re.compile(
  r"\b(?:dear|sincerely|regards|yours|esteemed|valued|customers?|sir|madam|hereby|herewith|pursuant|aforementioned"
  r"|undersigned|enclosed|kindly|pleased to inform|subscribe\w*|click|offers?|discounts?|buy|deal|sponsor\w*|visit our"
  r"|don't miss|limited[- ]time|free shipping|thank you for (?:your|choosing)|we are (?:thrilled|delighted|excited)"
  r"|ladies and gentlemen|welcome (?:back )?to|stay tuned|breaking|our reporter|order now|guarantee\w*|revolutionary"
  r"|unleash|elevate|game[- ]chang\w+|inbox|newsletter|channel|followers?|smash)\b",
  re.IGNORECASE,
)
_MARKUP = re.compile(
  r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>|\[/?(?:b|i|url|quote|code|size|color)[^\]]*\]|https?://|&\w+;"
  r"|\{\{|\}\}|(?:^|\s)(?:user|human|assistant|system|q|a|bot|narrator|me|you|op)\s*:\s",
  re.IGNORECASE,
)
_LITERARY = re.compile(
  r"\b(?:moon\w*|silver\w*|whisper\w*|shadow\w*|dawn|dusk|twilight|gentle|breeze|heart\w*|soul\w*|dream\w*|sorrow\w*"
  r"|tears?|sigh\w*|gaz\w+|trembl\w+|shimmer\w*|glow\w*|velvet|eternal|ancient|dance[ds]?|dancing|song|sang|wander\w*"
  r"|mist\w*|starlight|stars|lonely|silence|silent\w*|rose|petals?|ocean|waves?|wind\w*|night|darkness|flicker\w*"
  r"|fingers|eyes|smil\w+|door|room|rain\w*|window|candle\w*|lantern\w*|sky|golden|crimson|melody|weary|ember\w*|he|she|his|her|him|himself|herself)\b",
  re.IGNORECASE,
)


def style_shift(thinking: str, response: str = "", prompt: str = "") -> str:
  """Which stretch of the thinking is in another style than the rest, "" if none; the question's words are free."""
  lines = [line for line in sentences(prose(thinking)) if line]
  asked = set(words(prompt)) | set(words(answer_block(response)))
  spoken = [words(line) for line in lines]
  for name, marked in (
    ("capitals", [_shouts(line, asked) for line in lines]),
    ("small letters", _small(lines)),
    ("chat", [_per_word(_CHAT, line, asked) >= 0.06 or bool(_PICTURE.search(line)) for line in lines]),
    ("old or dialect words", [_per_word(_OLD, line, asked) >= 0.08 for line in lines]),
    ("letters and advertising", [_per_word(_ADDRESS, line, asked) >= 0.08 for line in lines]),
    ("markup", [bool(_MARKUP.search(line)) for line in lines]),
    ("literary", [_per_word(_LITERARY, line, asked) >= 0.1 for line in lines]),
  ):
    stretch = _stretch(marked)
    if not stretch or sum(marked) > _ELSEWHERE * len(lines):
      continue
    many = sum(len(spoken[i]) for i in stretch if marked[i])
    if many >= (3 * _FEWEST if name == "small letters" else _FEWEST):
      return f"{name}: {' '.join(lines[stretch[0] : stretch[-1] + 1])[:160]!r}"
  return ""


def _stretch(marked: list[bool]) -> list[int]:
  """Numbers of the sentences between the first and the last marked ones that at most two others part."""
  best: list[int] = []
  start = last = -1
  for i, mark in enumerate(marked):
    if not mark:
      continue
    if start < 0 or i - last > 3:
      start = i
    last = i
    if sum(marked[start : last + 1]) > sum(marked[j] for j in best):
      best = list(range(start, last + 1))
  return best


def _shouts(line: str, asked: set[str]) -> bool:
  loud = [word for word in re.findall(r"[^\W\d_]{2,}", line) if word.lower() not in asked]
  return len(loud) >= 4 and sum(word.isupper() for word in loud) >= 0.7 * len(loud)


def _small(lines: list[str]) -> list[bool]:
  """Sentences that begin small and are not the rest of a line, a formula or an item: of the few words, all small."""
  return [
    len(words(line)) >= 5
    and line[:2].isalpha()
    and line == line.lower()
    and sum(c.isdigit() for c in line) * 4 < len(line)
    for line in lines
  ]


def _per_word(pattern: re.Pattern[str], line: str, asked: set[str]) -> float:
  found = [match.group() for match in pattern.finditer(line)]
  return sum(piece.lower().strip() not in asked for piece in found) / max(len(words(line)), 5)
