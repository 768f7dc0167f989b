"""Runs an experiment: python -m qwen3_jax.main --config=experiments/miniature.py --workdir=workdir/miniature

Stages run in the order of config.pipeline. The same command continues a run that was stopped: finished stages are skipped,
the one under way resumes from its newest checkpoint.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import app, flags, logging
from ml_collections import ConfigDict

from qwen3_jax.config_checks import ConfigError, flatten, validate
from qwen3_jax.config_loading import config_from_flags, define_config_flag, parse_flags

if TYPE_CHECKING:
  from qwen3_jax.workdir import Workdir

define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and the report go.", required=True)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  config = config_from_flags()

  import jax

  from qwen3_jax.allocator import keep_freed_memory
  from qwen3_jax.checkpoint import CheckpointError
  from qwen3_jax.data.records import DataError
  from qwen3_jax.preemption import Preempted
  from qwen3_jax.train_loop import NonFiniteError
  from qwen3_jax.workdir import Workdir, WorkdirError

  logging.set_verbosity(logging.WARNING)
  keep_freed_memory()
  jax.config.update("jax_num_cpu_devices", config.cpu_devices)
  if os.environ.get("JAX_COMPILATION_CACHE_DIR") is None:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/qwen3_jax/xla"))
  try:
    validate(config, jax.device_count(), jax.process_count())
    workdir = Workdir(_WORKDIR.value)
    with workdir if jax.process_index() == 0 else contextlib.nullcontext():
      run_pipeline(config, workdir)
  except Preempted as notice:
    print(f"{notice}. The same command continues.")
  except (ConfigError, CheckpointError, DataError, NonFiniteError, WorkdirError) as error:
    sys.exit(f"error: {error}")


def run_pipeline(config: ConfigDict, workdir: Workdir) -> None:
  """Runs what is left of `config.pipeline` in `workdir` and writes the report after every stage."""
  import jax

  from qwen3_jax.data.corpora import prepare_corpora
  from qwen3_jax.report import write_report
  from qwen3_jax.sharding import make_mesh
  from qwen3_jax.stages import pretrain
  from qwen3_jax.train_loop import run_stage
  from qwen3_jax.workdir import environment, read_json, write_json

  first = jax.process_index() == 0
  if first:
    if workdir.config.exists():
      for line in _differences(ConfigDict(read_json(workdir.config)), config):
        logging.warning("%s: %s", workdir.config, line)
    write_json(workdir.config, config.to_dict())

  names = [config.stage] if config.stage else list(config.pipeline)
  left = [name for name in names if not workdir.is_done(name)]
  if left:
    if first:
      write_json(workdir.environment, environment())
    mesh = make_mesh(config.mesh.to_dict())
    tokenizer, corpora = prepare_corpora(config, workdir.path)
  for name in left:
    before = config.pipeline[: config.pipeline.index(name)]
    done = [stage for stage in before if workdir.is_done(stage)]
    if len(done) < len(before):
      logging.warning("stage %r runs without %s before it", name, ", ".join(sorted({*before} - {*done})))
    stage = pretrain.make_stage(config, name, corpora, tokenizer)
    tokens_before = sum(config.stages[stage].tokens for stage in done)
    run_stage(stage, config, workdir, mesh, done[-1] if done else None, tokens_before)
    if first:
      workdir.mark_done(name, stage.steps)
      write_report(workdir)
  if first:
    print(f"{config.name}: done with {', '.join(names)}. Report: {workdir.path / 'report.html'}")


def _differences(before: ConfigDict, now: ConfigDict) -> list[str]:
  """One line for each key that is not what it was when the work directory was last used."""
  old, new = ({key: json.dumps(value) for key, value in flatten(config).items()} for config in (before, now))
  changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
  return [f"{key} was {old.get(key, 'absent')}, is now {new.get(key, 'absent')}" for key in changed]


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
