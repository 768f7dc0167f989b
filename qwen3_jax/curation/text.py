"""Text as the criteria read it: words, sentences, prose, scripts, numbers."""

from __future__ import annotations

import functools
import re
import unicodedata

from qwen3_jax.evaluation.answers import extract_answer

# Scripts that are written without spaces: every character is a word.
_CHARACTERS = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
_WORD = re.compile(rf"{_CHARACTERS}|(?:(?!{_CHARACTERS})\w)+(?:['’](?:(?!{_CHARACTERS})\w)+)*")
_TOKEN = re.compile(rf"\d+(?:[.,:]\d+)+|{_WORD.pattern}|[^\w\s]")
_SENTENCE = re.compile(r"(?<=[.!?…])[\"'”’)*_]*\s+|(?<=[。！？])|\n+")
_SAYS = re.compile(
  r"\banswer\b[*_]*(?:\s+\w+){0,3}?\s*(?:\b(?:is|be|are)\b\s*[:=]?|[:=])[*_\s]*", re.IGNORECASE
)  # "the answer is", "the answer must be"
_NUMBER = re.compile(r"\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`", re.DOTALL)
_MATHS = re.compile(
  r"\$\$.*?\$\$|\$[^$\n]+\$|\\\[.*?\\\]|\\\(.*?\\\)|\\boxed\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", re.DOTALL
)
_QUOTED = re.compile(
  r"\"[^\"\n]{1,400}\"|“[^”\n]{1,400}”|„[^“”\n]{1,400}[“”]|«[^»\n]{1,400}»|「[^」\n]{1,400}」|『[^』\n]{1,400}』"
  r"|(?<!\w)['‘][^'’\n]{1,400}['’](?!\w)|[(（][^()（）\n]{1,200}[)）]|\*[^*\n]{1,200}\*"
)


def words(text: str) -> list[str]:
  """Lower-case words; numbers are words, each character of Chinese, Japanese, Thai and the like is one."""
  return _WORD.findall(text.lower())


def tokens(text: str) -> list[str]:
  """Words, and every other visible character by itself; numbers stay whole."""
  return _TOKEN.findall(text.lower())


def sentences(text: str) -> list[str]:
  """Sentences and lines, without those that are empty."""
  return [part for piece in _SENTENCE.split(text) if (part := piece.strip())]


def numbers(text: str) -> list[str]:
  """Numbers in the order of the text, signs and thousands separators left out."""
  return [_plain(number) for number in _NUMBER.findall(text)]


def _plain(number: str) -> str:
  number = number.replace(",", "")
  if "." in number:
    number = number.rstrip("0").rstrip(".")
  return number.lstrip("0") or "0"


def without_code(text: str) -> str:
  """Without code: blocks between fences and pieces between backquotes."""
  return _CODE.sub(" ", text)


def prose(text: str, quotes: bool = True) -> str:
  """What its writer says: without code and formulas and, unless `quotes`, what stands in quotes or brackets."""
  text = _MATHS.sub(" ", without_code(text))
  return text if quotes else _QUOTED.sub(" ", text)


@functools.lru_cache(maxsize=65536)
def script(character: str) -> str:
  """Of a letter, e.g. "LATIN", "HAN", "KANA", "CYRILLIC"; "" of what is no letter."""
  if not unicodedata.category(character).startswith("L"):
    return ""
  name = unicodedata.name(character, "").split(" ")[0]
  if name in ("CJK", "KANGXI", "IDEOGRAPHIC"):
    return "HAN"
  if name in ("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"):
    return "KANA"
  if name in (
    "MATHEMATICAL",
    "DOUBLE-STRUCK",
    "SCRIPT",
    "BLACK-LETTER",
    "FULLWIDTH",
    "MODIFIER",
    "FEMININE",
    "MASCULINE",
  ):
    return ""  # letters of formulas, signs
  return name.removesuffix("-TYPE")


def answer_block(response: str) -> str:
  r"""All lines of a response's final answer: the last \boxed{...}, or what follows the last "answer is", "answer:"."""
  if "\\boxed" in response:
    return extract_answer(response)
  said = list(_SAYS.finditer(response))
  return response[said[-1].end() :].strip("*_ \n") if said else extract_answer(response)


# Words that any text about any question has.
COMMON = frozenset(
  (
    "the a an of to in on for is are was be it its this that these those and or not no as at by with from which"
    " what how why who when where many much do does did can could should would will must may give given find tell"
    " following each all any your you we i me my our us he she they them their one two there here if then than so"
    " but only exactly about into out up over please question problem answer answers task final result value"
    " number numbers solve calculate compute determine return reply output format list word words text right"
    " correct have has had let's let now say says said some same different other another using use used make made"
    " first last after before"
  ).split()
)
