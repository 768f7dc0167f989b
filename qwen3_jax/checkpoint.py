"""Checkpoints of a stage: orbax writes them in the background and atomically; each is verified when it is read.

A step's folder holds the items `parameters` (what `load_pretrained` reads), `training` (optimizer state, counters,
rng), `data` (the iterator's state) and `record` (shapes, fingerprints, metrics, checksums of these and of `data`).
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from qwen3_jax.fingerprint import fingerprints
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.orbax_noise import silence
from qwen3_jax.train_state import TrainState
from qwen3_jax.workdir import json_safe

PARAMETERS, TRAINING, DATA, RECORD = "parameters", "training", "data", "record"
_CHUNK_BYTES = 16 << 20  # of an array on disk: whoever reads a part reads little more
# Failures to read that say nothing about the files: as the system, and as tensorstore and XLA name them.
_NOT_DAMAGE = (MemoryError, PermissionError, TimeoutError, ConnectionError)
_NOT_DAMAGE_NUMBERS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ESTALE)
_NOT_DAMAGE_STATUS = re.compile(r"\b(RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED)\b")

_T = TypeVar("_T")


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read; the message says what to do."""


class _Damaged(Exception):
  """This step's folder cannot be trusted."""


@dataclasses.dataclass(frozen=True)
class Restored:
  step: int
  state: TrainState
  data_state: dict[str, Any]
  metrics: dict[str, Any]  # as given to `save`; a number that is not finite comes back as a string


