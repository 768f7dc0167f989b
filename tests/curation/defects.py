"""Defects planted in sound traces: for each criterion several kinds, in words that its detector does not have.

Wordings come in two halves: one that detectors were written on, one that they are measured on.
"""

# ruff: noqa: E501 - texts

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Sequence

from qwen3_jax.curation.text import sentences
from qwen3_jax.curation.trace import Trace
from tests.curation.multilingual import foreign_sentences
from tests.curation.wordings import ADVERTS, CHAT, GUESSES, LANGUAGES, LITERARY, MARKUP, OLD, WAFFLE

Plant = Callable[[Trace, random.Random, int], Trace]


def half(items: Sequence, which: int) -> list:
  return list(items[which::2])


def lines_of(trace: Trace) -> list[str]:
  """Lines or sentences; code in one piece."""
  if "\n" not in trace.thinking:
    return sentences(trace.thinking)
  pieces = re.split(r"([^\n]*```.*?```)", trace.thinking, flags=re.DOTALL)
  return [line for piece in pieces for line in ([piece] if "```" in piece else piece.split("\n")) if line.strip()]


def put(trace: Trace, lines: Sequence[str]) -> Trace:
  joint = "\n" if "\n" in trace.thinking else " "
  return dataclasses.replace(trace, thinking=joint.join(lines))


def another(trace: Trace, rng: random.Random) -> str:
  """A different answer of the same form."""
  answer = trace.problem.reference
  roles = re.search(r"who is an? (\w+) and who is an? (\w+)\?", trace.problem.prompt)
  if roles:
    role = rng.choice(
      roles.groups()
      if answer.count(roles[1]) and answer.count(roles[2])
      else [r for r in roles.groups() if r in answer]
    )
    return answer.replace(role, roles[1] if role == roles[2] else roles[2], 1)
  figures = list(re.finditer(r"\d+", answer))
  if figures:
    at = rng.choice(figures)
    changed = str(max(0, int(at.group()) + rng.choice([-2, -1, 1, 2, 10])))
    if changed == at.group():
      changed = str(int(at.group()) + 3)
    return answer[: at.start()] + changed + answer[at.end() :]
  swaps = {"True": "False", "False": "True", "Yes": "No", "No": "Yes"}
  if answer in swaps:
    return swaps[answer]
  parts = answer.split()
  if len(parts) > 1 and len(set(parts)) > 1:
    i = next(i for i in range(len(parts) - 1) if parts[i].strip(",.") != parts[i + 1].strip(",."))
    parts[i], parts[i + 1] = parts[i + 1], parts[i]
    return " ".join(parts)
  letters = list(answer)
  i = rng.randrange(len(letters))
  letters[i] = "a" if letters[i] != "a" else "o"
  return "".join(letters)


# (1) wrong


def wrong(trace: Trace, rng: random.Random, which: int) -> Trace:
  other = another(trace, rng)
  swap = lambda text: text.replace(trace.problem.reference, other)
  return dataclasses.replace(trace, thinking=swap(trace.thinking), response=f"The answer is {other}")


# (2) repetition


