"""The audit of reasoning-gym: right answers score 1, others clearly less, nothing raises; the same problems again."""

import dataclasses
import json
import time

import pytest

from qwen3_jax.problems.problem import Problem
from qwen3_jax.problems.reasoning_gym import EXCLUDED, families, reasoning_gym_problems
from qwen3_jax.rewards.registry import check_problem, verify, verify_all

SMALL = {"futoshiki": {"min_board_size": 4, "max_board_size": 4}}  # the default takes seconds to make
SMALL["countdown"] = {"min_numbers": 3, "max_numbers": 3}
COUNT = 2
GARBAGE = [
  "",
  "  \n",
  "x",
  "[]",
  "{}",
  "[[1]]",
  "None",
  "True",
  "nan",
  "inf",
  "1/0",
  "((((",
  "7" * 60,
  "\x00\xff\ud800",
  "{'a':",
]
GARBAGE += ["__import__('os')._exit(0)", "5318008 " * 1000, "[" * 3000, "I cannot tell."]


@pytest.fixture(scope="module")
def problems():
  made = reasoning_gym_problems(families(), COUNT, 1, SMALL)
  # Another process would see only this.
  return [Problem(**json.loads(json.dumps(dataclasses.asdict(problem)))) for problem in made]


def test_what_is_made(problems):
  assert len(families()) >= 95
  assert [problem.sub_domain for problem in problems] == [family for family in families() for _ in range(COUNT)]
  assert len({problem.id for problem in problems}) == len(problems)
  assert {"arithmetic", "algebra", "logic", "graphs", "games", "arc"} <= {problem.domain for problem in problems}
  for problem in problems:
    check_problem(problem)
    assert problem.prompt and problem.reference
    assert problem.sub_domain != "countdown" or len(problem.verifier["numbers"]) == 3


def test_stored_answers_are_right(problems):
  for form in ("{}", "<answer>{}</answer>", "I think so.\n\n**Answer:**\n{}", "Thus \\boxed{{{}}}."):
    asked = [problem for problem in problems if "boxed" not in form or not set("{}") & set(problem.reference)]
    verdicts = verify_all(asked, [form.format(problem.reference) for problem in asked])
    assert {(one.sub_domain, verdict.reason) for one, verdict in zip(asked, verdicts) if not verdict.right} == set()


def test_garbage_is_wrong(problems):
  """Unless it is the stored answer. All scores are scores: nothing raises, not even inside."""
  raised = set()
  for garbage in GARBAGE:
    asked = [problem for problem in problems[::COUNT] if problem.reference.strip() != garbage]
    start = time.monotonic()
    for problem, verdict in zip(asked, verify_all(asked, [garbage] * len(asked), seconds=5)):
      assert verdict.score == 0 and verdict.reason, (problem.sub_domain, garbage, verdict)
      if "the verifier failed" in verdict.reason:
        raised.add(problem.sub_domain)
    assert time.monotonic() - start < 100
  # Scorers of the library that raise on what is no answer at all; their verdict is 0.
  assert raised <= {"prime_factorization", "survo", "modulo_grid", "time_intervals"}


def test_answers_to_other_problems_are_wrong(problems):
  pairs = list(zip(problems[::COUNT], problems[1::COUNT]))
  pairs = [(one, other) for one, other in pairs if one.reference != other.reference]
  assert len(pairs) > 70
  verdicts = verify_all([one for one, _ in pairs], [other.reference for _, other in pairs])
  assert {one.sub_domain for (one, _), verdict in zip(pairs, verdicts) if verdict.score > 0} == set()


