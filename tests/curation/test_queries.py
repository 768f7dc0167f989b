"""Choosing problems for reinforcement learning: what is learnable, the choice, pass rates on disk, the command."""

import collections
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.curation.model_judge import judge_of, make_asker
from qwen3_jax.curation.pass_rates import PassRate, measure_pass_rates
from qwen3_jax.curation.queries import Rule, Used, candidates_of, describe, read_used, select
from qwen3_jax.loading import save_pretrained
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.records import read_problems, write_problems
from tests import fast_compiling
from tests.rollout.chain_model import CONFIG, chain, chain_model
from tests.rollout.conftest import tokenizer  # noqa: F401

ROOT = Path(__file__).parents[2]


def problem(name: object, sub_domain: str = "s", prompt: str = "", reference: str = "1") -> Problem:
  return Problem(f"p{name}", "d", sub_domain, prompt or f"Question {name}?", {"kind": "exact"}, reference)


def at_least(right: int, answers: int, rate: float) -> float:
  """Probability of so many right answers or more."""
  return sum(math.comb(answers, k) * rate**k * (1 - rate) ** (answers - k) for k in range(right, answers + 1))


# The interval, and what is learnable


@pytest.mark.parametrize("answers", [1, 7, 16])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_bounds_are_rates_that_the_answers_just_contradict(answers, level):
  for right in range(answers + 1):
    low, high = PassRate(right, answers).interval(level)
    if right:
      assert at_least(right, answers, low) == pytest.approx((1 - level) / 2, rel=1e-6)
    if right < answers:
      assert 1 - at_least(right + 1, answers, high) == pytest.approx((1 - level) / 2, rel=1e-6)
    assert (low == 0) == (right == 0) and (high == 1) == (right == answers)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.93])
def test_coverage(rate):
  """Answers drawn with a known rate: the interval holds it as often as it says, and each bound errs half as often."""
  level, draws = 0.8, 4000
  right = np.random.default_rng(0).binomial(16, rate, draws)
  bounds = np.array([PassRate(int(k), 16).interval(level) for k in right])
  slack = 3 * math.sqrt(level * (1 - level) / draws)
  assert np.mean((bounds[:, 0] <= rate) & (rate <= bounds[:, 1])) >= level - slack
  assert np.mean(bounds[:, 0] > rate) <= (1 - level) / 2 + slack
  assert np.mean(bounds[:, 1] < rate) <= (1 - level) / 2 + slack


@pytest.mark.parametrize("level", [0.1, 0.9, 0.999])
def test_learnable_without_bounds(level):
  rule = Rule(level=level)
  for right in range(17):
    assert rule.why_not(PassRate(right, 16)) == {0: "never right", 16: "always right"}.get(right, "")
  assert rule.why_not(PassRate(0, 0)) == "never judged"


@given(st.integers(1, 24), st.integers(0, 24), st.floats(0.01, 0.5), st.floats(0.51, 0.99), st.floats(0.3, 0.99))
def test_learnable_within_bounds(answers, right, least, most, level):
  right = min(right, answers)
  error = (1 - level) / 2
  # As likely at these rates; what lies within rounding of the limit is neither.
  above, below = at_least(right, answers, least) / error, (1 - at_least(right + 1, answers, most)) / error
  if min(abs(above - 1), abs(below - 1)) < 1e-6:
    return
  why = Rule(level=level, least=least, most=most).why_not(PassRate(right, answers))
  assert (why == "") == (0 < right < answers and above < 1 and below < 1)


@pytest.mark.parametrize(
  "changes, message",
  [({"count": 0}, "count=0"), ({"level": 1.0}, "level=1.0"), ({"least": 0.6, "most": 0.5}, "least=")],
)
def test_rules_that_choose_nothing(changes, message):
  with pytest.raises(ValueError, match=message):
    Rule(**changes)
  with pytest.raises(ValueError, match="right=3 of answers=2"):
    PassRate(3, 2)


# The choice


