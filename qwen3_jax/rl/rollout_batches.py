"""RolloutBatches: the batch source of RL, which cuts batches of rollouts of the current policy into steps."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from qwen3_jax.batch import Batch
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.rl.collector import Collected
from qwen3_jax.rl.experience import load_batch, save_batch, take_rows
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.train_state import TrainState


class Collects(Protocol):
  """Batches of rollouts of a policy: `Collector`, `StudentCollector`."""

  order: ProblemOrder

  @property
  def rows(self) -> int:
    """Of a batch."""
    ...

  def collect(self, number: int, params: Parameters) -> Collected:
    """Batch `number`; the same for the same number, parameters and order."""


class Terms(Protocol):
  """What a batch of rollouts gets besides when its updates begin; has a state."""

  def begin(self, params: Parameters, batch: Batch, entropy: float, progress: float) -> tuple[Batch, dict[str, float]]:
    """The batch with more, and metrics. `entropy`: of the rollouts; `progress`: share of the stage that is done."""

  def get_state(self) -> dict[str, Any]:
    """JSON-able."""

  def set_state(self, state: dict[str, Any]) -> None: ...


class RolloutBatches:
  """Batches of one optimizer step each.

  With `staleness` 1, the next rollouts are collected in a thread while this batch is trained on, or with several
  processes before it is: from the parameters that this batch's training started from. Which parameters collect what
  does not depend on time, so a run that was stopped goes on with the same rollouts.

  Args:
    collector: of batches of rollouts.
    terms: what batches get besides.
    steps: optimizer steps of the stage.
    batch_size: sequences of a step.
    micro_batches: of a step; rows that learn from one teacher share them.
    epochs: times that a batch of rollouts is trained on.
    staleness: 0 or 1.
    rows: of a step's, those that this process reads.
    folder: where rollouts that a checkpoint needs are kept.
    keep: checkpoints that may still be returned to.
  """

  def __init__(
    self,
    collector: Collects,
    terms: Terms,
    *,
    steps: int,
    batch_size: int,
    micro_batches: int,
    epochs: int,
    staleness: int,
    rows: list[int],
    folder: Path,
    keep: int,
    seed: int,
  ):
    self._collector, self._terms = collector, terms
    self._steps, self._batch_size, self._micro_batches, self._staleness = steps, batch_size, micro_batches, staleness
    self._rows = np.asarray(rows)
    self._folder, self._keep, self._seed = folder, keep, seed
    self._per_epoch = collector.rows // batch_size
    self._steps_each = self._per_epoch * epochs  # of a batch of rollouts
    self._number = -1  # of the batch of rollouts that is trained on
    self._step = 0  # next of its optimizer steps
    self._batch: Batch | None = None
    self._metrics: dict[str, float] = {}
    self._next: Future[Collected] | None = None
    self._thread = ThreadPoolExecutor(1, "rollout")
    self._saved: list[int] = []  # numbers of batches at the last saves

  def next_batch(self, state: TrainState) -> Batch:
    if self._batch is None or self._step == self._steps_each:
      self._begin(state.params)
    assert self._batch is not None
    epoch, part = divmod(self._step, self._per_epoch)
    order = np.random.default_rng((self._seed, self._number, epoch)).permutation(len(self._batch.tokens))
    rows = order[part * self._batch_size : (part + 1) * self._batch_size]
    self._step += 1
    if self._batch.teachers is not None:  # micro-batch i has rows i, i + n, ...
      by_teacher = rows[np.argsort(self._batch.teachers.choice[rows, 0], kind="stable")]
      rows = by_teacher.reshape(self._micro_batches, -1).T.ravel()
    return take_rows(self._batch, rows[self._rows])

  def metrics(self) -> dict[str, float]:
    """Of the rollouts that the last batch is from."""
    return self._metrics

  def _begin(self, params: Parameters) -> None:
    """Takes the next batch of rollouts."""
    self._number += 1
    self._step = 0
    collected = self._collector.collect(self._number, params) if self._next is None else self._next.result()
    self._next = None
    after = (self._number + 1) * self._steps_each  # steps once this batch is done
    if self._staleness and after < self._steps:
      self._next = self._collect_next(params)
    progress = self._number * self._steps_each / max(self._steps, 1)
    self._batch, of_terms = self._terms.begin(params, collected.batch, collected.entropy, progress)
    self._metrics = {f"rollout/{name}": value for name, value in collected.metrics.items()} | {
      "rollout/number": float(self._number),
      "rollout/staleness": float(min(self._staleness, self._number)),
      **of_terms,
    }

  def _collect_next(self, params: Parameters) -> Future[Collected]:
    if jax.process_count() > 1:  # two threads would start programs in another order on every process
      return _ended(self._collector.collect(self._number + 1, params))
    # The train step takes its state's arrays: the thread needs its own.
    copies = jax.tree.map(jnp.copy, params)
    return self._thread.submit(self._collector.collect, self._number + 1, copies)

  # Checkpoints

  def get_state(self) -> dict[str, Any]:
    """Waits for the rollouts under way, and keeps on disk what the state does not hold."""
    pending = None if self._next is None else self._next.result()
    unfinished = self._batch is not None and self._step < self._steps_each
    if jax.process_index() == 0:
      if unfinished:
        assert self._batch is not None
        save_batch(self._file(self._number, "current"), self._batch)
      if pending is not None:
        save_batch(self._file(self._number + 1, "next"), pending.batch)
      self._saved = [*self._saved, self._number][-self._keep - 1 :]
      self._drop_before(self._saved[0])
    return {
      "number": self._number,
      "step": self._step if unfinished else self._steps_each,
      "metrics": self._metrics,
      "terms": self._terms.get_state(),
      "order": self._collector.order.get_state(),
      "next": None if pending is None else pending.metrics,
    }

  def set_state(self, state: dict[str, Any]) -> None:
    self._number, self._step, self._metrics = state["number"], state["step"], state["metrics"]
    self._terms.set_state(state["terms"])
    self._collector.order.set_state(state["order"])
    self._batch = load_batch(self._file(self._number, "current")) if self._step < self._steps_each else None
    self._next = None
    if state["next"] is not None:
      self._next = _ended(Collected(load_batch(self._file(self._number + 1, "next")), state["next"]))

  def _file(self, number: int, kind: str) -> Path:
    return self._folder / f"{number:08d}.{kind}.npz"

  def _drop_before(self, number: int) -> None:
    for file in self._folder.glob("*.npz"):
      if int(file.name.partition(".")[0]) < number:
        file.unlink(missing_ok=True)

  def close(self) -> None:
    self._thread.shutdown(wait=False, cancel_futures=True)


def _ended(collected: Collected) -> Future[Collected]:
  future: Future[Collected] = Future()
  future.set_result(collected)
  return future
