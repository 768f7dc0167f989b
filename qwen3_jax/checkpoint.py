"""Checkpoints of a stage: orbax writes them in the background and atomically; each is verified when it is read.

A step's folder holds the items `parameters` (what `load_pretrained` reads), `training` (optimizer state, counters, rng),
`data` (the iterator's state) and `record` (shapes, fingerprints, metrics).
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from qwen3_jax.fingerprint import fingerprints
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.train_state import TrainState

PARAMETERS, TRAINING, DATA, RECORD = "parameters", "training", "data", "record"


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read; the message says what to do."""


class _Damaged(Exception):
  """This step's folder cannot be trusted."""


@dataclasses.dataclass(frozen=True)
class Restored:
  step: int
  state: TrainState
  data_state: dict[str, Any]
  metrics: dict[str, float]


class Checkpointer:
  """Saves and restores TrainStates in `directory`, one folder a step, of which the newest `keep` stay.

  Errors of a save in the background are raised by the next call of `save` or `wait`.
  """

  def __init__(self, directory: str | Path, *, keep: int):
    self.directory = Path(directory).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      create=True,
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
      enable_background_delete=False,
    )
    handlers = {
      PARAMETERS: ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
      TRAINING: ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False),
      DATA: ocp.JsonCheckpointHandler(),
      RECORD: ocp.JsonCheckpointHandler(),
    }
    self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
    self._last_good = self.latest_step()
    self._saving: int | None = None

  def all_steps(self) -> list[int]:
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(
    self, step: int, state: TrainState, *, data_state: dict[str, Any], metrics: dict[str, float] | None = None
  ) -> None:
    """Starts writing; returns once the state's buffers may be overwritten. Raises CheckpointError."""
    self.wait()
    record = {
      "shapes": _shapes(state),
      "fingerprints": [int(value) for value in np.asarray(fingerprints(state))],
      "metrics": metrics or {},
    }
    if jax.default_backend() == "cpu":
      state = jax.tree.map(jnp.copy, state)  # on a CPU, orbax would read the donated buffers themselves
    parameters, training = _items(state)
    items = {
      PARAMETERS: ocp.args.PyTreeSave(parameters),
      TRAINING: ocp.args.PyTreeSave(training),
      DATA: ocp.args.JsonSave(data_state),
      RECORD: ocp.args.JsonSave(record),
    }
    try:
      self._saving = step
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    except Exception as error:
      raise self._failure(error) from error

  def wait(self) -> None:
    """Returns when the last save is on disk. Raises CheckpointError if it failed."""
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
      self._manager.check_for_errors()
    except Exception as error:
      raise self._failure(error) from error
    self._last_good, self._saving = self._saving, None

  def close(self) -> None:
    """Waits for a save under way, without raising its error, and releases what orbax holds."""
    try:
      self._manager.close()
    except Exception as error:
      logging.warning("checkpoints in %s: %s", self.directory, _first_line(error))

  def restore(self, abstract: TrainState) -> Restored | None:
    """The newest intact checkpoint, read straight into the shardings of `abstract`; None when there is none.

    A damaged checkpoint is set aside with a warning and the one before it is tried.

    Raises:
      CheckpointError: checkpoints exist and all are damaged, or hold another model than `abstract`.
    """
    steps = self.all_steps()
    for step in reversed(steps):
      try:
        return self._restore(step, abstract)
      except _Damaged as damage:
        aside = self._set_aside(step)
        logging.warning("checkpoint %s is damaged (%s); moved to %s", self.directory / str(step), damage, aside.name)
    if steps:
      raise CheckpointError(
        f"{self.directory}: all checkpoints (steps {', '.join(map(str, steps))}) are damaged; delete the stage's folder"
        " to start it anew"
      )
    return None

  def _restore(self, step: int, abstract: TrainState) -> Restored:
    record = self._read(step, {RECORD: ocp.args.JsonRestore()})[RECORD]
    if not isinstance(record, dict) or not {"shapes", "fingerprints", "metrics"} <= set(record):
      raise _Damaged("its record is incomplete")
    _check_shapes(record["shapes"], _shapes(abstract), self.directory / str(step))
    parameters, training = _items(abstract)
    items = self._read(
      step, {PARAMETERS: _tree_restore(parameters), TRAINING: _tree_restore(training), DATA: ocp.args.JsonRestore()}
    )
    state = dataclasses.replace(items[TRAINING], params=items[PARAMETERS])
    found = [int(value) for value in np.asarray(fingerprints(state))]
    differing = [name for name, a, b in zip(_shapes(abstract), found, record["fingerprints"]) if a != b]
    if differing:
      raise _Damaged(f"{len(differing)} arrays differ from what was saved, first {differing[0]}")
    return Restored(step, state, items[DATA], record["metrics"])

  def _read(self, step: int, items: dict[str, Any]) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:
      raise _Damaged(_first_line(error)) from error

  def _set_aside(self, step: int) -> Path:
    folder = self.directory / str(step)
    aside = self.directory / f"damaged-{step}"
    if jax.process_index() == 0:
      shutil.rmtree(aside, ignore_errors=True)
      folder.rename(aside)
    self._manager.reload()
    return aside

  def _failure(self, error: Exception) -> CheckpointError:
    step, self._saving = self._saving, None
    free = shutil.disk_usage(self.directory).free / 2**20
    kept = "none was saved before" if self._last_good is None else f"the last good one is step {self._last_good}"
    return CheckpointError(
      f"{self.directory}: checkpoint {step} was not saved, {kept} ({free:.0f} MiB free): {_first_line(error)}"
    )