@st.composite
def rated(draw):
  """Problems of up to four sub-domains, and their pass rates."""
  rows = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 8)), min_size=1, max_size=40))
  problems = [problem(i, f"s{sub_domain}") for i, (sub_domain, _) in enumerate(rows)]
  return problems, {p.id: PassRate(right, 8) for p, (_, right) in zip(problems, rows)}


@settings(deadline=None)
@given(rated(), st.integers(1, 45), st.integers(0, 3), st.randoms())
def test_choices(found, count, seed, random):
  problems, rates = found
  rule = Rule(count=count, seed=seed)
  selection = select(problems, rates, rule)
  learnable = {p.id for p in problems if 0 < rates[p.id].right < 8}
  ids = [p.id for p in selection.chosen]
  assert set(ids) <= learnable and len(set(ids)) == len(ids) == min(count, len(learnable))
  assert len({p.id for p in selection.at_random}) == len(ids)
  # What a sub-domain has too little of goes to others, in equal shares.
  chosen, there = (
    collections.Counter(p.sub_domain for p in problems if p.id in some) for some in (set(ids), learnable)
  )
  for a, b in itertools.permutations(there, 2):
    assert chosen[a] + 1 >= chosen[b] or chosen[a] == there[a]
  # No problem of a sub-domain is left for an easier one.
  for p, q in itertools.product(problems, problems):
    if p.sub_domain == q.sub_domain and p.id in ids and q.id in learnable - set(ids):
      assert rates[p.id].rate <= rates[q.id].rate
  assert sum(selection.dropped.values()) == len(problems) - len(ids)
  random.shuffle(problems)
  assert select(problems, rates, rule) == selection


def test_against_all_choices():
  """Of all sets of learnable problems: the most even, and the hardest among these."""
  rng = np.random.default_rng(0)
  for _ in range(40):
    size, count = int(rng.integers(2, 10)), int(rng.integers(1, 7))
    problems = [problem(i, f"s{int(rng.integers(3))}") for i in range(size)]
    rates = {p.id: PassRate(int(rng.integers(0, 7)), 6) for p in problems}
    learnable = [p for p in problems if 0 < rates[p.id].right < 6]

    def cost(some, rates=rates):
      counts = collections.Counter(p.sub_domain for p in some)
      return sum(n * n for n in counts.values()), sum(Fraction(rates[p.id].right, 6) for p in some)

    best = min(map(cost, itertools.combinations(learnable, min(count, len(learnable)))))
    assert cost(select(problems, rates, Rule(count=count)).chosen) == best


def test_a_seed_decides_between_equals():
  problems = [problem(i) for i in range(40)]
  rates = {p.id: PassRate(4, 8) for p in problems}
  chosen = [{p.id for p in select(problems, rates, Rule(count=20, seed=seed)).chosen} for seed in (0, 0, 1)]
  assert chosen[0] == chosen[1] != chosen[2]
  drawn = {p.id for p in select(problems, rates, Rule(count=20, seed=0)).at_random}
  assert drawn != chosen[0]  # another draw


def test_problems_without_a_pass_rate():
  with pytest.raises(ValueError, match=r"none of 1 candidates, e\.g\. of 'p1'"):
    select([problem(0), problem(1)], {"p0": PassRate(1, 2)}, Rule())
  with pytest.raises(ValueError, match="2 problems have only 1 ids"):
    select([problem(0), problem(0)], {"p0": PassRate(1, 2)}, Rule())


def test_description():
  problems = [problem(i, "a" if i < 6 else "b") for i in range(8)]
  found = describe(problems, {p.id: PassRate(i, 8) for i, p in enumerate(problems)})
  assert found["sub_domains"] == {"d/a": 6, "d/b": 2} and found["problems"] == 8
  assert found["pass_rate"] == pytest.approx(28 / 64)
  assert found["entropy"] == pytest.approx(math.log(4) - 0.75 * math.log(3))
  assert describe([], {})["problems"] == 0


# What was used before


