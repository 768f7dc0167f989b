"""Budget curves through the real engine where the truth is known, and the statistics against other ways to them."""

import dataclasses

import numpy as np
import pytest
import scipy.stats

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.budget_curve import BudgetCurve
from qwen3_jax.evaluation.confidence import Estimate, chance_of_drop, clustered, difference, holm, wilson
from qwen3_jax.evaluation.questions import Answered, Asking
from qwen3_jax.evaluation.result_tables import budget_of
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.generate import end_ids, make_engine
from qwen3_jax.rollout.request import Request
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.rollout.thinking_budget import STOP_THINKING, ThinkingTokens
from tests.evaluation.thinking_chain import GREEDY, THOUGHTS, problem, thinking_chain


@pytest.fixture(scope="module")
def engine(tokenizer) -> Engine:
  settings = EngineSettings(slots=8, max_length=256, adjustments=False)
  return make_engine(thinking_chain(tokenizer), tokenizer, settings)


def test_a_curve_that_rises_where_thinking_is_whole(engine, tokenizer):
  problems = [problem(i, "a") for i in range(5)]
  found = BudgetCurve(problems, samples=2, asking=GREEDY).run_with(GREEDY.of_engine(engine, tokenizer))
  budgets = {name.split("/")[0]: budget_of(name.split("/")[0]) for name in found.metrics if "accuracy" in name}
  assert list(budgets.values()) == [0, 1, 2, 4, 8, np.inf]
  for name, budget in budgets.items():
    halted = budget < THOUGHTS
    assert found.metrics[f"{name}/accuracy"] == 1 - halted
    assert found.metrics[f"{name}/thinking_tokens"] == min(budget, THOUGHTS)
    assert found.metrics[f"{name}/halted"] == halted
    assert found.metrics[f"{name}/truncated"] == 0
  assert (found.metrics["monotone"], found.metrics["drop_p"], found.metrics["gain"]) == (1, 1, 1)
  assert found.metrics["gain_p"] == pytest.approx(scipy.stats.binomtest(5, 5, alternative="greater").pvalue)
  assert found.rows[0]["right"] == {name: 2 * (budget >= THOUGHTS) for name, budget in budgets.items()}


def test_a_curve_that_falls(engine, tokenizer):
  """Where haste is right. Few problems prove nothing; the test of twelve is McNemar's, times the number of pairs."""
  ask = GREEDY.of_engine(engine, tokenizer)
  few = BudgetCurve([problem(i, "b") for i in range(3)], budgets=(4, 0), asking=GREEDY).run_with(ask)
  assert (few.metrics["budget 0/accuracy"], few.metrics["budget unlimited/accuracy"]) == (1, 0)
  assert few.metrics["monotone"] == 1 and few.metrics["gain"] == -1
  many = BudgetCurve([problem(i, "b") for i in range(12)], budgets=(4, 0), asking=GREEDY).run_with(ask)
  assert many.metrics["monotone"] == 0
  pair = scipy.stats.binomtest(0, 12, alternative="less").pvalue
  assert many.metrics["drop_p"] == pytest.approx(3 * pair)


@pytest.fixture(scope="module")
def opened(tokenizer, tmp_path_factory) -> Tokenizer:
  """One whose template opens the thinking: a random model thinks, too."""
  folder = tmp_path_factory.mktemp("opened")
  tokenizer.save(folder)
  (folder / "chat_template.jinja").write_text(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
  )
  return Tokenizer.from_pretrained(folder)


def test_a_random_model(model, opened):
  """A budget of 0 inserts the sentence at once; no budget is what the engine gives without one; seeds are shared."""
  ids = ThinkingTokens.of(opened)
  asking = Asking(SamplingParams(), SamplingParams(), max_new_tokens=40)
  engine = make_engine(model, opened, EngineSettings(slots=8, max_length=256, adjustments=False))
  asked, given = [], []

  def ask(questions):
    asked.append(questions)
    given.append(asking.of_engine(engine, opened)(questions))
    return given[-1]

  problems = [problem(i, "7") for i in range(3)]
  found = BudgetCurve(problems, samples=2, budgets=(0, 5), seed=3, asking=asking).run_with(ask)
  (unlimited, limited), P = given, len(problems)
  flat = lambda groups: [answer for group in groups for answer in group]
  longest = max(answer.thinking_tokens for answer in flat(unlimited))
  assert longest > 5
  for answer in flat(limited[:P]):
    assert tuple(answer.completion.token_ids[: len(ids.sentence)]) == ids.sentence
    assert answer.text.startswith("<think>\n" + STOP_THINKING) and answer.thinking_tokens == 0
  for free, cut in zip(flat(unlimited), flat(limited[P:])):
    if free.thinking_tokens > 5:
      start = cut.completion.token_ids[: 5 + len(ids.sentence)]
      assert tuple(start) == (*free.completion.token_ids[:5], *ids.sentence) and cut.thinking_tokens == 5
  assert found.metrics["budget 0/halted"] == 1 and found.metrics["budget unlimited/halted"] == 0
  messages = [{"role": "user", "content": "question 1"}]
  prompt = opened.encode(opened.apply_chat_template(messages))
  for seed, answer in zip(asked[0][1].seeds, unlimited[1]):
    request = Request(prompt, 40, SamplingParams(), stop_ids=end_ids(opened), seed=seed)
    assert engine.run([request])[0].tokens == answer.completion.token_ids
  assert {tuple(question.seeds) for question in asked[0]} == {tuple(question.seeds) for question in asked[1]}
  assert len({seed for question in asked[0] for seed in question.seeds}) == 2 * P


