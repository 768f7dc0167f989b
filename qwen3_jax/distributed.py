"""Several processes as one run: how they find each other, wait for the first, and end together when one fails."""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import glob
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
from jax._src.distributed import global_state as _state  # JAX has no public name for the store; orbax takes it so, too

_T = TypeVar("_T")
_FAILURE = "qwen3_jax/failure"
_JOIN_SECONDS = 300
_FAREWELL_SECONDS = 3.0  # process 0 holds the store: it leaves once the others have read why
# What gloo and JAX's coordination service say. On a TPU collectives hang, and JAX's heartbeats end the process.
_LOST = re.compile(r"Gloo .* failed|[Cc]oordination service|Socket closed|heartbeat")
_CONTINUES = ". The same command continues from the last checkpoint."
_HOUR_MS = 3_600_000
_PART = 1 << 20  # characters: messages to the store are of a few megabytes at most
_KEPT = 16  # results that others may still have to read
_calls = itertools.count()
_alone = contextvars.ContextVar("alone", default=False)
_leaving = threading.Event()


class StartError(RuntimeError):
  """The processes could not be joined; the message says why."""


def start(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = 30,
) -> None:
  """Joins this process to the others of its run. Call it before JAX looks for devices.

  What is not given comes from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, and otherwise from what
  JAX detects: Slurm, Open MPI, the metadata of a TPU pod. Where nothing speaks of several processes, nothing starts.

  Args:
    coordinator_address: host:port of process 0; the port is free there.
    num_processes: how many there are.
    process_id: which of them this is, 0 to num_processes - 1.
    heartbeat_seconds: a process that was not heard of for so long counts as dead, and the others end.

  Raises:
    StartError: contradictory arguments, or processes that did not come within five minutes.
  """
  coordinator_address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
  num_processes = _integer("JAX_NUM_PROCESSES") if num_processes is None else num_processes
  process_id = _integer("JAX_PROCESS_ID") if process_id is None else process_id
  given = {"coordinator_address": coordinator_address, "num_processes": num_processes, "process_id": process_id}
  if num_processes == 1 or (set(given.values()) == {None} and not _cluster()):
    return
  if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
    raise StartError(f"process_id={process_id}: expected 0 to num_processes - 1 = {num_processes - 1}")
  if coordinator_address is not None and ":" not in coordinator_address:
    raise StartError(f"coordinator_address={coordinator_address!r}: expected host:port")
  if not _cluster() and (missing := [name for name, value in given.items() if value is None]):
    raise StartError(f"{', '.join(missing)}: not given, and JAX detects no cluster that would tell")
  joining = f"joining the other processes ({_written(given)})"
  _explain_abort(f"{joining}: not all came within {_JOIN_SECONDS} s")
  try:
    jax.distributed.initialize(
      coordinator_address,
      num_processes,
      process_id,
      cluster_detection_method="deactivate" if None not in given.values() else None,
      initialization_timeout=_JOIN_SECONDS,
      heartbeat_timeout_seconds=heartbeat_seconds,
    )
  except (RuntimeError, ValueError) as error:
    if set(given.values()) == {None} and isinstance(error, ValueError):
      _restore_abort()
      return  # TPU chips, and nobody who knows of other machines
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    raise StartError(f"{joining}: {first}") from error
  if _state.num_processes == 1:
    _restore_abort()
    return
  _explain_abort(
    f"process {_state.process_id} was stopped by JAX; the lines above say why. Most likely another process ended or was"
    f" not heard of for {heartbeat_seconds} s{_CONTINUES}"
  )
  _watcher.start()


def stop() -> None:
  """The orderly end, which every process reaches: no failure is looked out for after it."""
  if _watcher.is_alive():
    if _state.process_id == 0:
      with contextlib.suppress(jax.errors.JaxRuntimeError):  # a failure came first, and ends this process, too
        _store().key_value_set(_FAILURE, "")
    _watcher.join()  # a thread that waits in C++ would crash the end of the interpreter
    _restore_abort()


def together() -> bool:
  """Whether several processes make this call, rather than one alone within `on_first_process`."""
  return jax.process_count() > 1 and not _alone.get()