def test_used_and_repeated_problems(tmp_path):
  by_problem, by_conversation = tmp_path / "problems.jsonl", tmp_path / "conversations.jsonl"
  write_problems(by_problem, [problem(0), problem("other", prompt="Question\n 1?")])
  turns = [{"role": "system", "content": "Question 4?"}, {"role": "user", "content": " Question 2?"}]
  turns += [{"role": "assistant", "content": "Question 5?"}, {"role": "user", "content": "Question  3?"}]
  by_conversation.write_text(json.dumps({"messages": turns}) + "\n")
  used = read_used([by_problem, by_conversation])
  problems = [problem(i) for i in range(8)]
  again = dataclasses.replace(problem("again"), prompt="Question  7?")
  for order in (1, -1):
    kept, dropped = candidates_of([*problems, again, problem(6)][::order], used)
    assert {p.prompt.split()[1] for p in kept} == {"4?", "5?", "6?", "7?"} and len(kept) == 4
    assert dropped == {"used before": 4, "repeated": 2}
  first, second = (candidates_of(some, used)[0] for some in ([*problems, again], [again, *problems[::-1]]))
  assert first == second
  assert len(candidates_of(problems, Used())[0]) == 8
  with pytest.raises(ValueError, match="'p1' is that of two different problems"):
    candidates_of([problem(1), problem(1, reference="2")], used)


@pytest.mark.parametrize("record", [{"text": "x"}, {"messages": "x"}, {"messages": [{"role": "assistant"}]}])
def test_records_that_name_no_problem(tmp_path, record):
  file = tmp_path / "used.jsonl"
  file.write_text(json.dumps({"id": "p"}) + "\n" + json.dumps(record) + "\n")
  with pytest.raises(ValueError, match="line 2: "):
    read_used([file])


# Pass rates on disk

PROBLEMS = [problem(i) for i in range(7)]
SETTINGS = {"samples": 4, "seed": 0}


class Judged:
  """Answers to problem i are right but for the first i % 5."""

  def __init__(self):
    self.asked: list[str] = []

  def __call__(self, problems):
    self.asked += [p.id for p in problems]
    return [[number >= int(p.id[1:]) % 5 for number in range(4)] for p in problems]


def test_a_kill_changes_nothing(tmp_path):
  """Cut anywhere, as a kill leaves it, the file becomes the same again; only what is missing is asked."""
  whole = tmp_path / "whole.jsonl"
  expected = measure_pass_rates(PROBLEMS, Judged(), whole, SETTINGS, at_a_time=3)
  assert [expected[p.id].right for p in PROBLEMS] == [4, 3, 2, 1, 0, 4, 3]
  content = whole.read_bytes()
  for cut in [*range(0, len(content), 11), len(content)]:
    file, judge = tmp_path / "cut.jsonl", Judged()
    file.write_bytes(content[:cut])
    assert measure_pass_rates(PROBLEMS, judge, file, SETTINGS, at_a_time=3) == expected
    assert file.read_bytes() == content
    complete = max(content[:cut].count(b"\n") - 1, 0)
    assert judge.asked == [p.id for p in PROBLEMS[complete:]]


def test_what_is_done_is_on_disk_while_the_rest_is_asked(tmp_path):
  file = tmp_path / "rates.jsonl"
  lines, progress = [], []

  def judge(problems):
    lines.append(len(file.read_bytes().splitlines()))
    return Judged()(problems)

  measure_pass_rates(PROBLEMS, judge, file, SETTINGS, 3, lambda done, total: progress.append((done, total)))
  assert lines == [1, 4, 7] and progress == [(0, 7), (3, 7), (6, 7), (7, 7)]
  more = [problem("2"), problem(9)]  # problems may come and go
  judge = Judged()
  assert measure_pass_rates(more, judge, file, SETTINGS) == {"p2": PassRate(2, 4), "p9": PassRate(0, 4)}
  assert judge.asked == ["p9"]


def test_pass_rates_of_something_else(tmp_path):
  file = tmp_path / "rates.jsonl"
  measure_pass_rates(PROBLEMS, Judged(), file, SETTINGS)
  with pytest.raises(ValueError, match="line 1: samples was 4, is now 8"):
    measure_pass_rates(PROBLEMS, Judged(), file, SETTINGS | {"samples": 8})
  changed = [problem(0), problem(1, reference="2")]
  with pytest.raises(ValueError, match="line 3: 'p1' was another problem"):
    measure_pass_rates(changed, Judged(), file, SETTINGS)
  with pytest.raises(ValueError, match="'p0' occurs twice"):
    measure_pass_rates([problem(0), problem(0)], Judged(), file, SETTINGS)
  file.write_text(file.read_text() + '{"id": "p8"}\n')
  with pytest.raises(ValueError, match="line 9: no pass rate"):
    measure_pass_rates(PROBLEMS, Judged(), file, SETTINGS)