def loops_on_a_sentence(trace: Trace, rng: random.Random, which: int) -> Trace:
  lines = lines_of(trace)
  i = rng.randrange(len(lines) // 2, len(lines))
  line = rng.choice(half([
    "I should look at the whole thing from the start again.", "But is this really what the question wants from us?",
    "Wait, maybe the earlier part was not quite correct.", "Let me reconsider whether the approach is right here.",
    "Actually it may be better to begin with the other one.", "Something about this still does not convince me.",
  ], which))  # fmt: skip
  return put(trace, [*lines[:i], *[line] * rng.randint(6, 15), *lines[i:]])


def doubles_it_all(trace: Trace, rng: random.Random, which: int) -> Trace:
  lines = lines_of(trace)
  return put(trace, lines * rng.randint(3, 6))


def stutters(trace: Trace, rng: random.Random, which: int) -> Trace:
  phrase = rng.choice(
    half(["and then the next one and", "which gives us that", "so we go on with it", "the sum of the"], which)
  )
  return put(trace, [*lines_of(trace), " ".join([phrase] * rng.randint(10, 40))])


def nearly_the_same(trace: Trace, rng: random.Random, which: int) -> Trace:
  """Comes back with another word or two each time."""
  first = rng.choice(half([
    "the value we found before should be checked against the question because something could be off",
    "all parts of the statement have to be read again so that nothing at all is left out of it",
    "maybe the order in which we looked at the items matters for what is asked of us in the end",
    "it is important to keep in mind what was given at the beginning before going any further",
  ], which))  # fmt: skip
  starts = half(["Hmm,", "Well,", "Again,", "Right,", "Still,", "OK,", "But", "And"], which)
  versions = [
    f"{rng.choice(starts)} {first}{rng.choice(['.', ' now.', ' here.', ', I think.'])}"
    for _ in range(rng.randint(6, 12))
  ]
  return put(trace, [*lines_of(trace), *versions])


def every_step_many_times(trace: Trace, rng: random.Random, which: int) -> Trace:
  lines = lines_of(trace)
  wrapped = [f"I note this down once more as a sentence: {line}" if len(line.split()) < 5 else line for line in lines]
  return put(trace, [line for line in wrapped for _ in range(4)])


def second_long_copy(trace: Trace, rng: random.Random, which: int) -> Trace:
  """A long passage of words twice."""
  waffle = " ".join(rng.sample(half(WAFFLE, which), 5))
  return put(trace, [waffle, *lines_of(trace), waffle])


# (3) guess


def guesses(trace: Trace, rng: random.Random, which: int) -> Trace:
  text = rng.choice(half(GUESSES, which)).format(answer=trace.problem.reference)
  return dataclasses.replace(trace, thinking=text, response=f"The answer is {trace.problem.reference}")


def asks_and_guesses(trace: Trace, rng: random.Random, which: int) -> Trace:
  """Says the question again, then guesses."""
  question = trace.problem.prompt.strip().split("\n")[-1]
  text = rng.choice(half(GUESSES, which)).format(answer=trace.problem.reference)
  return dataclasses.replace(trace, thinking=f"{question}\n{text}", response=f"The answer is {trace.problem.reference}")


def waffles(trace: Trace, rng: random.Random, which: int) -> Trace:
  text = " ".join(rng.sample(half(WAFFLE, which), rng.randint(2, 6)))
  ending = rng.choice(
    [f"The answer is {trace.problem.reference}.", f"{trace.problem.reference}.", f"So: {trace.problem.reference}"]
  )
  return dataclasses.replace(trace, thinking=f"{text} {ending}", response=f"The answer is {trace.problem.reference}")


def only_answers(trace: Trace, rng: random.Random, which: int) -> Trace:
  text = rng.choice(["", "{a}", "The answer is {a}.", "Okay. {a}", "The user wants the result. It is {a}."])
  return dataclasses.replace(
    trace, thinking=text.format(a=trace.problem.reference), response=f"The answer is {trace.problem.reference}"
  )


# (4) inconsistency


def other_answer(trace: Trace, rng: random.Random, which: int) -> Trace:
  other = another(trace, rng)
  response = rng.choice(half([f"The answer is {other}", f"\\boxed{{{other}}}", f"After checking all steps, the final answer is:\n\n**Answer:** {other}",
                              f"Everything fits. The answer is {other}"], which))  # fmt: skip
  return dataclasses.replace(trace, response=response)


def other_conclusion(trace: Trace, rng: random.Random, which: int) -> Trace:
  """The response is right, what the thinking ends with is not."""
  other = another(trace, rng)
  lines = lines_of(trace)
  cut = len(trace.problem.reference.split("\n"))
  ending = rng.choice(half([f"So the answer must be {other}.", f"That means the answer is {other}.", f"Final answer: {other}",
                            f"I am confident that the answer is {other}."], which))  # fmt: skip
  return dataclasses.replace(put(trace, [*lines[:-cut], ending]), response=f"The answer is {trace.problem.reference}")


def another_problem(trace: Trace, rng: random.Random, which: int) -> Trace:
  """The summary is of other numbers, its answer included."""
  numbers = [rng.randint(1000, 99999) for _ in range(4)]
  a, b, c, d = numbers
  return dataclasses.replace(
    trace, response=f"We combine {a} with {b}, which makes {a + b}. With {c} and {d} the answer is {a + b + c + d}"
  )


# (5) languages and style


def foreign_stretch(trace: Trace, rng: random.Random, which: int) -> Trace:
  language = rng.choice(half(LANGUAGES, which))
  lines = lines_of(trace)
  i = rng.randrange(1, len(lines) + 1)
  return put(
    trace, [*lines[:i], *rng.sample(foreign_sentences(language), min(2, len(foreign_sentences(language)))), *lines[i:]]
  )


def chinese_words(trace: Trace, rng: random.Random, which: int) -> Trace:
  """Connectives of another language, as bilingual models slip."""
  words = half(
    ["所以", "因此答案", "那么", "首先我们", "接下来", "也就是说", "しかし", "따라서", "следовательно", "поэтому"],
    which,
  )
  lines = lines_of(trace)
  for i in rng.sample(range(len(lines)), min(len(lines), rng.randint(1, 3))):
    lines[i] = f"{rng.choice(words)}, {lines[i]}"
  return put(trace, lines)


def foreign_response(trace: Trace, rng: random.Random, which: int) -> Trace:
  language = rng.choice(half(LANGUAGES, which))
  text = " ".join(rng.sample(foreign_sentences(language), min(3, len(foreign_sentences(language)))))
  return dataclasses.replace(trace, response=f"{text}\n\n{trace.response}")


def changes_in_a_sentence(trace: Trace, rng: random.Random, which: int) -> Trace:
  """Begins in English, ends in another language."""
  language = rng.choice([x for x in half(LANGUAGES, which) if x not in ("zh_Hans", "ja", "ko")])
  lines = lines_of(trace)
  made = []
  for _ in range(3):
    foreign = rng.choice(foreign_sentences(language)).split()
    made.append(
      f"{rng.choice(['Now we see that', 'From this it is clear that', 'Here one has to'])} {' '.join(foreign[:12]).lower()}."
    )
  i = rng.randrange(1, len(lines) + 1)
  return put(trace, [*lines[:i], *made, *lines[i:]])


def in_style(pool: Sequence[str]) -> Plant:
  def plant(trace: Trace, rng: random.Random, which: int) -> Trace:
    lines = lines_of(trace)
    i = rng.randrange(1, len(lines) + 1)
    return put(trace, [*lines[:i], rng.choice(half(pool, which)), *lines[i:]])

  return plant


def shouts(trace: Trace, rng: random.Random, which: int) -> Trace:
  lines = lines_of(trace)
  i = rng.randrange(1, len(lines) + 1)
  loud = [text.upper() for text in rng.sample(half(WAFFLE, which), 2)]
  return put(trace, [*lines[:i], *loud, *lines[i:]])


DEFECTS: dict[str, dict[str, Plant]] = {
  "wrong": {"wrong": wrong},
  "repetition": {
    "one sentence": loops_on_a_sentence, "all of it": doubles_it_all, "stutter": stutters, "varied": nearly_the_same,
    "every step": every_step_many_times, "long copy": second_long_copy,
  },
  "guess": {"guess": guesses, "question and guess": asks_and_guesses, "waffle": waffles, "answer alone": only_answers},
  "inconsistency": {"answer": other_answer, "conclusion": other_conclusion, "another problem": another_problem},
  "language_mix": {
    "sentences": foreign_stretch, "words": chinese_words, "response": foreign_response, "within": changes_in_a_sentence,
  },
  "style_shift": {
    "capitals": shouts, "chat": in_style(CHAT), "advert": in_style(ADVERTS), "old": in_style(OLD),
    "markup": in_style(MARKUP), "literary": in_style(LITERARY),
  },
}  # fmt: skip


def plant(criterion: str, traces: Sequence[Trace], count: int, seed: int, which: int) -> list[tuple[str, Trace]]:
  """(kind of defect, trace): sound traces with one defect each."""
  rng = random.Random(f"{criterion} {seed}")
  kinds = list(DEFECTS[criterion].items())
  made = []
  for i in range(count):
    name, function = kinds[i % len(kinds)]
    made.append((name, function(traces[(i * 7 + i // len(traces)) % len(traces)], rng, which)))
  return made
