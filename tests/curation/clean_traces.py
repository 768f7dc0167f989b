"""Reasoning that is sound, for real problems of reasoning-gym: worked out here, in several voices."""

# ruff: noqa: E501 - texts

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
import re
from collections.abc import Callable
from typing import Any

import reasoning_gym
from reasoning_gym.arithmetic.leg_counting import ANIMALS

from qwen3_jax.curation.trace import Trace
from qwen3_jax.problems.problem import Problem

Say = Callable[..., str]


@dataclasses.dataclass
class Voice:
  """One way to say things; a trace keeps to it."""

  rng: random.Random
  kind: int  # 0 full sentences, 1 thinking aloud, 2 terse notes, 3 numbered

  def open(self) -> str:
    return self.rng.choice([
      ["Let me work through this step by step.", "We need to find the result carefully.", "First I look at what is given."],
      ["Okay, so let's see.", "Hmm, let me think about this.", "Alright, what do we have here?"],
      ["", "Given as stated.", ""],
      ["Plan: go through it in order.", "I will number the steps.", ""],
    ][self.kind])  # fmt: skip

  def step(self, text: str, number: int) -> str:
    if self.kind == 1:
      text = self.rng.choice(["", "", "So ", "Now, ", "Then ", "Okay, "]) + text
    if self.kind == 3:
      text = f"{number}. {text}"
    return text

  def close(self, answer: str) -> str:
    return self.rng.choice([
      [f"Therefore the answer is {answer}.", f"This gives {answer} as the result.", f"Hence we arrive at {answer}."],
      [f"So it's {answer}.", f"Great, that makes {answer}.", f"Okay so that leaves us with {answer}."],
      [f"=> {answer}", f"Result: {answer}", f"{answer}"],
      [f"Final: {answer}", f"Conclusion: {answer}.", f"The answer is {answer}"],
    ][self.kind])  # fmt: skip

  def check(self, steps: list[str]) -> list[str]:
    """Comes back to steps, as careful writers do."""
    if self.rng.random() < 0.6:
      return []
    again = self.rng.sample(steps, min(len(steps), self.rng.randint(1, 6)))
    opening = self.rng.choice(
      ["Let me double-check.", "Wait, let me verify that once more.", "Checking:", "To be safe, I go over it again."]
    )
    return [opening, *again, self.rng.choice(["That agrees.", "Yes, this matches what I had.", "Good.", "Confirmed."])]


def clean_trace(family: str, entry: dict[str, Any], index: int, seed: int) -> Trace:
  """A sound trace for an entry of a family in `EXPLAINED`."""
  rng = random.Random(f"{family} {index} {seed}")
  voice = Voice(rng, rng.randrange(4))
  answer = str(entry["answer"])
  steps = EXPLAINED[family](entry, rng)
  lines = [
    voice.open(),
    *(voice.step(step, i) for i, step in enumerate(steps, 1)),
    *voice.check(steps),
    voice.close(answer),
  ]
  joint = "\n" if voice.kind in (2, 3) or "\n" in answer else rng.choice([" ", "\n", "\n\n"])
  thinking = joint.join(line for line in lines if line)
  problem = Problem(f"{family}-{index}", "reasoning", family, entry["question"], {"kind": "same"}, answer)
  return Trace(problem, 0, thinking, summary(answer, steps, rng))


def summary(answer: str, steps: list[str], rng: random.Random) -> str:
  """What the user gets."""
  some = " ".join(step if step.endswith((".", "!", ":")) else f"{step}." for step in steps[-2:] if "```" not in step)
  return rng.choice([
    f"The answer is {answer}",
    f"{some}\n\n**Answer:** {answer}",
    f"\\boxed{{{answer}}}" if "\n" not in answer else f"The answer is:\n{answer}",
    f"Working it out: {some}\n\nThe answer is {answer}",
  ])  # fmt: skip