# With a model


@pytest.fixture(scope="module")
def sometimes_right(tokenizer, tmp_path_factory):  # noqa: F811
  """A model that answers every question in the same way, most of the time: its folder, and problems."""
  ids = [tokenizer.special_tokens[name] for name in ("<think>", "</think>", "<|im_end|>")]
  newline, answer = tokenizer.encode("\n")[-1], tokenizer.encode("x")[-1]
  model = from_parameters(CONFIG, chain_model(chain(newline, ids[0], ids[1], answer, ids[2])))
  folder = tmp_path_factory.mktemp("model") / "checkpoint"
  save_pretrained(folder, model, tokenizer)
  text = tokenizer.decode([answer]).strip()
  problems = [problem(i, f"s{i % 2}", reference=text if i < 4 else "never") for i in range(6)]
  return model, folder, problems


def test_asking_together_or_apart(sometimes_right, tokenizer):  # noqa: F811
  model, _, problems = sometimes_right
  asker = make_asker(model, tokenizer, slots=16, max_length=64, max_new_tokens=8)
  judge = judge_of(asker, 8, seed=0)
  together = judge(problems)
  assert [outcome for p in reversed(problems) for outcome in judge([p])[0]] == list(itertools.chain(*together[::-1]))
  right = [sum(outcomes) for outcomes in together]
  assert all(len(outcomes) == 8 for outcomes in together)
  assert 0 < sum(right[:4]) < 32 and right[4:] == [0, 0]
  assert judge_of(asker, 8, seed=1)(problems) != together


def test_the_command(sometimes_right, tmp_path):
  _, folder, problems = sometimes_right
  source, output, used = tmp_path / "all.jsonl", tmp_path / "chosen.jsonl", tmp_path / "used.jsonl"
  write_problems(source, problems)
  used.write_text(json.dumps({"messages": [{"role": "user", "content": problems[0].prompt}]}) + "\n")
  flags = {
    "checkpoint": folder, "problems": f"jsonl:{source}", "exclude": used, "output": output, "count": 2, "samples": 16,
    "max_length": 64, "max_new_tokens": 8, "slots": 16, "dtype": "float32", "random_output": tmp_path / "random.jsonl",
  }  # fmt: skip
  environment = os.environ | {
    "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {fast_compiling.FLAGS}",
  }  # fmt: skip

  def run(**changes):
    command = [sys.executable, "-m", "qwen3_jax.select_queries"]
    command += [f"--{name}={value}" for name, value in (flags | changes).items()]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)

  done = run()
  assert done.returncode == 0, done.stderr
  chosen = read_problems(output)
  assert (
    len(chosen) == 2 and {p.id for p in chosen} <= {"p1", "p2", "p3"} and {p.sub_domain for p in chosen} == {"s0", "s1"}
  )
  assert len(read_problems(tmp_path / "random.jsonl")) == 2
  report = json.loads((tmp_path / "chosen.jsonl.report.json").read_text())
  rows = [json.loads(line) for line in (tmp_path / "chosen.jsonl.pass_rates.jsonl").read_text().splitlines()]
  assert rows[0]["samples"] == 16 and {row["id"] for row in rows[1:]} == {f"p{i}" for i in range(1, 6)}
  assert report["dropped"] == {"used before": 1, "repeated": 0, "never right": 2, "above the quota": 1}
  rates = {row["id"]: row["right"] / 16 for row in rows[1:]}
  assert report["chosen"]["pass_rate"] == pytest.approx(np.mean([rates[p.id] for p in chosen]))
  wrong = run(samples=8)  # the file of pass rates is of 16
  assert wrong.returncode == 1 and "samples was 16, is now 8" in wrong.stderr
