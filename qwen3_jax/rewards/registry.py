"""Verifiers by kind, and how they run: here where that is quick and safe, else in a process that can be killed."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import importlib
import os
from collections.abc import Sequence
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.final_answer import NoAnswer
from qwen3_jax.rewards.options import option
from qwen3_jax.rewards.pool import Pool
from qwen3_jax.rewards.verdict import Verdict

# Kind -> module. `check(problem)` raises ValueError for a spec that is wrong; `verify_here(problem, response)` is the
# verdict, or None where it could take long; then `verify_apart` gives it, in a child of the pool after `prepare()`.
KINDS = {
  "arithmetic": "qwen3_jax.rewards.arithmetic",
  "code": "qwen3_jax.rewards.code",
  "exact": "qwen3_jax.rewards.exact",
  "mathematics": "qwen3_jax.rewards.mathematics",
  "numeric": "qwen3_jax.rewards.numeric",
  "reasoning_gym": "qwen3_jax.rewards.task",
  "sets": "qwen3_jax.rewards.sets",
}
# Before the name of a module outside this package, in the place of a kind: likewise, but it needs only one of the two.
MODULE = "module:"
_SANDBOXED = {"code"}  # its own processes: `verify_apart` runs in a thread of this one
_IMMEDIATE = {"arithmetic", "exact", "numeric", "sets"}  # verified here, whatever the answer
_SECONDS = 10.0  # for an answer, where the spec does not say otherwise


def check_problem(problem: Problem) -> None:
  """Whether the problem can be verified. Raises ValueError, ImportError naming the extra to install."""
  kind = problem.verifier.get("kind", "")
  try:
    if not _is_known(kind):
      raise ValueError(f"verifier.kind={kind!r}: no such kind.{nearest.or_all(str(kind), KINDS)}")
    if kind not in KINDS:
      _check_module(kind)
    if not option(problem.verifier, "seconds", _SECONDS, (int, float)) > 0:
      raise ValueError(f"verifier.seconds={problem.verifier['seconds']!r}: expected more than 0")
    _module(kind).check(problem)
  except ValueError as error:
    raise ValueError(f"problem {problem.id!r}: {error}") from None


def is_immediate(problem: Problem) -> bool:
  """Whether any answer is verified in this process, in no time."""
  kind = problem.verifier["kind"]
  if kind.startswith(MODULE):
    return not hasattr(_module(kind), "verify_apart")
  return kind in _IMMEDIATE and "pattern" not in problem.verifier


def verify(problem: Problem, response: str, *, seconds: float = _SECONDS) -> Verdict:
  """Judges an answer. Never raises: what cannot be judged scores 0 with the reason. Any thread may call it.

  Args:
    response: what follows the thinking.
    seconds: an answer may take, unless the spec has `seconds`; what takes longer is killed.
  """
  return _here(problem, response) or _apart(problem, response, seconds, shared_pool())


def verify_all(
  problems: Sequence[Problem], responses: Sequence[str], *, workers: int | None = None, seconds: float = _SECONDS
) -> list[Verdict]:
  """`verify` of each pair, in their order, up to `workers` at a time (None: the processors of this machine).

  Raises ValueError if the lists are not equally long.
  """
  if len(problems) != len(responses):
    raise ValueError(f"{len(problems)} problems, but {len(responses)} responses")
  verdicts = [_here(problem, response) for problem, response in zip(problems, responses)]
  waiting = [number for number, verdict in enumerate(verdicts) if verdict is None]
  if waiting:
    pool = shared_pool() if workers is None else Pool(__name__, workers=workers)
    try:
      with concurrent.futures.ThreadPoolExecutor(workers or _processors()) as threads:
        judge = lambda number: _apart(problems[number], responses[number], seconds, pool)
        for number, verdict in zip(waiting, threads.map(judge, waiting)):
          verdicts[number] = verdict
    finally:
      if workers is not None:
        pool.close()
  return [verdict for verdict in verdicts if verdict is not None]


@functools.cache
def shared_pool() -> Pool:
  """The pool of this process: as many processes as processors, started when needed."""
  return Pool(__name__, workers=_processors())


def prepare(payload: dict[str, Any]) -> None:
  """For the pool: imports what the payload's kind needs."""
  prepare_kind = getattr(_module(payload["problem"]["verifier"]["kind"]), "prepare", None)
  if prepare_kind is not None:
    prepare_kind()


def judge(payload: dict[str, Any]) -> dict[str, Any]:
  """For the pool: the verdict as a dict."""
  problem = Problem(**payload["problem"])
  verdict = _guarded(_module(problem.verifier["kind"]).verify_apart, problem, payload["response"])
  return {"score": verdict.score, "reason": verdict.reason}


def _here(problem: Problem, response: str) -> Verdict | None:
  kind = problem.verifier.get("kind", "")
  if not _is_known(kind):
    return Verdict(0.0, f"no verifier of kind {kind!r}.{nearest.or_all(str(kind), KINDS)}")
  verdict = _guarded(_verify_here, problem, response)
  if verdict is None and not hasattr(_module(kind), "verify_apart"):
    return Verdict(0.0, f"{kind!r} gives no verdict")
  return verdict


def _verify_here(problem: Problem, response: str) -> Verdict | None:
  function = getattr(_module(problem.verifier["kind"]), "verify_here", None)
  return function(problem, response) if function is not None else None


def _apart(problem: Problem, response: str, seconds: float, pool: Pool) -> Verdict:
  kind = problem.verifier["kind"]
  if kind in _SANDBOXED:
    return _guarded(_module(kind).verify_apart, problem, response)
  try:
    reply = pool.run(
      {"problem": dataclasses.asdict(problem), "response": response}, float(problem.verifier.get("seconds", seconds))
    )
  except Exception as error:  # a spec that is no JSON, a machine that starts no process
    return Verdict(0.0, f"the verifier failed ({type(error).__name__}: {error})")
  return Verdict(0.0, reply["failed"]) if "failed" in reply else Verdict(reply["score"], reply["reason"])


def _guarded(function: Any, problem: Problem, response: str) -> Any:
  try:
    verdict = function(problem, response)
    if verdict is not None and not isinstance(verdict, Verdict):
      raise TypeError(f"returned {verdict!r}, expected a Verdict")
    return verdict
  except NoAnswer as error:
    return Verdict(0.0, str(error))
  except Exception as error:  # of any kind: answers are hostile, libraries not ready for them
    return Verdict(0.0, f"the verifier failed ({type(error).__name__}: {error})"[:500])


@functools.cache
def _module(kind: str) -> Any:
  return importlib.import_module(KINDS.get(kind) or kind.removeprefix(MODULE))


def _is_known(kind: Any) -> bool:
  return isinstance(kind, str) and (kind in KINDS or kind.startswith(MODULE))


def _check_module(kind: str) -> None:
  """Raises ValueError for a module that cannot be imported or lacks the functions."""
  try:
    module = _module(kind)
  except Exception as error:  # of any kind: it is not ours
    raise ValueError(
      f"verifier.kind={kind!r}: cannot be imported from the current folder or PYTHONPATH"
      f" ({type(error).__name__}: {error})"
    ) from error
  if not hasattr(module, "check") or not (hasattr(module, "verify_here") or hasattr(module, "verify_apart")):
    raise ValueError(f"verifier.kind={kind!r}: {module.__name__} must have check, and verify_here or verify_apart")


def _processors() -> int:
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