KNOWN = {  # family -> answers that the library's own scorer takes for right, or raises on, of a problem's parts
  "puzzle24": lambda problem: "24*1*1*1",
  "coin_flip": lambda problem: "0",
  "number_sorting": lambda problem: json.dumps([float(x) + 0.5 for x in eval(problem.reference)]),
  "game_of_life": lambda problem: problem.reference[:-1] + ",[1]]",
  "figlet_font": lambda problem: problem.reference + problem.reference * 3,
  "letter_jumble": lambda problem: problem.reference + " more",
  "spell_backward": lambda problem: problem.reference + "x",
  "complex_arithmetic": lambda problem: "nan",
  "simple_integration": lambda problem: f"Integral({problem.verifier['entry']['metadata']['integrand']}, x)",
  "countdown": lambda problem: f"{problem.reference} if 1 else 0",
  "spiral_matrix": lambda problem: "__import__('os')._exit(1)",
  "prime_factorization": lambda problem: "two and three",
}


@pytest.mark.parametrize("family", KNOWN)
def test_known_holes_are_closed(problems, family):
  problem = next(problem for problem in problems if problem.sub_domain == family)
  verdict = verify(problem, KNOWN[family](problem))
  assert verdict.score == 0 and verdict.reason


def test_exclusions_are_needed():
  """If a release of the library mends one, this says so."""
  from reasoning_gym.factory import create_dataset

  halting = create_dataset("game_of_life_halting", seed=0, size=1)
  assert halting.score_answer("anything", {**halting[0], "answer": "True"}) == 1
  logic = create_dataset("propositional_logic", seed=0, size=8)
  assert any(logic.score_answer(entry["metadata"]["premises"][0], entry) == 1 for entry in logic)
  boxes = create_dataset("boxnet", seed=0, size=1)
  with pytest.raises((TypeError, AttributeError)):
    boxes.score_answer("0", boxes[0])
  for family in ("boxnet", "propositional_logic", "rush_hour"):
    assert create_dataset(family, seed=0, size=1)[0]["answer"] is None
  for family, reason in EXCLUDED.items():
    assert reason and family not in families()
    with pytest.raises(ValueError, match=f"'{family}' cannot be verified: "):
      reasoning_gym_problems([family], 1, 0)


def test_partial_scores_count_only_where_asked_for(problems):
  problem = next(problem for problem in problems if problem.sub_domain == "rectangle_count")
  near = str(int(problem.reference) + 1)
  assert verify(problem, near).score == 0
  partial = dataclasses.replace(problem, verifier={**problem.verifier, "partial": True})
  assert 0 < verify(partial, near).score < 1
  assert verify(partial, "none").score == 0


# Of these, some go through sets, some draw from the generators of the process.
NAMES = ["isomorphic_strings", "list_functions", "polynomial_multiplication", "ransom_note", "word_ladder", "countdown"]
NAMES += ["intermediate_integration"]


def test_the_same_seed_gives_the_same_problems(problems, monkeypatch):
  first = reasoning_gym_problems(NAMES, 3, 5)
  monkeypatch.setenv("PYTHONHASHSEED", "123")
  again = reasoning_gym_problems(NAMES, 12, 5)
  assert [problem for number, problem in enumerate(again) if number % 12 < 3] == first
  assert not {problem.id for problem in again} & {problem.id for problem in problems}  # of another seed
  # The library could not solve all of its integrals.
  assert not any("Integral(" in problem.reference for problem in again)


def test_what_cannot_be_made_is_said():
  with pytest.raises(ValueError, match=r"family 'count_down'.*Did you mean 'countdown'"):
    reasoning_gym_problems(["count_down"], 1, 0)
  with pytest.raises(ValueError, match=r"config of countdown: .*min_number'"):
    reasoning_gym_problems(["countdown"], 1, 0, {"countdown": {"min_number": 3}})
  tiny = {"leg_counting": {"min_animals": 1, "max_animals": 1, "min_instances": 1, "max_instances": 1}}
  with pytest.raises(ValueError, match=r"'leg_counting' has only [0-9]+ different problems, fewer than 1000"):
    reasoning_gym_problems(["leg_counting"], 1000, 0, tiny)
