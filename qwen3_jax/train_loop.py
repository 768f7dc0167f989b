"""The only loop: step, log, evaluate, checkpoint, stop when asked, resume."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.batch import Batch
from qwen3_jax.checkpoint import Checkpointer, CheckpointError
from qwen3_jax.config import ROLLOUT_KINDS
from qwen3_jax.fingerprint import fingerprint_on_device
from qwen3_jax.huggingface import write_config
from qwen3_jax.metrics import MetricWriter, device_peak_flops
from qwen3_jax.observability import process_log
from qwen3_jax.observability.profiling import Profiler
from qwen3_jax.observability.step_times import StepTimes
from qwen3_jax.observability.time_record import TimeRecord
from qwen3_jax.observability.trackers import open_trackers
from qwen3_jax.placement import local_rows, to_devices
from qwen3_jax.preemption import Preempted, PreemptionNotice
from qwen3_jax.progress import Progress
from qwen3_jax.reporting.expert_choices import write_expert_choices
from qwen3_jax.sharding import batch_sharding, replicated
from qwen3_jax.stages.stage import Stage
from qwen3_jax.start import start_state, takes_start
from qwen3_jax.train_state import TrainState, next_stage_state, with_fresh_optimizer
from qwen3_jax.train_step import make_evaluation_step
from qwen3_jax.workdir import Workdir

STEPS_IN_FLIGHT = 2  # how far the host may run ahead of the devices


class NonFiniteError(RuntimeError):
  """Too many steps in a row had a loss or gradient that is not finite."""


def run_stage(
  stage: Stage,
  config: ConfigDict,
  workdir: Workdir,
  mesh: Mesh,
  previous: str | None,
  tokens_before: int,
  notice: PreemptionNotice,
  record: TimeRecord | None = None,
  profiler: Profiler | None = None,
  later: float = 0.0,
) -> None:
  """Runs `stage` to its end, from its newest checkpoint if it has one.

  Args:
    stage: what to run.
    config: the checked config; read here are name, seed, checkpoint, log_every, trackers and what is said of stalls.
    workdir: where everything is written.
    mesh: the devices.
    previous: the stage to start from when this one has no checkpoint yet; None initialises.
    tokens_before: tokens seen in the stages before.
    notice: asked after every step whether to stop.
    record: of the time of the whole run; None keeps one of this stage alone.
    profiler: traces steps of the stage; None traces none.
    later: cost of the stages that follow, in units of this one's, for the time that is left.

  Raises:
    Preempted: after SIGTERM, with the state saved.
    NonFiniteError: after more than `stage.max_skipped_steps` non-finite steps in a row.
  """
  if jax.process_index() == 0:  # makes every checkpoint of the stage one that load_pretrained reads
    workdir.stage(stage.name).mkdir(parents=True, exist_ok=True)
    write_config(workdir.stage(stage.name), stage.program.model, np.dtype(stage.program.model.param_dtype), {})
  checkpoints = Checkpointer(workdir.checkpoints(stage.name), keep=config.checkpoint.keep)
  try:
    with contextlib.ExitStack() as stack:
      record = record or stack.enter_context(TimeRecord(workdir))
      stack.enter_context(process_log.stage(stage.name))
      run = _Run(stage, config, workdir, mesh, checkpoints, tokens_before, record, profiler or Profiler(), later)
      with jax.set_mesh(mesh):
        run.train(_starting_state(stage, config, workdir, mesh, previous, checkpoints), notice)
  except BaseException:
    stage.batches.close()
    if jax.process_count() == 1:  # several would wait for each other, and one may be gone
      checkpoints.close()
    raise
  stage.batches.close()
  checkpoints.close()


def _starting_state(
  stage: Stage, config: ConfigDict, workdir: Workdir, mesh: Mesh, previous: str | None, checkpoints: Checkpointer
) -> TrainState:
  """The first that there is: this stage's newest checkpoint, the end of the stage before, a fresh initialisation."""
  abstract = stage.program.abstract_state(mesh)
  restored = checkpoints.restore(abstract)
  if restored is not None:
    stage.batches.set_state(restored.data_state)
    return restored.state
  if takes_start(config, stage.name, previous):
    return start_state(config, stage.name, stage.program, mesh)
  if previous is None:
    return stage.program.create_state(mesh, config.seed)
  with_previous = Checkpointer(workdir.checkpoints(previous), keep=config.checkpoint.keep)
  try:
    restored = with_previous.restore(abstract)
  finally:
    with_previous.close()
  if restored is None:
    raise CheckpointError(f"stage {stage.name!r} starts from {previous!r}, which has no checkpoint in {workdir}")
  state = next_stage_state(restored.state, config.seed)
  return state if stage.carries_optimizer else with_fresh_optimizer(state, stage.program.optimizer)