@functools.cache
def entries(family: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
  return list(reasoning_gym.create_dataset(family, size=count, seed=seed))


def clean_traces(count: int, seed: int) -> list[Trace]:
  """Spread over the families."""
  families = sorted(EXPLAINED)
  each = -(-count // len(families))
  made = [
    clean_trace(family, entry, i, seed) for family in families for i, entry in enumerate(entries(family, each, seed))
  ]
  random.Random(seed).shuffle(made)
  return made[:count]


# One function a family: an entry -> steps that lead to its answer.


def _chain_sum(entry, rng):
  terms = re.findall(r"[+-]?\s*\d+", entry["metadata"]["expression"])
  total = int(terms[0].replace(" ", ""))
  steps = []
  for term in terms[1:]:
    value = int(term.replace(" ", ""))
    sign = "+" if value >= 0 else "-"
    steps.append(f"{total} {sign} {abs(value)} = {total + value}.")
    total += value
  return steps


def _simple_equations(entry, rng):
  left, right = entry["metadata"]["equation"].split("=")
  variable, answer = entry["metadata"]["variable"], int(entry["answer"])
  left = re.sub(r"\^", "**", left)
  value = lambda x: eval(left, {variable: x})
  steps = [f"At {variable} = 0 the left side is {value(0)}, the right side {right.strip()}."]
  slope = value(1) - value(0)
  steps.append(f"Each step of {variable} changes it by {slope}, because at {variable} = 1 it is {value(1)}.")
  steps.append(
    f"The difference to make up is {int(right) - value(0)}, so {variable} = {int(right) - value(0)} / {slope} = {answer}."
  )
  return steps


def _gcd(entry, rng):
  steps = []
  current, *others = entry["metadata"]["numbers"]
  for other in others:
    a, b = max(current, other), min(current, other)
    while b:
      steps.append(f"{a} = {a // b} * {b} + {a % b}")
      a, b = b, a % b
    steps.append(f"the remainder is zero, so {a} divides both {current} and {other}")
    current = a
  return steps


def _lcm(entry, rng):
  a, b = entry["metadata"]["numbers"][:2]
  steps = [f"{a} is {' x '.join(map(str, _factors(a)))}.", f"{b} is {' x '.join(map(str, _factors(b)))}."]
  steps.append(f"They share {math.gcd(a, b)}, so the least common multiple is {a} * {b} / {math.gcd(a, b)}.")
  return [*steps, f"{a * b} / {math.gcd(a, b)} = {a * b // math.gcd(a, b)}"]


def _factors(n):
  found, p = [], 2
  while n > 1:
    while n % p == 0:
      found.append(p)
      n //= p
    p += 1
  return found


def _number_sorting(entry, rng):
  rest = list(entry["metadata"]["original_numbers"])
  wanted = list(entry["metadata"]["sorted_numbers"])
  word = "largest" if entry["metadata"]["direction"] == "descending" else "smallest"
  steps = []
  for number in wanted[:-1]:
    steps.append(f"Among {', '.join(rest)} the {word} is {number}.")
    rest.remove(number)
  return [*steps, f"Only {rest[0]} is left."]


def _letter_counting(entry, rng):
  letter, total, steps = entry["metadata"]["target_letter"], 0, []
  for word in entry["metadata"]["span"]:
    count = word.lower().count(letter.lower())
    total += count
    steps.append(f'"{word}" has {count or "no"} {letter}' + (f", {total} so far." if count else "."))
  return steps


def _base_conversion(entry, rng):
  m = entry["metadata"]
  steps = [f"In decimal {m['source_repr']} is {m['decimal_value']}."]
  value = m["decimal_value"]
  while value:
    digit = "0123456789abcdefghijklmnopqrstuvwxyz"[value % m["target_base"]]
    steps.append(
      f"{value} / {m['target_base']} = {value // m['target_base']} remainder {value % m['target_base']}, digit {digit}."
    )
    value //= m["target_base"]
  return [*steps, "Now read the digits from the last to the first."]


def _leg_counting(entry, rng):
  total, steps = 0, []
  for animal, count in entry["metadata"]["animals"].items():
    legs = ANIMALS[animal] * count
    total += legs
    steps.append(
      f"A {animal} has {ANIMALS[animal]} legs, {count} of them have {count} * {ANIMALS[animal]} = {legs}; together {total}."
    )
  return steps


def _word_sorting(entry, rng):
  m = entry["metadata"]
  steps = [f"{m['sorted_words'][0]} comes first: it begins with {m['sorted_words'][0][0]}."]
  for a, b in zip(m["sorted_words"], m["sorted_words"][1:]):
    at = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    steps.append(
      f"After {a} comes {b}, since they differ at letter {at + 1}: {a[at : at + 1] or 'nothing'} against {b[at : at + 1] or 'nothing'}."
    )
  return steps


def _prime_factorization(entry, rng):
  n, steps = entry["metadata"]["number"], []
  for p in entry["metadata"]["factors"][:-1]:
    steps.append(f"{n} is divisible by {p}: {n} = {p} * {n // p}.")
    n //= p
  tried = [p for p in (2, 3, 5, 7, 11, 13, 17, 19, 23) if p * p <= n]
  steps += [f"{n} / {p} = {n / p:.2f}, no." for p in tried]
  return [*steps, f"{n} has no divisor up to its root {math.isqrt(n)}, so it is prime."]


def _fraction_simplification(entry, rng):
  a, b, steps = entry["metadata"]["numerator"], entry["metadata"]["denominator"], []
  while b:
    steps.append(f"{a} mod {b} = {a % b}")
    a, b = b, a % b
  m = entry["metadata"]
  steps.append(f"so the common factor is {a}")
  return [
    *steps,
    f"{m['numerator']} / {a} = {m['numerator'] // a} and {m['denominator']} / {a} = {m['denominator'] // a}",
  ]


def _count_bits(entry, rng):
  binary = entry["metadata"]["binary"].removeprefix("0b")
  groups = [binary[max(0, i - 4) : i] for i in range(len(binary), 0, -4)][::-1]
  total, steps = 0, [f"In binary: {' '.join(groups)}."]
  for group in groups:
    total += group.count("1")
    steps.append(f"{group} adds {group.count('1')}, so {total}.")
  return steps


def _caesar_cipher(entry, rng):
  m = entry["metadata"]
  steps = [f"Try a shift of {m['rotation']} backwards."]
  for cipher, clear in zip(m["cipher_text"].split(), m["clear_text"].split()):
    steps.append(f"{cipher}: {', '.join(f'{a}->{b}' for a, b in zip(cipher, clear))}, that is {clear}.")
  return steps


def _spell_backward(entry, rng):
  word = entry["metadata"]["word"]
  steps = [f"The letters of {word} are {'-'.join(word)}."]
  return [*steps, f"From the end: {'-'.join(word[::-1])}."]


def _products(entry, rng):
  a, b = map(int, entry["metadata"]["expression"].split(" * "))
  steps, total = [], 0
  for place, digit in enumerate(reversed(str(b))):
    part = a * int(digit) * 10**place
    total += part
    steps.append(f"{a} * {int(digit) * 10**place} = {part}, running total {total}.")
  return steps


def _gsm_symbolic(entry, rng):
  return [line for line in entry["metadata"]["answer_cot"].split("\n") if not line.startswith("####")]


def _string_manipulation(entry, rng):
  states = entry["metadata"]["states"]
  rules = entry["metadata"]["selected_rules"]
  steps = [f"The first rule that fits {a} turns it into {b}." for a, b in itertools.pairwise(states)]
  return [
    *(steps[:14]),
    *(f"For {states[-1]} rule {i} does not change anything new." for i in range(1, len(rules) + 1)),
  ]


def _isomorphic_strings(entry, rng):
  a, b = entry["metadata"]["words"]
  steps: list[str] = []
  there: dict[str, str] = {}
  back: dict[str, str] = {}
  for x, y in zip(a, b):
    if there.get(x, y) != y or back.get(y, x) != x:
      return [
        *steps,
        f"{x} would go to {y}, but {x} goes to {there.get(x, 'nothing')} and {y} comes from {back.get(y, 'nothing')}: a contradiction.",
      ]
    there[x], back[y] = y, x
    steps.append(f"{x} -> {y} is consistent.")
  return steps


def _number_filtering(entry, rng):
  m = entry["metadata"]
  steps = []
  for number in m["original_numbers"]:
    relation = (
      ">" if float(number) > float(m["filter_value"]) else "<" if float(number) < float(m["filter_value"]) else "="
    )
    steps.append(f"{number} {relation} {m['filter_value']}, {'keep' if number in m['result'] else 'drop'} it.")
  return steps


def _knights_knaves(entry, rng):
  m = entry["metadata"]
  names, terms = [str(name) for name in m["names"]], {key: str(value) for key, value in m["knight_knave_terms"].items()}
  role = lambda honest: terms["knight"] if honest else terms["knave"]
  n, steps = len(names), []

  def holds(s, world):
    kind, *rest = s
    if kind == "telling-truth":
      return world[rest[0]]
    if kind == "lying":
      return not world[rest[0]]
    values = [holds(part, world) for part in rest]
    if kind in ("and", "or", "not"):
      return {"and": all(values), "or": any(values), "not": not values[0]}[kind]
    return (not values[0]) or values[1] if kind == "->" else values[0] == values[1]

  for number in range(2**n):
    world = [bool(number >> i & 1) for i in range(n)]
    said = ", ".join(f"{name} a {role(honest)}" for name, honest in zip(names, world))
    broken = [i for i in range(n) if holds(m["statements"][i], world) != world[i]]
    if broken:
      steps.append(
        f"Suppose {said}: then what {names[broken[0]]} said would be {'false' if world[broken[0]] else 'true'}, which a {role(world[broken[0]])} cannot say."
      )
    else:
      steps.append(f"With {said} all statements fit, no contradiction.")
  return steps


def _binary_matrix(entry, rng):
  rows, answer = entry["metadata"]["matrix"], entry["metadata"]["solution"]
  steps = [
    "I run a breadth-first search from all zeros:",
    "```python\nqueue = deque((i, j) for i in range(n) for j in range(n) if m[i][j] == 0)\nwhile queue:\n  i, j = queue.popleft()\n  for a, b in ((i+1, j), (i-1, j), (i, j+1), (i, j-1)):\n    if inside(a, b) and d[a][b] is None:\n      d[a][b] = d[i][j] + 1\n      queue.append((a, b))\n```",
  ]
  for i, (row, distances) in enumerate(zip(rows, answer)):
    steps.append(f"Row {i} is {' '.join(map(str, row))}, its distances are {' '.join(map(str, distances))}.")
  return steps


EXPLAINED: dict[str, Callable[[dict[str, Any], random.Random], list[str]]] = {
  name.removeprefix("_"): function
  for name, function in list(globals().items())
  if name.startswith("_") and callable(function) and name not in ("_factors",)
}  # fmt: skip
