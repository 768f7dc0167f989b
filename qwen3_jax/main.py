"""Runs an experiment: python -m qwen3_jax.main --config=experiments/miniature.py --workdir=workdir/miniature

Stages run in the order of config.pipeline. The same command continues a run that was stopped: finished stages are
skipped, the one under way resumes from its newest checkpoint. On a pod it runs once on every host (docs/tpu.md).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import ConfigDict

from qwen3_jax.config import stage_mesh, stage_names, stages_before
from qwen3_jax.config_checks import ConfigError, flatten, validate
from qwen3_jax.config_loading import config_from_flags, define_config_flag, parse_flags

if TYPE_CHECKING:
  from qwen3_jax.observability.profiling import Profiler
  from qwen3_jax.observability.time_record import TimeRecord
  from qwen3_jax.workdir import Workdir

define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the report go.", required=True)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "host:port of process 0, when JAX cannot detect it.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, when JAX cannot detect them.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0, when JAX cannot detect it.")
_HEARTBEAT = flags.DEFINE_integer("heartbeat_seconds", 30, "Silence after which a process counts as dead.", 5)
_STOPPED = flags.DEFINE_integer("stopped_exit_status", 0, "Of a run that was stopped and has more to do.", 0, 255)
_PROFILE = flags.DEFINE_string("profile_steps", "", "FIRST,LAST: a profiler trace of these steps, both included.")
_REPORT_SECONDS = 60  # between the reports of a run under way, at least
# What a user mends without reading a traceback: full disks, and places that cannot be written or read.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


@flags.validator("profile_steps")
def _are_steps(text: str) -> bool:
  if text:
    from qwen3_jax.observability.profiling import parse_steps

    try:
      parse_steps(text)
    except ValueError as error:
      raise flags.ValidationError(str(error)) from None
  return True


def main(argv: Sequence[str]) -> None:
  started = time.time()
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  config = config_from_flags()
  logging.set_verbosity(logging.WARNING)

  from qwen3_jax.workdir import Workdir

  workdir = Workdir(_WORKDIR.value)
  if _is_finished(config, workdir):  # found out without devices, which take long to start and may be elsewhere by now
    return

  import jax

  from qwen3_jax import distributed
  from qwen3_jax.allocator import keep_freed_memory
  from qwen3_jax.observability import process_log, stack_dumps
  from qwen3_jax.observability.profiling import Profiler, parse_steps
  from qwen3_jax.observability.time_record import TimeRecord
  from qwen3_jax.observability.trackers import check_installed
  from qwen3_jax.preemption import Preempted

  keep_freed_memory()
  jax.config.update("jax_num_cpu_devices", config.cpu_devices)
  if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/qwen3_jax/xla"))
  try:
    distributed.start(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value, heartbeat_seconds=_HEARTBEAT.value)
    validate(config, jax.device_count())
    check_installed(config)
    profiler = Profiler(parse_steps(_PROFILE.value) if _PROFILE.value else None)
    with (
      workdir if jax.process_index() == 0 else contextlib.nullcontext(),
      process_log.written(workdir),
      stack_dumps.on_signal(workdir),
      TimeRecord(workdir, started) as record,
    ):
      run_pipeline(config, workdir, record, profiler)
    distributed.stop()
  except Preempted as notice:
    if jax.process_index() == 0:
      print(f"{notice}. The same command continues.")
    distributed.stop()
    sys.exit(_STOPPED.value)
  except (Exception, KeyboardInterrupt) as error:
    explained = _explanation(error, config, workdir)
    if jax.distributed.is_initialized():
      distributed.leave(explained or error)
    if explained is None:
      raise
    sys.exit(f"error: {explained}")


def _explanation(error: BaseException, config: ConfigDict, workdir: Workdir) -> str | None:
  """What to tell a user who can mend it; None for an error that nobody foresaw."""
  from qwen3_jax.checkpoint import CheckpointError
  from qwen3_jax.data.records import DataError
  from qwen3_jax.distributed import StartError, lost_another
  from qwen3_jax.safetensors_io import WeightsError
  from qwen3_jax.train_loop import NonFiniteError
  from qwen3_jax.workdir import WorkdirError

  known = (ConfigError, CheckpointError, DataError, NonFiniteError, StartError, WeightsError, WorkdirError)
  if isinstance(error, known):
    return str(error)
  if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
    reason = f"{error.filename or workdir}: {error.strerror}"
  elif lost_another(error):
    reason = f"another process is gone: {str(error).splitlines()[0]}"
  else:
    return None
  return f"{reason}. The same command continues from {_newest_checkpoint(config, workdir)}."


def _newest_checkpoint(config: ConfigDict, workdir: Workdir) -> str:
  for name in reversed(config.pipeline):
    steps = [int(folder.name) for folder in workdir.checkpoints(name).glob("*") if folder.name.isdigit()]
    if steps:
      return f"step {max(steps)} of stage {name!r}"
  return "the start, as nothing was saved"


def _is_finished(config: ConfigDict, workdir: Workdir) -> bool:
  """Whether nothing is left to do; says so, and writes the report if the run was killed before it could."""
  from qwen3_jax.report import write_report
  from qwen3_jax.run_evaluations import left_to_measure
  from qwen3_jax.workdir import read_json

  names = stage_names(config)
  if not all(workdir.is_done(name) for name in names) or left_to_measure(config, names, workdir):
    return False
  if workdir.config.exists():
    _warn_of_differences(ConfigDict(read_json(workdir.config)), config, workdir)
  ended = max((workdir.stage(name) / "DONE").stat().st_mtime_ns for name in names)
  if not workdir.report.exists() or workdir.report.stat().st_mtime_ns < ended:
    write_report(workdir)
  _say_done(config, workdir)
  return True


def run_pipeline(config: ConfigDict, workdir: Workdir, record: TimeRecord, profiler: Profiler) -> None:
  """Runs what is left of `config.pipeline` in `workdir` and writes the report, on the way too where stages are long."""
  import jax

  from qwen3_jax.data.corpora import prepare_corpora
  from qwen3_jax.distributed import on_first_process
  from qwen3_jax.observability import process_log
  from qwen3_jax.observability.goodput import goodput, summary
  from qwen3_jax.preemption import Preempted, PreemptionNotice
  from qwen3_jax.report import write_report
  from qwen3_jax.run_evaluations import check_evaluations, run_evaluations
  from qwen3_jax.sharding import make_mesh
  from qwen3_jax.stages import kinds
  from qwen3_jax.stages.cost import later_share
  from qwen3_jax.start import check_start
  from qwen3_jax.train_loop import run_stage
  from qwen3_jax.workdir import environment, read_json, write_json

  first = jax.process_index() == 0
  if first:
    if workdir.config.exists():
      _warn_of_differences(ConfigDict(read_json(workdir.config)), config, workdir)
    write_json(workdir.config, config.to_dict())
    write_json(workdir.environment, environment())
  check_evaluations(config, stage_names(config), workdir)
  with record.spend("data"):
    tokenizer, corpora = prepare_corpora(config, workdir.path)
  done = on_first_process(lambda: [name for name in config.pipeline if workdir.is_done(name)])
  left = [name for name in stage_names(config) if name not in done]
  for name in left:
    kinds.check_files(config, name, tokenizer)
  check_start(config, left, done, tokenizer, workdir)
  with record.spend("evaluation"):
    run_evaluations(config, done, workdir)  # a kill may have come between a stage's end and them
  reported = time.monotonic()
  with PreemptionNotice() as notice:
    for name in left:
      before = stages_before(config, name)
      missing = [stage for stage in before if stage not in done]
      if missing:
        logging.warning("stage %r runs without %s before it", name, ", ".join(missing))
      ran = [stage for stage in before if stage in done]
      mesh = make_mesh(stage_mesh(config, name))
      previous = ran[-1] if ran else None
      with record.spend("data"):
        corpora |= kinds.written_corpora(config, name, tokenizer, workdir)
      stage = kinds.make_stage(config, name, corpora, tokenizer, mesh, workdir, previous)
      tokens_before = sum(kinds.trained_tokens(config.stages[stage]) for stage in ran)
      later = later_share(config, name, left[left.index(name) + 1 :])
      run_stage(stage, config, workdir, mesh, previous, tokens_before, notice, record, profiler, later)
      done.append(name)
      if first:
        workdir.mark_done(name, stage.steps)
      with record.spend("evaluation"):
        run_evaluations(config, [name], workdir)
      last = name == left[-1]
      stops = notice.requested() and not last
      if first and (stops or last or time.monotonic() - reported > _REPORT_SECONDS):
        with record.spend("other"):
          write_report(workdir)
        reported = time.monotonic()
      if stops:
        raise Preempted(f"stopped at the end of stage {name!r}")
  if first:
    record.flush()
    found = goodput(workdir)
    line = summary(found)
    print(line)
    process_log.note(line, seconds=found.seconds)
    _say_done(config, workdir)


def _say_done(config: ConfigDict, workdir: Workdir) -> None:
  print(f"{config.name}: done with {', '.join(stage_names(config))}. Report: {workdir.report}")
  answering = [name for name in stage_names(config) if config.stages[name].kind != "pretrain"]
  own = [name for name in answering if not config.stages[name].model]  # rather than a student
  if answering:
    print(f"Chat: python -m qwen3_jax.chat --checkpoint={workdir.stage((own or answering)[-1])}")


def _warn_of_differences(before: ConfigDict, now: ConfigDict, workdir: Workdir) -> None:
  """One line for each key that is not what it was when the work directory was last used."""
  old, new = ({key: json.dumps(value) for key, value in flatten(config).items()} for config in (before, now))
  for key in sorted(old.keys() | new.keys()):
    was, now_is = old.get(key, "absent"), new.get(key, "absent")
    if was != now_is:
      logging.warning("%s: %s was %s, is now %s", workdir.config, key, was, now_is)


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