def test_answers_that_did_not_end_are_wrong(engine, tokenizer):
  """Though the verifier would take them."""
  full = GREEDY.of_engine(engine, tokenizer)
  cut: list[Answered] = []

  def ask(questions):
    groups = full(questions)
    for group in groups:
      group[:] = [
        dataclasses.replace(a, completion=dataclasses.replace(a.completion, finish_reason="length")) for a in group
      ]
      cut.extend(group)
    return groups

  found = BudgetCurve([problem(0, "a")], asking=GREEDY, budgets=(0,)).run_with(ask)
  assert found.metrics["budget unlimited/accuracy"] == 0 and found.metrics["budget unlimited/truncated"] == 1
  assert cut[0].completion.response == "a"


def test_what_cannot_be(engine, tokenizer):
  with pytest.raises(ValueError, match="samples=0"):
    BudgetCurve([problem(0, "a")], samples=0)
  with pytest.raises(ValueError, match=r"budgets=\(4, -1\)"):
    BudgetCurve([problem(0, "a")], budgets=(4, -1))
  with pytest.raises(ValueError, match="nothing would be right"):
    BudgetCurve([problem(0, "")])
  long = problem(7, "a", "x " * 400)
  with pytest.raises(ValueError, match="problem 'p7': its prompt leaves no room"):
    BudgetCurve([long], asking=GREEDY).run_with(GREEDY.of_engine(engine, tokenizer))


@pytest.mark.parametrize(
  "first, second, expected",
  [((56, 70), (48, 80), (0.0524, 0.3339)), ((9, 10), (3, 10), (0.1705, 0.8090)), ((5, 56), (0, 29), (-0.0381, 0.1926))],
)
def test_intervals_of_differences(first, second, expected):
  """Examples of Newcombe 1998, Table II."""
  found = difference(*(Estimate(right / of, wilson(right / of, of)) for right, of in (first, second)))
  assert found.value == first[0] / first[1] - second[0] / second[1]
  assert found.interval == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("right", "count"), [(0, 5), (5, 5), (3, 7), (98, 100), (1, 1)])
def test_intervals_of_single_answers_are_wilsons(right, count):
  expected = scipy.stats.binomtest(right, count).proportion_ci(0.95, method="wilson")
  found = clustered([[1.0]] * right + [[0.0]] * (count - right))
  assert found.value == right / count
  assert found.interval == pytest.approx((expected.low, expected.high), abs=1e-12)
  assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_of_groups():
  # Four answers that are always equal say no more than one: 6/5 6 2^2 / 24^2 against 1/4 / 23.
  alike = clustered([[1, 1, 1, 1]] * 3 + [[0, 0, 0, 0]] * 3)
  assert alike == (0.5, pytest.approx(tuple(wilson(0.5, 5 * 24 / 23))))
  spread = clustered([[1, 0, 1, 0]] * 6)  # and no more than so many answers
  assert spread.interval == pytest.approx(tuple(wilson(0.5, 24)))
  assert clustered([[1, 1, 1]] * 4).interval == pytest.approx(tuple(wilson(1, 4)))
  assert clustered([[1, 0, 1]]).interval == pytest.approx(tuple(wilson(2 / 3, 1)))
  # Groups of 1 and 3: the variance by hand. Mean 3/4; residuals 1/4 and 2 - 9/4 = -1/4; 2 (1/16 + 1/16) / 16.
  variance, alone = 2 * (1 / 16 + 1 / 16) / 16, 3 / 16 / 3
  assert variance < alone
  assert clustered([[1], [1, 1, 0]]).interval == pytest.approx(tuple(wilson(3 / 4, 4)))
  # Mean 1/2; residuals 1/2 and 1 1/2 ... of [1], [0, 0, 0], [1, 1]: 1/2, -3/2, 1; variance 3/2 (1/4 + 9/4 + 1) / 36.
  effective = 6 / (1.5 * 3.5 / 36 / (1 / 4 / 5))
  assert clustered([[1], [0, 0, 0], [1, 1]]).interval == pytest.approx(tuple(wilson(0.5, effective)))
  with pytest.raises(ValueError, match="no values"):
    clustered([[], []])


def test_intervals_hold_the_truth():
  """Of problems whose difficulties differ much: shares from a beta distribution, four answers each."""
  rng = np.random.default_rng(0)
  held = 0
  for _ in range(600):
    answers = rng.binomial(4, rng.beta(0.6, 0.2, size=40))
    low, high = clustered([[1.0] * n + [0.0] * (4 - n) for n in answers]).interval
    held += low <= 0.75 <= high
  assert 0.92 <= held / 600 <= 0.98


def test_the_chance_of_a_drop():
  """The permutation test of scipy, which goes through all signs."""
  rng = np.random.default_rng(1)
  for _ in range(20):
    differences = rng.integers(-3, 3, size=9)
    exact = scipy.stats.permutation_test(
      (differences,), np.sum, permutation_type="samples", alternative="less", n_resamples=np.inf
    )
    assert chance_of_drop(differences.tolist()) == pytest.approx(exact.pvalue, abs=1e-12)
  assert chance_of_drop([-1] * 9 + [1] * 2 + [0] * 50) == pytest.approx(
    scipy.stats.binomtest(2, 11, alternative="less").pvalue
  )
  assert chance_of_drop([]) == chance_of_drop([0, 0]) == chance_of_drop([1, 2]) == 1


def test_holm():
  assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert holm([0.6, 0.9]) == [1, 1] and holm([0.04]) == [0.04]