def on_first_process(work: Callable[[], _T]) -> _T:
  """What `work()`, called on process 0 alone, returns: JSON, on every process.

  The others wait for as long as process 0 lives; all processes make the same calls in the same order. An error is
  raised on process 0 and ends the others through `leave`. In `work` only this process's devices can be used.
  """
  if not together():
    return work()
  number = next(_calls)
  key = f"qwen3_jax/first/{number}"
  if jax.process_index():
    text = "".join(_get(f"{key}/{part}") for part in range(int(_get(f"{key}/parts"))))
    _store().key_value_set(f"{key}/read/{jax.process_index()}", "")
    return json.loads(text)
  token = _alone.set(True)
  try:
    result = work()
  finally:
    _alone.reset(token)
  text = json.dumps(result)
  parts = [text[start : start + _PART] for start in range(0, len(text), _PART)]
  for part, piece in enumerate(parts):
    _store().key_value_set(f"{key}/{part}", piece)
  _store().key_value_set(f"{key}/parts", str(len(parts)))
  if number >= _KEPT:
    _forget(f"qwen3_jax/first/{number - _KEPT}")
  return result


def _forget(key: str) -> None:
  """Takes a result out of the store, which lives as long as the run, once all have read it."""
  for process in range(1, jax.process_count()):
    _get(f"{key}/read/{process}")
  _store().key_value_delete(key)


def lost_another(error: BaseException) -> bool:
  """Whether `error`, raised by JAX, says that another process went away rather than that something failed here."""
  return isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)) is not None


def leave(error: BaseException | str) -> NoReturn:
  """Ends this process with exit status 1 and tells the others, which end too.

  Nothing is waited for: another process may be dead, and whatever closes in an orderly way would wait for it.

  Args:
    error: text for the user, or an exception that nobody foresaw, of which the traceback is shown.
  """
  _leaving.set()
  if isinstance(error, BaseException):
    traceback.print_exception(error)
    error = f"{type(error).__name__}: {error}"
  else:
    print(f"error: {error}", file=sys.stderr)
  first_line = next(iter(error.splitlines()), "")
  with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process was first, or the store is gone
    _store().key_value_set(_FAILURE, f"process {_state.process_id} failed: {first_line}")
  _exit()


def _watch() -> None:
  """Ends this process when another fails: the main thread may hang in a collective that the other never joins."""
  try:
    failure = _get(_FAILURE)
  except jax.errors.JaxRuntimeError:  # closed with the process that holds it
    failure = f"process 0 is gone{_CONTINUES}"
  if failure and not _leaving.is_set():
    print(f"error: {failure}", file=sys.stderr)
    _exit()


_watcher = threading.Thread(target=_watch, name="failures of other processes", daemon=True)


def _get(key: str) -> str:
  """Waits until a process has set `key`."""
  while True:
    try:
      return _store().blocking_key_value_get(key, _HOUR_MS)
    except jax.errors.JaxRuntimeError as error:
      if "DEADLINE_EXCEEDED" not in str(error):
        raise


def _exit() -> NoReturn:
  sys.stdout.flush()
  sys.stderr.flush()
  if _state.process_id == 0 and _state.num_processes > 1:
    time.sleep(_FAREWELL_SECONDS)
  os._exit(1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
  os.write(2, _abort_message)
  os._exit(1)


_abort_message = b""


def _explain_abort(message: str) -> None:
  """JAX aborts, out of C++, when it misses another process: this becomes the last line, and no core file is left."""
  global _abort_message
  _abort_message = f"error: {message}\n".encode()
  ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


def _restore_abort() -> None:
  ctypes.CDLL(None).signal(signal.SIGABRT, None)


def _store() -> Any:
  return _state.client


def _integer(variable: str) -> int | None:
  text = os.environ.get(variable, "")
  if text and not text.isdigit():
    raise StartError(f"{variable}={text!r}: expected a number")
  return int(text) if text else None


def _cluster() -> bool:
  """Whether JAX will find several processes by itself. It would take an interactive shell of Slurm for a cluster."""
  environment = os.environ
  if "SLURM_PROCID" in environment and int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
    return True
  if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
    return True
  return _on_tpu()


def _on_tpu() -> bool:
  """Whether this machine has TPU chips (v2 to v4, then later ones) that JAX may use; it then asks Google's metadata."""
  platforms = os.environ.get("JAX_PLATFORMS", "")
  return (not platforms or "tpu" in platforms) and bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def _written(given: dict[str, Any]) -> str:
  return ", ".join(f"{name}={value}" for name, value in given.items() if value is not None) or "as JAX detects them"