@dataclasses.dataclass
class _Pending:
  """A step that was dispatched and whose metrics have not been fetched."""

  step: int
  metrics: dict[str, Any]  # arrays; with the fingerprint of the batch's tokens where the step is logged
  of_batch: dict[str, float]  # what its source says of it

  def is_done(self) -> bool:
    return self.metrics["loss"].is_ready()


class _Run:
  def __init__(
    self,
    stage: Stage,
    config: ConfigDict,
    workdir: Workdir,
    mesh: Mesh,
    checkpoints: Checkpointer,
    tokens_before: int,
    record: TimeRecord,
    profiler: Profiler,
    later: float,
  ):
    self.stage, self.config, self.mesh, self.checkpoints = stage, config, mesh, checkpoints
    self.record, self.profiler, self.later = record, profiler, later
    self.input_kind = "rollouts" if config.stages[stage.name].kind in ROLLOUT_KINDS else "input"
    self.rows = local_rows(batch_sharding(mesh), stage.program.batch_shape)
    self.tokens_before = tokens_before
    self.workdir = workdir
    self.writer = MetricWriter(workdir, stage.name, open_trackers(config, workdir, stage.name))
    device = mesh.local_devices[0]
    peak = device_peak_flops(device)
    devices = 1 if device.platform == "cpu" else mesh.size  # virtual devices share one processor
    self.peak_flops = peak * devices if peak else None
    evaluation_step = make_evaluation_step(stage.program.model, stage.program.objective)
    self.evaluate_step: Any = jax.jit(evaluation_step, out_shardings=replicated(mesh))

  def train(self, state: TrainState, notice: PreemptionNotice) -> None:
    stage, config = self.stage, self.config
    step = int(state.step)
    self.writer.truncate_after(step)
    self.progress = Progress(
      stage.name,
      stage.steps,
      step,
      stall_seconds=config.stall_seconds,
      abort_after_seconds=config.abort_after_seconds,
      later=self.later,
      workdir=self.workdir,
    )
    with (
      self.writer,
      self.record.stage(stage.name, step),
      self.progress,
      self.profiler.stage(self.workdir.tensorboard(stage.name), self.progress.say),
    ):
      if step < stage.steps:
        with self._phase("compiling", "compile"):
          compiled = stage.program.lower(self.mesh).compile()
      learning_rates = np.asarray(jax.vmap(stage.schedule)(np.arange(stage.steps)), np.float32)
      if step == 0:
        self.writer.write(0, stage.facts)
        # Judged by what it writes, or begun with another run's parameters: the gain counts from here.
        if not stage.validation or config.start:
          self._evaluate(state, 0)
      if step < stage.steps:
        with self.record.spend("host"):
          self._steps(state, compiled, learning_rates, notice)
      with self._phase("finishing the last checkpoint", "checkpoint"):
        self.checkpoints.wait()

  def _steps(self, state: TrainState, compiled: Any, learning_rates: np.ndarray, notice: PreemptionNotice) -> None:
    """From the step of `state` to the last one."""
    stage, step = self.stage, int(state.step)
    in_flight: collections.deque[_Pending] = collections.deque()
    self.times = StepTimes(self.record, step)
    while step < stage.steps:
      with self.record.spend("other"):
        self.profiler.before(step + 1, state)
      with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
        batch = self._next_batch(state)
        state, metrics = compiled(state, stage.complete(batch), learning_rates[step], *stage.constants)
      step += 1
      if self._is_logged(step):
        metrics["data_checksum"] = fingerprint_on_device(batch.tokens)
      in_flight.append(_Pending(step, metrics, stage.batches.metrics()))
      with self.record.spend("other"):
        self.profiler.after(step, metrics)
      last, stop = step == stage.steps, notice.requested()
      evaluate = last or step % stage.evaluate_every == 0
      save = last or stop or step % self.config.checkpoint.every == 0
      if evaluate or save:  # rare; what was dispatched is logged before what follows it
        with self.record.spend("device"):
          jax.block_until_ready(metrics)
      while len(in_flight) > (0 if evaluate or save else STEPS_IN_FLIGHT):
        self._finish(in_flight.popleft(), in_flight)
      validation = self._evaluate(state, step) if evaluate else {}
      if save:
        self._save(step, state, validation)
      if stop and not last:
        with self.record.spend("checkpoint"):
          self.checkpoints.wait()
        raise Preempted(f"stage {stage.name!r} stopped at step {step} of {stage.steps} and saved its state")

  @contextlib.contextmanager
  def _phase(self, name: str, kind: str) -> Iterator[None]:
    """Something between steps: what is said of it, and what its time counts as."""
    with self.progress.phase(name), self.record.spend(kind):
      yield

  def _next_batch(self, state: TrainState) -> Batch:
    """The next batch on the devices; its time is what training waits for data."""
    with self.record.spend(self.input_kind):
      return self._to_devices(self.stage.batches.next_batch(state))

  def _save(self, step: int, state: TrainState, validation: dict[str, float]) -> None:
    with self._phase("saving", "checkpoint"):
      with self.record.spend(self.input_kind):  # may wait for rollouts under way
        data_state = self.stage.batches.get_state()
      self.checkpoints.save(step, state, data_state=data_state, metrics=validation)

  def _to_devices(self, local: Batch) -> Batch:
    return to_devices(local, self.rows, batch_sharding(self.mesh), self.stage.program.batch_shape)

  def _is_logged(self, step: int) -> bool:
    return step % self.config.log_every == 0 or step == self.stage.steps

  def _finish(self, pending: _Pending, in_flight: Iterable[_Pending]) -> None:
    """Waits for a step; logs it if it is one to log. `in_flight` are those after it, which may be done as well."""
    stage, step = self.stage, pending.step
    with self.record.spend("device"):
      jax.block_until_ready(pending.metrics)
    self.record.step_done(step)
    if not self._is_logged(step):
      self.progress.update(step)
      return
    fetched = jax.device_get(pending.metrics)
    checksum = int(fetched.pop("data_checksum"))
    metrics = {name: float(value) for name, value in fetched.items()} | pending.of_batch
    self.times.look(step + sum(later.is_done() for later in in_flight))
    seconds = self.times.seconds
    speed = stage.program.tokens_per_step / seconds
    mfu = stage.program.flops_per_step / seconds / self.peak_flops if self.peak_flops else float("nan")
    metrics |= {
      "tokens_seen": self.tokens_before + step * stage.program.tokens_per_step,
      "tokens_per_second": speed,
      "step_seconds": seconds,
      "data_wait_seconds": self.times.data_wait,
      "host_seconds": self.times.host,
      "device_seconds": self.times.device,
      "mfu": mfu,
      "data_checksum": checksum,
    }
    self.writer.write(step, metrics)
    self.progress.update(step, loss=metrics["loss"], tokens_per_second=speed, mfu=mfu)
    if metrics["skipped_steps"] > stage.max_skipped_steps:
      self.checkpoints.wait()
      raise NonFiniteError(
        f"stage {stage.name!r}, step {step}: loss or gradient was not finite in {int(metrics['skipped_steps'])} steps"
        f" in a row (max_skipped_steps={stage.max_skipped_steps}); the parameters are those before them"
      )

  def _evaluate(self, state: TrainState, step: int) -> dict[str, float]:
    """Validation loss per domain, and what the stage makes of the model's writing."""
    results: dict[str, float] = {}
    losses = []
    choices: dict[str, np.ndarray] = {}  # of experts, by domain
    with self._phase("evaluating", "evaluation"):
      for domain, batches in self.stage.validation.items():
        outputs = [self.evaluate_step(state.params, self._to_devices(batch)) for batch in batches]
        weight = sum(float(output.weight) for output in outputs)
        for name in outputs[0].metrics:
          results[f"validation/{domain}/{name}"] = sum(float(o.metrics[name]) for o in outputs) / max(weight, 1e-8)
        losses.append(results[f"validation/{domain}/loss"])
        if outputs[0].router is not None:
          choices[domain] = np.sum([np.asarray(output.router.slots, np.float64) for output in outputs], axis=0)
      if losses:
        results["validation/loss"] = float(np.mean(losses))
      if choices:
        of_experts = write_expert_choices(self.workdir.stage(self.stage.name), step, choices)
        results |= {f"validation/{name}": value for name, value in of_experts.items()}
      found, samples = self.stage.assess(state.params)
      results |= {f"validation/{name}": value for name, value in found.items()}
      if results:
        self.writer.write(step, results)
      for sample in samples:
        self.writer.write_sample(step, sample.prompt, sample.text)
    if found:
      shown = ", ".join(f"{name} {value:.3f}" for name, value in found.items() if "/" not in name)
      self.progress.say(f"after step {step}: {shown}")
    if losses:
      self.progress.say(f"validation after step {step}: {self._compared_to_unigrams(results)}")
    return results

  def _compared_to_unigrams(self, results: dict[str, float]) -> str:
    facts = self.stage.facts
    parts = [
      f"{domain} {results[f'validation/{domain}/loss']:.3f} (unigram entropy {facts[f'unigram_entropy/{domain}']:.3f})"
      for domain in self.stage.validation
    ]
    return ", ".join(parts)
