"""Questions and sound traces in other languages; sentences of real translations (Django's, BSD)."""

# ruff: noqa: E501 - texts

from __future__ import annotations

import functools
import gettext
import pathlib
import random
import re

import django

from qwen3_jax.curation.trace import Trace
from qwen3_jax.problems.problem import Problem

# question, steps, conclusion, response; a and b are numbers, c = a * b, d = c + a
_SUMS = {
  "fr": ("Marie achète {a} boîtes de {b} crayons, puis encore {a} crayons. Combien de crayons a-t-elle ?",
         "Il y a {a} boîtes et chacune contient {b} crayons, donc {a} × {b} = {c}. Ensuite elle en achète encore {a}, ce qui"
         " fait {c} + {a} = {d}.", "Elle a donc {d} crayons en tout.", "Marie a {d} crayons. La réponse est \\boxed{{{d}}}."),
  "de": ("Ein Bauer hat {a} Felder mit je {b} Bäumen und pflanzt {a} weitere Bäume. Wie viele Bäume hat er?",
         "Zuerst rechne ich die Felder aus: {a} mal {b} ist {c}. Danach kommen {a} Bäume hinzu, also {c} + {a} = {d}. Ich"
         " prüfe das noch einmal: {d} minus {a} ergibt wieder {c}.", "Der Bauer hat also {d} Bäume.",
         "Es sind {d} Bäume. \\boxed{{{d}}}"),
  "es": ("En un teatro hay {a} filas de {b} asientos y {a} asientos más en el balcón. ¿Cuántos asientos hay?",
         "Primero multiplicamos las filas por los asientos de cada fila: {a} × {b} = {c}. Luego sumamos los del balcón:"
         " {c} + {a} = {d}.", "Por lo tanto hay {d} asientos.", "En el teatro hay {d} asientos: \\boxed{{{d}}}"),
  "it": ("Una scuola ha {a} classi con {b} alunni ciascuna e {a} insegnanti. Quante persone ci sono?",
         "Gli alunni sono {a} × {b} = {c}. A questi si aggiungono {a} insegnanti, quindi {c} + {a} = {d}.",
         "In totale ci sono {d} persone.", "Nella scuola ci sono {d} persone. \\boxed{{{d}}}"),
  "pt": ("Uma loja vende {a} caixas com {b} laranjas cada e mais {a} laranjas soltas. Quantas laranjas vende?",
         "Cada caixa tem {b} laranjas e são {a} caixas, então {a} × {b} = {c}. Somando as soltas temos {c} + {a} = {d}.",
         "A loja vende {d} laranjas.", "São {d} laranjas. \\boxed{{{d}}}"),
  "ru": ("В магазине {a} полок по {b} книг и ещё {a} книг на столе. Сколько всего книг?",
         "На полках стоит {a} × {b} = {c} книг. На столе лежит ещё {a}, значит всего {c} + {a} = {d}.",
         "Итак, всего {d} книг.", "Всего в магазине {d} книг. \\boxed{{{d}}}"),
  "zh": ("小明有{a}盒铅笔,每盒{b}支,另外还有{a}支。他一共有多少支铅笔?",
         "每盒有{b}支,一共{a}盒,所以盒子里有{a} × {b} = {c}支。再加上另外的{a}支,就是{c} + {a} = {d}支。我再检查一遍:"
         "{d} - {a} = {c},没有问题。", "所以一共有{d}支铅笔。", "小明一共有{d}支铅笔。\\boxed{{{d}}}"),
  "ja": ("箱が{a}個あり、それぞれにりんごが{b}個入っています。さらに{a}個のりんごがあります。全部で何個ですか。",
         "まず箱の中のりんごは{a} × {b} = {c}個です。それに{a}個を足すと{c} + {a} = {d}個になります。",
         "したがって全部で{d}個です。", "りんごは全部で{d}個です。\\boxed{{{d}}}"),
  "ko": ("상자 {a}개에 사과가 각각 {b}개씩 들어 있고 사과가 {a}개 더 있습니다. 사과는 모두 몇 개입니까?",
         "상자에 든 사과는 {a} × {b} = {c}개입니다. 여기에 {a}개를 더하면 {c} + {a} = {d}개가 됩니다.",
         "그래서 사과는 모두 {d}개입니다.", "사과는 모두 {d}개입니다. \\boxed{{{d}}}"),
  "ar": ("في مكتبة {a} رفوف في كل رف {b} كتابا ويوجد {a} كتب على الطاولة. كم عدد الكتب؟",
         "على الرفوف يوجد {a} × {b} = {c} كتابا. ثم نضيف {a} كتب فيصبح المجموع {c} + {a} = {d}.",
         "إذن عدد الكتب هو {d}.", "عدد الكتب {d}. \\boxed{{{d}}}"),
  "tr": ("Bir bahçede {a} sıra ağaç var, her sırada {b} ağaç, ayrıca {a} ağaç daha dikiliyor. Toplam kaç ağaç olur?",
         "Sıralardaki ağaçlar {a} × {b} = {c} eder. Buna {a} ağaç daha eklenirse {c} + {a} = {d} olur.",
         "Demek ki toplam {d} ağaç var.", "Bahçede toplam {d} ağaç olur. \\boxed{{{d}}}"),
  "pl": ("W sali jest {a} rzędów po {b} krzeseł i jeszcze {a} krzeseł pod ścianą. Ile jest krzeseł?",
         "W rzędach stoi {a} × {b} = {c} krzeseł. Pod ścianą jest ich jeszcze {a}, więc razem {c} + {a} = {d}.",
         "Zatem w sali jest {d} krzeseł.", "W sali jest {d} krzeseł. \\boxed{{{d}}}"),
}  # fmt: skip

