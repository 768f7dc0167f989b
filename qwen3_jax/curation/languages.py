"""Which languages a text is written in."""

from __future__ import annotations

import functools
import re
from typing import Any

# Languages that short texts do not tell apart, or that are written into each other as a rule.
_CLOSE = (
  {"en", "pcm"},
  {"no", "nn", "nb", "da", "sv", "fo"},
  {"hr", "bs", "sr", "sl", "mk", "bg"},
  {"cs", "sk", "pl"},
  {"id", "ms", "jv", "ace"},
  {"zh", "yue", "wuu", "ja"},
  {"es", "gl", "an", "ext", "ca", "pt", "oc"},
  {"it", "vec", "lij"},
  {"fr", "wa", "gcf", "gcr", "oc", "ht"},
  {"de", "lb", "nl", "af", "fy"},
  {"ru", "uk", "be", "bg", "mk"},
  {"ar", "arz", "ary", "fa", "ur", "ps", "ckb", "sdh", "ug"},
  {"tr", "az", "crh", "tk", "uz", "uzs"},
  {"kk", "ky", "tt", "ba", "mn", "tg"},
  {"hi", "ne", "mr", "sa", "gom"},
  {"tl", "bcl"},
)
_NAMES = {
  "english": "en", "french": "fr", "german": "de", "spanish": "es", "italian": "it", "portuguese": "pt", "dutch": "nl",
  "russian": "ru", "ukrainian": "uk", "polish": "pl", "czech": "cs", "slovak": "sk", "swedish": "sv", "danish": "da",
  "norwegian": "no", "finnish": "fi", "hungarian": "hu", "romanian": "ro", "bulgarian": "bg", "greek": "el",
  "turkish": "tr", "arabic": "ar", "hebrew": "he", "persian": "fa", "hindi": "hi", "bengali": "bn", "tamil": "ta",
  "thai": "th", "vietnamese": "vi", "indonesian": "id", "malay": "ms", "chinese": "zh", "mandarin": "zh",
  "japanese": "ja", "korean": "ko", "latin": "la", "esperanto": "eo", "welsh": "cy", "irish": "ga", "basque": "eu",
  "catalan": "ca", "croatian": "hr", "serbian": "sr", "swahili": "sw", "tagalog": "tl", "kanji": "ja", "hanzi": "zh",
  "pinyin": "zh", "katakana": "ja", "hiragana": "ja", "hangul": "ko", "cyrillic": "ru",
}  # fmt: skip
SCRIPTS = {
  "HAN": {"zh", "ja"}, "KANA": {"ja"}, "HANGUL": {"ko"}, "CYRILLIC": {"ru", "uk", "bg", "sr", "mk", "be", "kk", "mn"},
  "GREEK": {"el"}, "ARABIC": {"ar", "fa", "ur"}, "HEBREW": {"he"}, "DEVANAGARI": {"hi", "ne", "mr"}, "THAI": {"th"},
  "BENGALI": {"bn"}, "TAMIL": {"ta"},
}  # fmt: skip
_NAME = re.compile(rf"\b({'|'.join(_NAMES)})\b", re.IGNORECASE)


def close(language: str) -> set[str]:
  """A language and those that it is easily taken for."""
  return {language}.union(*(group for group in _CLOSE if language in group))


def named(text: str) -> set[str]:
  """Languages that a text names in English, e.g. as those to translate into."""
  return {_NAMES[name.lower()] for name in _NAME.findall(text)}


def ranked(text: str) -> list[tuple[str, float]]:
  """(language, probability), the most probable first; texts of four words or more are told well. ISO 639 codes."""
  return _identifier().rank(text)


@functools.cache
def _identifier() -> Any:
  from py3langid import langid  # takes 1 s to load

  return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
