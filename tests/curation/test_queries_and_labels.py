"""Filters of queries, labels, balance, what is reserved."""

import collections

import pytest

from qwen3_jax.curation.ask import CurationError, choose, verdict
from qwen3_jax.curation.balance import balance, reserve
from qwen3_jax.curation.labels import label
from qwen3_jax.curation.query_filters import by_rules, not_verifiable, solved_without_thinking
from qwen3_jax.language_models.language_model import Reply
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.verdict import Verdict

QUIET = lambda *_: None


def problem(
  id: str, prompt: str = "What is 2 + 2?", domain: str = "mathematics", sub_domain: str = "s", **options
) -> Problem:
  return Problem(
    id, domain, sub_domain, prompt, options.get("verifier", {"kind": "exact"}), options.get("reference", "4")
  )


class Model:
  """Answers by a function of the text; notes what it was asked."""

  name = "scripted"

  def __init__(self, reply):
    self.reply, self.requests = reply, []

  def answer(self, requests, on_progress=QUIET):
    self.requests += requests
    texts = [self.reply(request.messages[-1]["content"], request) for request in requests]
    return [[Reply(text, "", "error" if text is None else "stop", 1, 1, "it broke")] for text in texts]


@pytest.mark.parametrize(
  ("prompt", "fit"),
  [
    ("What is 2 + 2?", True),
    ("Answer these:\n(a) What is 2 + 2?\n(b) How many legs has a spider?", False),
    ("1. Compute 3 * 4.\n2. Explain why it is even.", False),
    ("Rules:\n1. If it ends with a, drop it.\n2. If it begins with b, repeat it.\nWhat becomes of aba?", True),
    ("Which one is it?\nA) Rome\nB) Paris", True),
    ("Write a short poem about autumn.", False),
    ("Please write me an essay on the French revolution", False),
    ("Write the number 3/4 as a decimal.", True),
    ("Find the story's 4th word: a letter from home", True),
    ("", False),
  ],
)
def test_rules(prompt, fit):
  assert (by_rules(problem("p", prompt)) == "") == fit


def test_rules_need_a_verifier():
  assert by_rules(problem("p", verifier={})) == "no verifier"


def test_the_model_decides_what_rules_do_not():
  def word(text, _):
    several = "SEVERAL_QUESTIONS" if "old are both" in text else "VERIFIABLE"
    return f"Well.\n**VERDICT: {'OPEN_ENDED' if 'tastes best' in text else several}**"

  queries = [
    problem("a"),
    problem("b", "What tastes best?"),
    problem("c", "How old are both?"),
    problem("d", "Write a poem."),
  ]
  model = Model(word)
  reasons = not_verifiable(queries, model, 0, QUIET, 0.0)
  assert reasons[0] == "" and "open" in reasons[1] and "several" in reasons[2] and "open" in reasons[3]
  assert len(model.requests) == 3  # rules had the last


@pytest.mark.parametrize(
  ("reply", "word"),
  [
    ("VERDICT: YES", "YES"), ("So.\n\n verdict: <no>. ", "NO"), ("VERDICT: YES\nor perhaps not", ""), ("YES", ""),
    ("VERDICT: YES or NO", ""), ("VERDICT: MAYBE", ""), ("", ""),
    ("The VERDICT: YES", ""), ("## VERDICT: `YES`", "YES"),
  ],
)  # fmt: skip
def test_verdict(reply, word):
  assert verdict(reply, ("YES", "NO")) == word


def test_what_has_no_verdict_is_asked_again():
  seen = collections.Counter()

  def reply(text, request):
    seen[text] += 1
    return "hm" if "never" in text or seen[text] < 3 else "VERDICT: YES"

  model = Model(reply)
  said = choose(model, [("a", "first"), ("b", "never")], ("YES", "NO"), "step", 0)
  assert [one.word for one in said] == ["YES", ""] and "3 replies" in said[1].problem
  seeds = [request.seed for request in model.requests if "first" in request.messages[0]["content"]]
  assert len(set(seeds)) == 3


def test_a_model_that_is_away_ends_it():
  with pytest.raises(CurationError, match=r"step: 2 of 2 replies of scripted failed.*it broke"):
    choose(Model(lambda *_: None), [("a", "x"), ("b", "y")], ("YES",), "step", 0, tolerated=0.1)


def test_solved_without_thinking():
  model = Model(lambda text, request: "The answer is 4" if "2 + 2" in text else "5")
  judge = lambda problems, responses: [Verdict(float(p.reference in r)) for p, r in zip(problems, responses)]
  reasons = solved_without_thinking([problem("a"), problem("b", "What is 1 + 3?")], model, judge, 0, QUIET, 0.0)
  assert "without thinking" in reasons[0] and reasons[1] == ""
  assert not any(request.enable_thinking for request in model.requests)


def test_labels():
  model = Model(lambda text, _: "VERDICT: logic" if "knight" in text else "VERDICT: nonsense")
  queries = [problem("a"), problem("b", "Is he a knight?", domain=""), problem("c", "Hm?", domain="")]
  labelled = label(queries, model, ("logic", "games"), 0, QUIET, 0.0)
  assert [one.domain for one in labelled] == ["mathematics", "logic", "other"]
  assert {request.messages[0]["content"].count("knight") for request in model.requests[:1]} == {1}


def test_balance():
  sizes = {"a": 90, "b": 10, "c": 14}
  queries = [problem(f"{d}{i}", domain=d, sub_domain=f"{d}{i % 10 == 0}") for d, n in sizes.items() for i in range(n)]
  stays = balance(queries, 2.0, 0)
  kept = collections.Counter(one.domain for one, stay in zip(queries, stays) if stay)
  assert kept == {"a": 28, "b": 10, "c": 14}
  subs = collections.Counter(one.sub_domain for one, stay in zip(queries, stays) if stay and one.domain == "a")
  assert subs == {"aTrue": 9, "aFalse": 19}  # the rare one whole
  assert balance(queries, 2.0, 0) == stays != balance(queries, 2.0, 1)
  flipped = balance(queries[::-1], 2.0, 0)
  assert flipped[::-1] == stays  # whatever the order
  assert all(balance(queries, 0.0, 0))


def test_reserve():
  queries = [
    problem(f"{s}{i}", f"{s}{i}?", sub_domain=s) for s, n in {"a": 200, "b": 3, "c": 1}.items() for i in range(n)
  ]
  queries += [problem("again", "a0?", sub_domain="a")]
  held = reserve(queries, 0.05, 0)
  by = collections.Counter(one.sub_domain for one, is_held in zip(queries, held) if is_held)
  assert by["a"] in (10, 11) and by["b"] == 1 and by["c"] == 0
  assert held[0] == held[-1]  # the same question on one side
  assert held == reserve(queries[::-1], 0.05, 0)[::-1] != reserve(queries, 0.05, 1)
  assert not any(reserve(queries, 0.0, 0))