def restore_parameters(directory: str | Path, abstract: Parameters) -> Parameters:
  """The parameters alone, from the newest checkpoint in `directory` that has them intact.

  Raises CheckpointError when there is none, or when they are another model's.
  """
  directory = Path(directory).absolute()
  with ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
    for step in sorted(manager.all_steps(), reverse=True):
      folder = directory / str(step)
      try:
        record = ocp.JsonCheckpointHandler().restore(folder / RECORD, args=ocp.args.JsonRestore())
        prints = dict(zip(record["shapes"], record["fingerprints"]))
      except Exception as error:
        logging.warning("checkpoint %s is damaged (%s)", folder, _first_line(error))
        continue
      wanted = _shapes(abstract, "params/")
      saved = {name: shape for name, shape in record["shapes"].items() if name.startswith("params/")}
      _check_shapes(saved, wanted, folder)
      try:
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)
        parameters = handler.restore(folder / PARAMETERS, args=_tree_restore(abstract))
      except Exception as error:
        logging.warning("checkpoint %s is damaged (%s)", folder, _first_line(error))
        continue
      found = [int(value) for value in np.asarray(fingerprints(parameters))]
      if found == [prints[name] for name in wanted]:
        return parameters
      logging.warning("checkpoint %s is damaged (parameters differ from what was saved)", folder)
  raise CheckpointError(f"{directory}: holds no intact checkpoint")


def _items(state: TrainState) -> tuple[Parameters, TrainState]:
  return state.params, dataclasses.replace(state, params={})


def _tree_restore(abstract: Any) -> Any:
  return ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def _shapes(tree: Any, prefix: str = "") -> dict[str, list]:
  """Path of every array -> [dtype, shape]."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    prefix + jax.tree_util.keystr(path, simple=True, separator="/"): [str(x.dtype), list(x.shape)] for path, x in leaves
  }


def _check_shapes(saved: dict[str, list], wanted: dict[str, list], folder: Path) -> None:
  if saved == wanted:
    return
  different = [
    f"{name}: saved {saved.get(name, 'nothing')}, expected {wanted.get(name, 'nothing')}"
    for name in sorted(saved.keys() | wanted.keys())
    if saved.get(name) != wanted.get(name)
  ]
  more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
  raise CheckpointError(f"{folder} is of another model or optimizer: {'; '.join(different[:5])}{more}")


def _first_line(error: BaseException) -> str:
  text = str(error).strip().splitlines()
  return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