# English questions whose sound traces quote, name and translate what is foreign.
_QUOTING = [
  ("How many letters does the German word for train station have?",
   'The German word is "Bahnhof". Spelled out: B-a-h-n-h-o-f, so that is 7 letters. The longer "Hauptbahnhof" means main'
   " station, which is not what is asked.", "It has 7 letters.", "7"),
  ("Translate into French: the cat sleeps on the old chair. How many words does the translation have?",
   "The cat is le chat, sleeps is dort, on the old chair is sur la vieille chaise. Le chat dort sur la vieille chaise."
   " Counting: le, chat, dort, sur, la, vieille, chaise, so 7 words.",
   "Le chat dort sur la vieille chaise. That is 7 words. The answer is 7", "7"),
  ("Tolstoy (Толстой) wrote War and Peace in six years from 1863. In which year was it done?",
   "Tolstoy, or Лев Толстой, began in 1863. Six years later is 1863 + 6 = 1869. The title in the original (Война и мир)"
   " does not matter here.", "The answer is 1869", "1869"),
  ("What angle makes a right triangle with α = 35°?",
   "Let α = 35° and β the other acute angle. α + β = 90°, because γ = 90° and the sum is 180°. So β = 90° − 35° = 55°."
   " With Δ for the triangle and Σ for the sum of its angles: Σ = α + β + γ = 35 + 55 + 90 = 180, fine.",
   "β = 55°, so the answer is 55", "55"),
  ("A kanji for tree is 木. How many trees are in 森?",
   "The character 森 is made of 木 on top and two 木 below, so 1 + 2 = 3 trees. The one for wood, 林, has only two.",
   "The answer is 3", "3"),
  ("Jean-Luc from Saint-Étienne-du-Rouvray has 14 croissants and eats 5 with Björn and Zoë. How many are left?",
   "Jean-Luc starts with 14. He, Björn and Zoë eat 5 of them, so 14 - 5 = 9. The rue de la République where he buys them"
   " plays no role.", "There are 9 left. The answer is 9", "9"),
]  # fmt: skip


def multilingual_traces(count: int, seed: int) -> list[Trace]:
  """Sound traces in twelve languages, half of whose thinking may be in English, and English ones that quote others."""
  rng = random.Random(seed)
  made = []
  for i in range(count):
    if i % 3 == 2:
      question, thinking, response, answer = _QUOTING[(i // 3) % len(_QUOTING)]
      made.append(
        Trace(Problem(f"quote-{i}", "languages", "quoting", question, {"kind": "same"}, answer), 0, thinking, response)
      )
      continue
    language = sorted(_SUMS)[i % len(_SUMS)]
    question, steps, conclusion, response = _SUMS[language]
    a, b = rng.randint(3, 40), rng.randint(11, 90)
    values = {"a": a, "b": b, "c": a * b, "d": a * b + a}
    thinking = f"{steps} {conclusion}".format(**values)
    if i % 4 == 0:
      thinking = (
        f"The question is in another language. There are {a} groups of {b}, which makes {a} * {b} = {a * b}. Then {a} more"
        f" are added, so {a * b} + {a} = {a * b + a}. I should reply in the language of the question: {a * b + a}."
      )
    problem = Problem(
      f"{language}-{i}", "languages", language, question.format(**values), {"kind": "same"}, str(values["d"])
    )
    made.append(Trace(problem, 0, thinking, response.format(**values)))
  return made


@functools.cache
def foreign_sentences(language: str) -> list[str]:
  """Sentences of eight words or more that translators wrote."""
  folder = pathlib.Path(django.__file__).parent / "conf" / "locale" / language / "LC_MESSAGES" / "django.mo"
  with open(folder, "rb") as file:
    catalogue = gettext.GNUTranslations(file)._catalog  # type: ignore[attr-defined]
  found = []
  for key, text in catalogue.items():
    if not key or "CSRF" in text or "DEBUG" in text or "Form" in text:
      continue
    plain = " ".join(re.sub(r"<[^>]*>|%\([^)]*\)[sd]|%[sd]|[“”\"'«»()]", " ", text).split())
    spaced = len(plain.split()) >= 8
    if (spaced or (language in ("zh_Hans", "ja", "th") and len(plain) >= 16)) and not set("{}_=%/[]") & set(plain):
      found.append(plain)
  return sorted(found)
