"""ProblemEnvironment: one question, one answer, a verifier's reward."""

from __future__ import annotations

from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.registry import check_problem, is_immediate, verify
from qwen3_jax.rewards.verdict import Verdict
from qwen3_jax.rollout.environment import Action, Observation, StepResult

_FINISHED = ("stop", "stop_string")
_TAGS = ("<think>", "</think>")


class ProblemEnvironment:
  """Asks `problem.prompt`; the reward is `right` times the verifier's score, plus `format_reward` for good form.

  An answer that was cut short, or whose thinking was not closed, is not verified and gets 0. Info of the step: `score`,
  `reason` (why it is not 1), `problem` (its id), `well_formed`.

  Args:
    right: reward of a right answer.
    format_reward: of an answer that ended by itself with its thinking closed, right or wrong.
    require_thinking_closed: an answer whose response is empty or has a tag of thinking in it is malformed.
    seconds: the verifier may take.

  Raises ValueError for a problem that cannot be verified.

  Attributes:
    immediate: whether answers are verified in this process, see `Environment`.
  """

  def __init__(
    self,
    problem: Problem,
    *,
    right: float = 1.0,
    format_reward: float = 0.0,
    require_thinking_closed: bool = True,
    seconds: float = 10.0,
  ):
    check_problem(problem)
    self._problem = problem
    self._right = right
    self._format_reward = format_reward
    self._require_thinking_closed = require_thinking_closed
    self._seconds = seconds
    self.immediate = is_immediate(problem)

  def reset(self) -> Observation:
    return Observation([{"role": "user", "content": self._problem.prompt}])

  def step(self, action: Action) -> StepResult:
    malformed = self._malformed(action)
    if malformed:
      verdict = Verdict(0.0, malformed)
    else:
      verdict = verify(self._problem, action.response, seconds=self._seconds)
    reward = 0.0 if malformed else self._right * verdict.score + self._format_reward
    info = {
      "score": verdict.score,
      "reason": verdict.reason,
      "problem": self._problem.id,
      "well_formed": not malformed,
    }
    return StepResult(reward=reward, done=True, info=info)

  def _malformed(self, action: Action) -> str:
    """Why an answer is not verified, "" if it is."""
    if action.finish_reason not in _FINISHED:
      return f"the answer did not end by itself ({action.finish_reason})"
    if not self._require_thinking_closed:
      return ""
    if not action.response.strip():
      return "nothing follows the thinking" if action.thinking else "an empty response"
    tag = next((tag for tag in _TAGS if tag in action.response), None)
    return f"{tag} in the response" if tag else ""
