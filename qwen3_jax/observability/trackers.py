"""Weights & Biases and MLflow beside metrics.jsonl: `config.trackers` names them, and only then are they imported.

A work directory is one run of a tracker, whatever the number of stages and starts; its id is in WORKDIR/trackers.json.
Metrics are named STAGE/NAME and counted in the stage's steps. Steps that a killed run had done beyond its checkpoint
are there twice, which neither tracker can undo. What else each needs to know, it takes from its own environment
variables: WANDB_MODE=offline, WANDB_PROJECT, MLFLOW_TRACKING_URI and so on.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
from absl import logging
from ml_collections import ConfigDict

from qwen3_jax.config_checks import ConfigError, flatten
from qwen3_jax.workdir import Workdir, read_json, write_json

_PROJECT = "qwen3_jax"  # unless the environment names another
_PENDING = 100  # batches of metrics on their way to MLflow, at most


class Tracker(Protocol):
  """What MetricWriter passes its scalars on to."""

  run: str  # the tracker's id of the run

  def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

  def close(self) -> None:
    """Waits until everything is delivered."""


def check_installed(config: ConfigDict) -> None:
  """Raises ConfigError for trackers that cannot be imported; says what to install."""
  problems = [
    f"trackers={tuple(config.trackers)!r}: {name!r} is not installed; pip install 'qwen3_jax[{name}]'"
    for name in config.trackers
    if importlib.util.find_spec(name) is None
  ]
  if problems:
    raise ConfigError(problems)


def open_trackers(config: ConfigDict, workdir: Workdir, stage: str) -> list[Tracker]:
  """The trackers of `config`, on the first process; on the others none.

  Raises ConfigError when one is not installed or does not start. Later failures are warned of once, and the run goes
  on without the tracker.
  """
  if jax.process_index() != 0 or not config.trackers:
    return []
  check_installed(config)
  workdir.path.mkdir(parents=True, exist_ok=True)
  return [_Guarded(name, config, workdir, stage) for name in config.trackers]


class _Guarded:
  """A tracker whose failures do not end the run."""

  def __init__(self, name: str, config: ConfigDict, workdir: Workdir, stage: str):
    path = workdir.path / "trackers.json"
    runs = read_json(path) if path.exists() else {}
    kinds: dict[str, Callable[..., Tracker]] = {"wandb": _WandB, "mlflow": _MLflow}
    try:
      tracker = kinds[name](config, workdir, stage, runs.get(name))
    except Exception as error:
      raise ConfigError([f"trackers={tuple(config.trackers)!r}: {name!r} does not start: {error}"]) from error
    self._tracker: Tracker | None = tracker
    self._name, self.run = name, tracker.run
    if runs.get(name) != self.run:
      write_json(path, runs | {name: self.run})

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    if self._tracker is not None:
      tracker = self._tracker
      self._try(lambda: tracker.write(step, scalars))

  def close(self) -> None:
    if self._tracker is not None:
      self._try(self._tracker.close)
    self._tracker = None

  def _try(self, call: Callable[[], None]) -> None:
    try:
      call()
    except Exception as error:
      logging.warning("tracker %s: %s; this stage goes on without it", self._name, error)
      self._tracker = None


class _WandB:
  """One run of Weights & Biases; docs.wandb.ai/ref/python/init, "resume"."""

  def __init__(self, config: ConfigDict, workdir: Workdir, stage: str, run: str | None):
    import wandb

    self._stage = stage
    run = run or secrets.token_hex(4)
    # W&B names a start's folder by the second, and would write over that of a stage which ended within it.
    while any(workdir.path.glob(f"wandb/*run-{time.strftime('%Y%m%d_%H%M%S')}-{run}")):
      time.sleep(0.05)
    self._run = wandb.init(
      project=os.environ.get("WANDB_PROJECT", _PROJECT),
      name=config.name or None,
      id=run,
      resume="allow",
      dir=workdir.path,
      config=config.to_dict(),
      allow_val_change=True,  # between two starts
      settings=wandb.Settings(console="off", silent=True),
    )
    self.run = self._run.id
    # Every stage counts its own steps, and a resumed one goes back: W&B's single counter allows neither.
    self._run.define_metric(f"{stage}/step")
    self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    self._run.log({f"{self._stage}/step": step} | {f"{self._stage}/{name}": value for name, value in scalars.items()})

  def close(self) -> None:
    self._run.finish()


class _MLflow:
  """One run of MLflow, sent in the background; without MLFLOW_TRACKING_URI it is in WORKDIR/mlflow.db."""

  def __init__(self, config: ConfigDict, workdir: Workdir, stage: str, run: str | None):
    import logging as standard_logging

    from mlflow.tracking import MlflowClient

    standard_logging.getLogger("mlflow").setLevel(standard_logging.WARNING)  # else tells of the tables that it makes
    self._stage = stage
    self._pending: list[Any] = []
    self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir.path}/mlflow.db")
    self.run = self._resumed(run) or self._created(config, workdir)

  def _resumed(self, run: str | None) -> str | None:
    """The run if it is there: the address may have changed since."""
    from mlflow.exceptions import MlflowException

    if run is None:
      return None
    try:
      self._client.update_run(run, status="RUNNING")
    except MlflowException as error:
      if error.error_code == "RESOURCE_DOES_NOT_EXIST":
        return None
      raise
    return run

  def _created(self, config: ConfigDict, workdir: Workdir) -> str:
    from mlflow.entities import Param

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
    experiment = self._client.get_experiment_by_name(name)
    number = experiment.experiment_id if experiment else self._client.create_experiment(name)
    run = self._client.create_run(number, run_name=config.name or None, tags={"workdir": str(workdir)})
    params = [Param(_name(key), str(value)) for key, value in flatten(config).items()]
    for start in range(0, len(params), 100):  # no more are taken at a time
      self._client.log_batch(run.info.run_id, params=params[start : start + 100])
    return run.info.run_id

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(_name(f"{self._stage}/{name}"), float(value), now, step) for name, value in scalars.items()]
    self._pending.append(self._client.log_batch(self.run, metrics=metrics, synchronous=False))
    if len(self._pending) > _PENDING:
      self._pending.pop(0).wait()

  def close(self) -> None:
    for pending in self._pending:
      pending.wait()
    self._client.set_terminated(self.run)


def _name(name: str) -> str:
  """`name` as MLflow takes it."""
  return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:250]
