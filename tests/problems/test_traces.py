"""The built-in task, its traces, and specs of problems."""

import re

import pytest

from qwen3_jax.data.sources import SourceError, documents, open_source
from qwen3_jax.problems.cups import cups_problems, places, words
from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.sources import check_spec, open_problems
from qwen3_jax.problems.traces import HASTY, is_careful, steps, traces
from qwen3_jax.rewards.registry import verify


def test_cups_are_tracked():
  problems = cups_problems(300, 1, (1, 8))
  assert len({p.id for p in problems}) == 300 and problems == cups_problems(300, 1, (1, 8))
  assert {p.sub_domain for p in problems} == {f"{n} swaps" for n in range(1, 9)}
  moved = 0
  for p in problems:
    ball, *swaps = p.prompt.split()
    for swap in swaps:  # written out another way than in the code
      cups = dict(zip("abcde", "abcde"))
      cups[swap[0]], cups[swap[1]] = swap[1], swap[0]
      moved += cups[ball] != ball
      ball = cups[ball]
    assert ball == p.reference == places(p)[-1] and len(places(p)) == len(swaps)
    assert verify(p, ball).right and not verify(p, "abcde".replace(ball, "")[0]).right
  assert moved > 300


def test_share_of_hasty_traces():
  found = list(traces(cups_problems(500, 2), 0.6, seed=0))
  assert found == list(traces(cups_problems(500, 2), 0.6, seed=0))
  careful = [trace.careful for trace in found]
  assert 0.3 < sum(careful) / 500 < 0.5
  for trace in found:
    assert trace.thinking == (" ".join(places(trace.problem)) if trace.careful else HASTY)
    assert is_careful(trace.thinking) == trace.careful and trace.messages[1]["content"] == trace.problem.reference


def test_traces_of_families_end_in_the_answer():
  made = open_problems("reasoning-gym:chain_sum,letter_counting:30:0")
  assert len(made) == 60
  for p in made:
    thinking = steps(p)
    last = str(int(re.findall(r"[-+]?\d+", thinking)[-1]))
    assert last == p.reference and verify(p, last).right


def test_numbered_swaps():
  spec = "cups:100:4:1-8:numbered"
  made = open_problems(spec)
  plain = cups_problems(100, 4, (1, 8))
  assert [p.reference for p in made] == [p.reference for p in plain] and made != plain
  for p in made:
    written = re.findall(r"(\d) ([a-e]{2}) ([a-e])", steps(p))
    numbers, pairs, found = zip(*written, strict=True)
    assert p.prompt[:3] == steps(p)[:3] == f"0 {words(p)[0]}"
    assert list(zip(numbers, pairs, strict=True)) == re.findall(r"(\d) ([a-e]{2})", p.prompt)
    assert list(numbers) == [str(n) for n in range(1, len(numbers) + 1)]
    assert list(found) == places(p) and found[-1] == p.reference
  assert "expected cups:COUNT" in check_spec("cups:5:0:1-8:counted")


def test_traces_are_a_source():
  found = list(documents(open_source("traces:0.5:cups:20:3:2-2")))
  assert len(found) == 20 and {d.domain for d in found} == {"logic"}
  for document in found:
    question, answer = document.conversation["messages"]
    assert document.text == "\n".join([question["content"], answer["reasoning_content"], answer["content"]])
  with pytest.raises(SourceError, match=r"traces:0\.6:cups:1500"):
    open_source("traces:cups:20")


@pytest.mark.parametrize(
  "spec, says",
  [
    ("cup:20", "Did you mean 'cups'"),
    ("cups", "expected kind:"),
    ("cups:many", "expected cups:COUNT"),
    ("cups:5:1:3", "expected cups:COUNT"),
    ("reasoning-gym:gcd", "expected reasoning-gym:FAMILIES"),
    ("reasoning-gym:gcd:5:0:[1]", "expected reasoning-gym:FAMILIES"),
  ],
)
def test_specs_that_name_nothing(spec, says):
  assert says in check_spec(spec)
  with pytest.raises(SourceError, match=re.escape(says)):
    open_problems(spec)


def test_specs():
  assert check_spec("cups:5") is check_spec("cups:5:1") is check_spec("reasoning-gym:gcd:3:1") is None
  assert [len(p.prompt.split()) for p in open_problems("cups:3:1:2-2")] == [3, 3, 3]
  options = '{"chain_sum": {"max_digits": 1, "min_terms": 2, "max_terms": 2}}'
  assert all(len(re.findall(r"\d", p.prompt)) == 2 for p in open_problems(f"reasoning-gym:chain_sum:5:0:{options}"))
  with pytest.raises(SourceError, match="No such file"):
    open_problems("jsonl:/nowhere.jsonl")
  with pytest.raises(SourceError, match="no traces of the task 'gcd'"):
    steps(Problem("x", "d", "gcd", "q", {"kind": "exact"}, "1"))