class Checkpointer:
  """Saves and restores TrainStates in `directory`, one folder a step, of which the newest `keep` stay.

  With several processes, all make the same calls. Errors of a save in the background are raised by the next call of
  `save` or `wait`; after one, only `close` is left to do. What a killed save left behind is removed here.
  """

  def __init__(self, directory: str | Path, *, keep: int):
    self.directory = Path(directory).absolute()
    silence()
    options = ocp.CheckpointManagerOptions(
      preservation_policy=ocp.checkpoint_managers.LatestN(keep),
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
      # Created in the background, a folder that fails to be would keep the process from exiting for minutes.
      async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
    )
    handlers = {
      PARAMETERS: _tree_handler(),
      TRAINING: _tree_handler(),
      DATA: ocp.JsonCheckpointHandler(),
      RECORD: ocp.JsonCheckpointHandler(),
    }
    try:
      self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
    except OSError as error:
      raise CheckpointError(f"{self.directory}: cannot hold checkpoints: {_first_line(error)}") from error
    self._last_good = self.latest_step()
    self._saving: int | None = None
    self._failed = False

  def all_steps(self) -> list[int]:
    """Steps on disk, damaged ones included, in order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    return self._manager.latest_step()

  def save(
    self, step: int, state: TrainState, *, data_state: dict[str, Any], metrics: dict[str, float] | None = None
  ) -> None:
    """Starts writing; returns once the state's buffers may be overwritten.

    Args:
      step: names the checkpoint; not there yet.
      state: whole, on the devices.
      data_state: the iterator's state; JSON.
      metrics: JSON.

    Raises:
      CheckpointError: this save could not start, or the one before it failed (a full disk, for instance).
    """
    self.wait()
    record = {"shapes": _shapes(state), "fingerprints": fingerprints(state), "metrics": json_safe(metrics or {})}
    record[DATA] = _checksum(data_state)
    record["checksum"] = _checksum(record)
    if jax.default_backend() == "cpu":  # orbax writes from these very buffers, which the next step donates
      state = jax.device_put(state, jax.tree.map(lambda x: x.sharding, state), may_alias=False)
    parameters, training = _items(state)
    items = {
      PARAMETERS: _tree_save(parameters),
      TRAINING: _tree_save(training),
      DATA: ocp.args.JsonSave(data_state),
      RECORD: ocp.args.JsonSave(record),
    }
    self._saving = step
    try:
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
    """Waits for a save under way and releases what orbax holds. An error is only logged; `wait` raises it."""
    try:
      self._manager.close()
    except Exception as error:
      if not self._failed:
        logging.warning("checkpoints in %s: %s", self.directory, _first_line(error))

  def restore(self, abstract: TrainState) -> Restored | None:
    """The newest intact checkpoint, read straight into the shardings of `abstract`; None when there is none.

    Once an older one has been read, damaged checkpoints are renamed to `damaged-<step>`, with a warning each: the run
    will come to those steps again.

    Raises:
      CheckpointError: checkpoints exist but none can be read, or they hold another model than `abstract`, or reading
        failed in a way that may pass (memory, permission); nothing is renamed then.
    """
    steps = self.all_steps()
    damaged: dict[int, str] = {}
    for step in reversed(steps):
      try:
        restored = self._restore(step, abstract)
      except _Damaged as damage:
        damaged[step] = str(damage)
        continue
      if damaged:
        self._set_aside(damaged, step)
      return restored
    if steps:
      reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
      raise CheckpointError(
        f"{self.directory}: no checkpoint can be read ({reasons}); remove the stage's folder to start the stage anew"
      )
    return None

  def _restore(self, step: int, abstract: TrainState) -> Restored:
    folder, shapes = self.directory / str(step), _shapes(abstract)

    def read_json() -> tuple[dict[str, Any], Any]:
      args = ocp.args.Composite(**{RECORD: ocp.args.JsonRestore(), DATA: ocp.args.JsonRestore()})
      read = self._manager.restore(step, args=args)
      record = _checked(read[RECORD])
      if record[DATA] != _checksum(read[DATA]):
        raise _Damaged(f"{DATA} differs from what was saved")
      return record, read[DATA]

    def read_arrays() -> TrainState:
      parameters, training = _items(abstract)
      items = {PARAMETERS: _tree_restore(parameters), TRAINING: _tree_restore(training)}
      read = self._manager.restore(step, args=ocp.args.Composite(**items))
      return dataclasses.replace(read[TRAINING], params=read[PARAMETERS])

    record, data_state = _agreed(folder, read_json)
    _check_shapes(record["shapes"], shapes, folder)
    state = _agreed(folder, read_arrays)
    _check_fingerprints(list(shapes), fingerprints(state), record["fingerprints"])
    return Restored(step, state, data_state, record["metrics"])

  def _set_aside(self, damaged: dict[int, str], good: int) -> None:
    for step, reason in damaged.items():
      folder, aside = self.directory / str(step), self.directory / f"damaged-{step}"
      logging.warning("checkpoint %s is damaged: %s; it is now %s, using step %d", folder, reason, aside.name, good)
      if jax.process_index() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("damaged checkpoints set aside")
    self._manager.reload()
    self._last_good = good

  def _failure(self, error: Exception) -> CheckpointError:
    step, self._saving, self._failed = self._saving, None, True
    free = f"{shutil.disk_usage(self.directory).free / 2**20:.0f} MiB were free" if self.directory.exists() else "gone"
    kept = "none was saved before it" if self._last_good is None else f"the last good one is step {self._last_good}"
    if jax.process_index() == 0:
      for partial in self.directory.glob(f"{step}.orbax-checkpoint-tmp*"):
        shutil.rmtree(partial, ignore_errors=True)
    return CheckpointError(f"{self.directory}: checkpoint {step} was not saved, {kept} ({free}): {_first_line(error)}")


def restore_parameters(directory: str | Path, abstract: Parameters) -> Parameters:
  """The parameters alone, from the newest checkpoint in `directory` that has them intact.

  Raises CheckpointError when there is none, or when they are another model's.
  """
  silence()
  directory = Path(directory).absolute()
  steps = ocp.path.step.checkpoint_steps(directory) if directory.is_dir() else []
  for step in sorted(steps, reverse=True):
    folder = directory / str(step)
    try:
      return _read_parameters(folder, abstract)
    except _Damaged as damage:
      logging.warning("checkpoint %s is damaged: %s", folder, damage)
  raise CheckpointError(f"{directory}: holds no intact checkpoint")


def _read_parameters(folder: Path, abstract: Parameters) -> Parameters:
  wanted = _shapes(abstract, "params/")
  json_handler, tree_handler = ocp.JsonCheckpointHandler(), _tree_handler()
  record = _agreed(folder, lambda: _checked(json_handler.restore(folder / RECORD, args=ocp.args.JsonRestore())))
  prints = dict(zip(record["shapes"], record["fingerprints"], strict=True))
  saved = {name: shape for name, shape in record["shapes"].items() if name.startswith("params/")}
  _check_shapes(saved, wanted, folder)
  parameters = _agreed(folder, lambda: tree_handler.restore(folder / PARAMETERS, args=_tree_restore(abstract)))
  _check_fingerprints(list(wanted), fingerprints(parameters), [prints[name] for name in wanted])
  return parameters


def _agreed(folder: Path, read: Callable[[], _T]) -> _T:
  """What `read` returns; when it fails on one process, all raise: _Damaged, or CheckpointError if that may pass."""
  fine, damaged, may_pass = range(3)
  verdict, reason = fine, ""
  try:
    result = read()
  except _Damaged as damage:
    verdict, reason = damaged, str(damage)
  except Exception as error:
    verdict, reason = may_pass if _may_pass(error) else damaged, _first_line(error)
  if jax.process_count() > 1:
    verdicts = multihost_utils.process_allgather(np.array(verdict))
    if verdicts.max() > verdict:
      verdict, reason = int(verdicts.max()), f"process {int(np.argmax(verdicts))} could not read it"
  if verdict == may_pass:
    raise CheckpointError(f"{folder} could not be read, which does not mean that it is damaged: {reason}")
  if verdict == damaged:
    raise _Damaged(reason)
  return result


def _may_pass(error: BaseException) -> bool:
  """Whether another attempt may read the same files."""
  if isinstance(error, _NOT_DAMAGE) or (isinstance(error, OSError) and error.errno in _NOT_DAMAGE_NUMBERS):
    return True
  if _NOT_DAMAGE_STATUS.search(str(error)):
    return True
  return error.__cause__ is not None and _may_pass(error.__cause__)


def _tree_handler() -> ocp.PyTreeCheckpointHandler:
  return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False)  # the format that parameter_folder.py reads


def _tree_save(tree: Any) -> ocp.args.PyTreeSave:
  return ocp.args.PyTreeSave(tree, save_args=jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES), tree))


def _tree_restore(abstract: Any) -> Any:
  return ocp.args.PyTreeRestore(abstract, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract))


def _items(state: TrainState) -> tuple[Parameters, TrainState]:
  return state.params, dataclasses.replace(state, params={})


def _shapes(tree: Any, prefix: str = "") -> dict[str, list]:
  """Path of every array -> [dtype, shape]."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {
    prefix + jax.tree_util.keystr(path, simple=True, separator="/"): [str(x.dtype), list(x.shape)] for path, x in leaves
  }


def _checksum(value: Any) -> str:
  as_read = json.loads(json.dumps(value))  # keys are strings then, which matters to their order
  return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def _checked(record: Any) -> dict[str, Any]:
  if not isinstance(record, dict) or record.pop("checksum", None) != _checksum(record):
    raise _Damaged(f"{RECORD} differs from what was saved")
  return record


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


def _check_fingerprints(names: list[str], found: list[int], saved: list[int]) -> None:
  differing = [name for name, a, b in zip(names, found, saved, strict=True) if a != b]
  if differing:
    raise _Damaged(f"{len(differing)} arrays differ from what was saved, the first is {differing[0]}")


def _first_line(error: BaseException) -> str:
  """What went wrong first, in one line; of a long one the ends: tensorstore names file first and cause last."""
  while error.__cause__ is not None:
    error = error.__cause__
  text = next(iter(str(error).strip().splitlines()), "").split(" [tensorstore_spec=")[0]
  if len(text) > 400:
    text = f"{text[:150]} ... {text[-250:]}"
  return f"{type(error).__name__}: {text}" if text else type(error).__name__
