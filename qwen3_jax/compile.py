"""Compiles an experiment for TPUs that are not there and reports memory, network and speed:

  python -m qwen3_jax.compile --config=experiments/moe_235b.py:stage=s1 --topology=v5p:4x8x8 [--json=FILE]
  python -m qwen3_jax.compile --config=experiments/dense_8b.py --decode --topology=v6e:2x2

The program is the one that qwen3_jax.main trains with. Without `stage=` every stage of the pipeline is compiled; with
--decode, the rollout engine's decoding step, beside as large a cache as fits. Exits with 1 when one does not fit.
docs/tpu.md explains the report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict

from qwen3_jax.allocator import return_freed_memory
from qwen3_jax.compilation.selection import validate_selection
from qwen3_jax.compilation.topologies import Topology, TopologyError, parse_topology, prepare_environment
from qwen3_jax.config_checks import ConfigError
from qwen3_jax.config_loading import config_from_flags, define_config_flag, parse_flags

define_config_flag()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Generation and shape of a slice, e.g. v5p:4x8x8.", required=True)
_NUM_SLICES = flags.DEFINE_integer("num_slices", 1, "Slices joined by the data-centre network.", lower_bound=1)
_JSON = flags.DEFINE_string(
  "json", None, "Where the report is also written, as JSON. The report of a run shows WORKDIR/compile/*.json."
)
_SWEEP = flags.DEFINE_boolean("sweep", False, "Try meshes and remat policies; rank those that fit.")
_DECODE = flags.DEFINE_boolean("decode", False, "Compile decoding instead of training.")
_SLOTS = flags.DEFINE_integer("slots", 128, "With --decode: sequences at a time.", lower_bound=1)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 4096, "With --decode: tokens of a sequence.", lower_bound=1)
_CACHE_DTYPE = flags.DEFINE_enum("cache_dtype", "bfloat16", ["bfloat16", "int8"], "With --decode: of keys and values.")
_SWEEP_LIMIT = flags.DEFINE_integer("sweep_limit", 8, "Most candidates that a sweep compiles.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
  return_freed_memory()
  from qwen3_jax.compilation.compiler import CompilerError

  try:
    topology = parse_topology(_TOPOLOGY.value, _NUM_SLICES.value)
    prepare_environment()
    config = config_from_flags()
    if not (_SWEEP.value or _DECODE.value):
      validate_selection(config, topology.device_count)
    fits = (_decode if _DECODE.value else _sweep if _SWEEP.value else _report_stages)(config, topology)
  except (CompilerError, ConfigError, TopologyError) as error:
    sys.exit(f"error: {error}")
  sys.exit(0 if fits else 1)


def _report_stages(config: ConfigDict, topology: Topology) -> bool:
  """Compiles and prints the stages of the config; whether all fit."""
  from qwen3_jax.compilation.stages import stage_reports
  from qwen3_jax.compilation.tables import console, print_report

  out = console()
  reports = []
  for report in stage_reports(config, topology):
    if same_as := report.get("same_program_as"):
      out.print(f"\n[bold]{report['name']}[/bold]: the same program as {same_as}")
    else:
      print_report(report, out)
    reports.append(report)
  _write({"reports": reports} if len(reports) > 1 else reports[0])
  return all(report["fits"] for report in reports)


def _sweep(config: ConfigDict, topology: Topology) -> bool:
  """Compiles candidates and prints the ranking; whether any fits."""
  from qwen3_jax.compilation.sweep import print_ranking, sweep
  from qwen3_jax.compilation.tables import console

  out = console()
  results = sweep(config, topology, _SWEEP_LIMIT.value, out)
  print_ranking(results, out)
  _write({"candidates": results})
  return any(result["fits"] for result in results)


def _decode(config: ConfigDict, topology: Topology) -> bool:
  """Compiles and prints the decoding step; whether it fits."""
  from qwen3_jax.compilation.decoding import decode_report
  from qwen3_jax.compilation.tables import console, print_report
  from qwen3_jax.rollout.engine_settings import EngineSettings

  settings = EngineSettings(
    slots=_SLOTS.value,
    max_length=_MAX_LENGTH.value,
    cache="paged",
    cache_dtype=_CACHE_DTYPE.value,
    adjustments=False,
  )
  report = decode_report(config, topology, settings)
  print_report(report, console())
  _write(report)
  return report["fits"]


def _write(report: dict) -> None:
  if _JSON.value:
    Path(_JSON.value).write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
  app.run(main, flags_parser=parse_flags)
