"""Translation tasks from pairs of texts, for the multilingual samples of fusion (Qwen3 report, section 4.3)."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwen3_jax import nearest
from qwen3_jax.curation.fusion_samples import Sample, Turn
from qwen3_jax.evaluation.records import field, read_records
from qwen3_jax.problems.records import content_id
from qwen3_jax.rollout.request import derived_seed

_ENGLISH_NAMES = """
af Afrikaans, am Amharic, ar Arabic, as Assamese, ast Asturian, az Azerbaijani, ba Bashkir, be Belarusian, bg Bulgarian,
bn Bengali, bs Bosnian, ca Catalan, ceb Cebuano, cs Czech, cy Welsh, da Danish, de German, el Greek, en English,
eo Esperanto, es Spanish, et Estonian, eu Basque, fa Persian, fi Finnish, fo Faroese, fr French, ga Irish, gl Galician,
gu Gujarati, ha Hausa, he Hebrew, hi Hindi, hr Croatian, ht Haitian Creole, hu Hungarian, hy Armenian, id Indonesian,
ig Igbo, is Icelandic, it Italian, ja Japanese, jv Javanese, ka Georgian, kk Kazakh, km Khmer, kn Kannada, ko Korean,
ky Kyrgyz, la Latin, lb Luxembourgish, lo Lao, lt Lithuanian, lv Latvian, mk Macedonian, ml Malayalam, mn Mongolian,
mr Marathi, ms Malay, mt Maltese, my Burmese, nb Norwegian Bokmål, ne Nepali, nl Dutch, nn Norwegian Nynorsk,
no Norwegian, oc Occitan, or Odia, pa Punjabi, pl Polish, ps Pashto, pt Portuguese, ro Romanian, ru Russian,
sa Sanskrit, sd Sindhi, si Sinhala, sk Slovak, sl Slovenian, so Somali, sq Albanian, sr Serbian, su Sundanese,
sv Swedish, sw Swahili, ta Tamil, te Telugu, tg Tajik, th Thai, tk Turkmen, tl Tagalog, tr Turkish, tt Tatar,
ug Uyghur, uk Ukrainian, ur Urdu, uz Uzbek, vi Vietnamese, wo Wolof, xh Xhosa, yi Yiddish, yo Yoruba, yue Cantonese,
zh Chinese, zu Zulu
"""
NAMES = dict(entry.strip().split(" ", 1) for entry in _ENGLISH_NAMES.split(","))  # ISO 639 code -> name in English
ENGLISH = (
  "Translate the following text into {target}:\n\n{text}",
  "Translate this from {source} into {target}.\n\n{text}",
  "Please translate the {source} text below into {target}.\n\n{text}",
  "{text}\n\nTranslate the text above into {target}.",
  "What is this in {target}?\n\n{text}",
  "Give me the {target} translation of this text:\n\n{text}",
  "Translate into {target}: {text}",
)


class _Language(NamedTuple):
  """How one asks in a language; names of target languages are in the form that the instructions need."""

  instructions: tuple[str, ...]
  names: Mapping[str, str]


_CODES = ("en", "zh", "fr", "de", "es", "pt", "it", "ru", "ja", "ko", "ar")


def _language(names: str, *instructions: str) -> _Language:
  return _Language(instructions, dict(zip(_CODES, names.split(), strict=True)))


NATIVE = {
  "zh": _language(
    "英语 中文 法语 德语 西班牙语 葡萄牙语 意大利语 俄语 日语 韩语 阿拉伯语",
    "请把下面的文字翻译成{target}：\n\n{text}",
    "将以下内容译为{target}。\n\n{text}",
    "{text}\n\n请把上面这段话翻译成{target}。",
  ),
  "fr": _language(
    "anglais chinois français allemand espagnol portugais italien russe japonais coréen arabe",
    "Traduis le texte suivant en {target} :\n\n{text}",
    "Pouvez-vous traduire ceci en {target} ?\n\n{text}",
    "{text}\n\nTraduisez le texte ci-dessus en {target}.",
  ),
  "de": _language(
    "Englische Chinesische Französische Deutsche Spanische Portugiesische Italienische Russische Japanische"
    " Koreanische Arabische",
    "Übersetze den folgenden Text ins {target}:\n\n{text}",
    "Bitte übersetzen Sie das ins {target}.\n\n{text}",
    "{text}\n\nÜbersetze den Text oben ins {target}.",
  ),
  "es": _language(
    "inglés chino francés alemán español portugués italiano ruso japonés coreano árabe",
    "Traduce el siguiente texto al {target}:\n\n{text}",
    "¿Puedes traducir esto al {target}?\n\n{text}",
    "{text}\n\nTraduzca el texto anterior al {target}.",
  ),
  "pt": _language(
    "inglês chinês francês alemão espanhol português italiano russo japonês coreano árabe",
    "Traduza o texto a seguir para o {target}:\n\n{text}",
    "Por favor, traduza isto para o {target}.\n\n{text}",
    "{text}\n\nTraduza o texto acima para o {target}.",
  ),
  "it": _language(
    "inglese cinese francese tedesco spagnolo portoghese italiano russo giapponese coreano arabo",
    "Traduci il testo seguente in {target}:\n\n{text}",
    "Puoi tradurre questo in {target}?\n\n{text}",
    "{text}\n\nTraduca il testo qui sopra in {target}.",
  ),
  "ru": _language(
    "английский китайский французский немецкий испанский португальский итальянский русский японский корейский арабский",
    "Переведи следующий текст на {target} язык:\n\n{text}",
    "Пожалуйста, переведите это на {target}.\n\n{text}",
    "{text}\n\nПереведите текст выше на {target} язык.",
  ),
  "ja": _language(
    "英語 中国語 フランス語 ドイツ語 スペイン語 ポルトガル語 イタリア語 ロシア語 日本語 韓国語 アラビア語",
    "次の文章を{target}に翻訳してください。\n\n{text}",
    "以下を{target}に訳してください：\n\n{text}",
    "{text}\n\n上の文章を{target}に翻訳してください。",
  ),
  "ko": _language(
    "영어 중국어 프랑스어 독일어 스페인어 포르투갈어 이탈리아어 러시아어 일본어 한국어 아랍어",
    "다음 글을 {target}로 번역해 주세요.\n\n{text}",
    "아래 내용을 {target}로 옮겨 주세요:\n\n{text}",
    "{text}\n\n위의 글을 {target}로 번역해 주세요.",
  ),
  "ar": _language(
    "الإنجليزية الصينية الفرنسية الألمانية الإسبانية البرتغالية الإيطالية الروسية اليابانية الكورية العربية",
    "ترجم النص التالي إلى {target}:\n\n{text}",
    "من فضلك ترجم هذا إلى {target}.\n\n{text}",
    "{text}\n\nترجم النص أعلاه إلى {target}.",
  ),
}


class Pair(NamedTuple):
  """A text in two languages."""

  id: str
  languages: tuple[str, str]  # ISO 639
  texts: tuple[str, str]


def read_pairs(path: Path) -> list[Pair]:
  """Pairs of a JSONL file; a line is e.g. {"en": "Good day", "fr": "Bonjour"}, with an optional `id`.

  Raises ValueError naming the line for what is malformed, OSError if the file cannot be read.
  """
  return [pair for _, pair in read_records(path, _pair)]


def _pair(record: dict[str, Any]) -> Pair:
  codes = [name for name in record if name != "id"]
  for code in codes:
    if code not in NAMES:
      near = nearest.or_all(code, NAMES) if len(code) > 1 else ""
      raise ValueError(f"{code}: expected the ISO 639 code of a language.{near if 'Did' in near else ''}")
  if len(codes) != 2:
    raise ValueError(f"expected texts in two languages, found {', '.join(codes) or 'none'}")
  texts = [field(record, code, str).strip() for code in codes]
  if "" in texts:
    raise ValueError(f"{codes[texts.index('')]}: an empty text")
  id = field(record, "id", str) if "id" in record else content_id("pair", *codes, *texts)
  return Pair(id, (codes[0], codes[1]), (texts[0], texts[1]))


def translation_tasks(pairs: Sequence[Pair], seed: int) -> list[Sample]:
  """Both directions of each pair, each asked for in one of several ways, drawn by its id and the seed.

  The instruction is in the language of the text where there are instructions in it and it names the other language,
  else in English.
  """
  return [_task(pair, source, seed) for pair in pairs for source in (0, 1)]


def _task(pair: Pair, source: int, seed: int) -> Sample:
  of, to = pair.languages[source], pair.languages[1 - source]
  rng = random.Random(derived_seed(seed, "translation", pair.id, source))
  native = NATIVE.get(of)
  if native is not None and to in native.names:
    instruction, names = rng.choice(native.instructions), native.names
  else:
    instruction, names = rng.choice(ENGLISH), NAMES
  prompt = instruction.format(source=NAMES[of], target=names[to], text=pair.texts[source])
  return Sample(f"{pair.id}/{of}-{to}", "multilingual", (Turn(prompt, pair.texts[1 - source]),))
