"""Query selection for RL on the miniature: problems chosen by pass rate beside as many at random.

  python benchmarks/query_selection.py --workdir=DIR [--seeds=0,1,2] [--json=FILE]

Each seed: a cold start on tracking cups through 1 to 8 swaps (experiments/miniature_reasoning.py), pass rates of fresh
problems and a choice among them (qwen3_jax/select_queries.py), then GRPO from the same checkpoint on either set, for
equally many steps. Sub-domains are the numbers of swaps. Of the fresh problems most have 16, from which there is
nothing to learn but to guess. Held-out problems, as many of each number from 1 to 8, are in neither set, and the same
before and after. Pass rates of the sets are those they were chosen by, and anew with other answers: the former are
biased, as the lowest of noisy numbers are. What is done in DIR is not done again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from qwen3_jax.curation.queries import candidates_of, read_used
from qwen3_jax.problems.records import read_problems, write_problems
from qwen3_jax.problems.sources import open_problems
from qwen3_jax.workdir import Workdir, read_json, read_json_lines

sys.path.insert(0, str(Path(__file__).parents[1]))  # experiments/
from experiments.miniature_reasoning import TASKS, TRACES, traces_source

ROOT = Path(__file__).parents[1]
EXPERIMENT = "experiments/miniature_reasoning.py:task=mixed_cups"
TASK = TASKS["mixed_cups"]._replace(hasty=0.5)  # so that whoever thinks step by step is right
SOURCE = f"--config.data.corpora.traces.source={traces_source(TASK)}"
# Seven of ten are beyond it: worked out step by step, an answer to them is cut off.
CANDIDATES = ("cups:700:5:16-16:numbered", "cups:300:6:1-8:numbered")
HELD_OUT = "cups:288:9:1-8:numbered"
CHOSEN, ANSWERS = 96, 16
GUESSING = 0.2  # one of five cups
RL_STEPS, EVALUATE_EVERY = 24, 6
SETS = ("chosen", "random")
METRIC = "validation/pass@1"


def run(module: str, *arguments: object) -> None:
  environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", module, *map(str, arguments)]
  done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  if done.returncode:
    sys.exit(f"{' '.join(command)}\n{done.stdout}")


def cold_start(workdir: Workdir, seed: int) -> None:
  experiment = f"--config={EXPERIMENT},stage=cold_start"
  run("qwen3_jax.main", experiment, SOURCE, f"--workdir={workdir}", f"--config.seed={seed}")


def select(workdir: Workdir, folder: Path, seed: int, least: float) -> dict[str, Any]:
  """Writes both sets; their description."""
  used, held_out = folder / "cold_start.jsonl", folder / "held_out.jsonl"
  write_problems(used, open_problems(TASK.problems.format(count=TASK.traces, seed=TRACES)))
  write_problems(held_out, candidates_of(open_problems(HELD_OUT), read_used([used]))[0])
  command = {
    "checkpoint": workdir.stage("cold_start"), "dtype": "float32", "slots": 256,
    "max_length": TASK.sequence, "max_new_tokens": TASK.answer, "samples": ANSWERS, "least": least,
  }  # fmt: skip
  choose = {
    "seed": seed, "count": CHOSEN, "output": folder / "chosen.jsonl",
    "random_output": folder / "random.jsonl", "pass_rates": folder / "rates.jsonl",
  }  # fmt: skip
  excluded = [f"--exclude={used}", f"--exclude={held_out}"]
  candidates = [f"--problems={spec}" for spec in CANDIDATES]
  run("qwen3_jax.select_queries", *_flags(command | choose), *candidates, *excluded)
  report = read_json(folder / "chosen.jsonl.report.json")
  # Both sets anew: what is chosen among them does not matter.
  again = {
    "seed": seed + 1000,
    "count": 1,
    "output": folder / "again.jsonl",
    "pass_rates": folder / "rates_again.jsonl",
  }
  specs = [f"--problems=jsonl:{folder / name}.jsonl" for name in SETS]
  run("qwen3_jax.select_queries", *_flags(command | again), *specs)
  rates = {row["id"]: row["right"] / row["answers"] for row in list(read_json_lines(folder / "rates_again.jsonl"))[1:]}
  for name in SETS:
    problems = read_problems(folder / f"{name}.jsonl")
    report[name]["pass_rate_again"] = statistics.fmean(rates[problem.id] for problem in problems)
  return report


def _flags(values: dict[str, Any]) -> list[str]:
  return [f"--{name}={value}" for name, value in values.items()]


def reinforce(before: Workdir, workdir: Workdir, problems: Path, seed: int, steps: int) -> dict[int, dict[str, float]]:
  """Step of GRPO on `problems` -> pass@1 on held-out problems, of all and by sub-domain."""
  if not workdir.stage("cold_start").exists():
    shutil.copytree(before.path, workdir.path, ignore=shutil.ignore_patterns(".lock", "tensorboard"))
  changes = {
    "problems": f"jsonl:{problems}", "validation_problems": f"jsonl:{problems.with_name('held_out.jsonl')}",
    "evaluate_problems": 256, "evaluate_samples": 8, "evaluate_every": EVALUATE_EVERY, "steps": steps,
    "relearn": False,
  }  # fmt: skip
  run(
    "qwen3_jax.main",
    f"--config={EXPERIMENT},stage=reasoning_rl",
    SOURCE,
    f"--workdir={workdir}",
    f"--config.seed={seed}",
    *_flags({f"config.stages.reasoning_rl.{key}": value for key, value in changes.items()}),
  )
  rows = [row for row in read_json_lines(workdir.metrics("reasoning_rl")) if METRIC in row]
  named = lambda row: {name: row[name] for name in row if name.startswith(METRIC) and "thinking" not in name}
  return {row["step"]: named(row) for row in rows}


def measure(folder: Path, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
  before = Workdir(folder / "cold_start")
  cold_start(before, seed)
  report = select(before, folder, seed, arguments.least)
  for name in SETS:
    workdir = Workdir(folder / name)
    curve = reinforce(before, workdir, folder / f"{name}.jsonl", seed, arguments.steps)
    first, *_, last = (values[METRIC] for values in curve.values())
    report[name] |= {"before": first, "after": last, "curve": curve}
  print_seed(seed, report)
  return report


def print_seed(seed: int, report: dict[str, Any]) -> None:
  print(f"seed {seed}: {report['problems']} problems, dropped {report['dropped']}")
  print(f"  {'':8}{'problems':>9}{'pass rate':>11}{'anew':>7}{'entropy':>9}{'before':>8}{'after':>7}{'gain':>7}")
  for name in SETS:
    of = report[name]
    counts = ", ".join(f"{key.rpartition('/')[2]}: {count}" for key, count in of["sub_domains"].items())
    print(
      f"  {name:8}{of['problems']:>9}{of['pass_rate']:>11.3f}{of['pass_rate_again']:>7.3f}{of['entropy']:>9.3f}"
      f"{of['before']:>8.3f}{of['after']:>7.3f}{of['after'] - of['before']:>+7.3f}  {counts}",
      flush=True,
    )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=Path, required=True, help="folder of runs and sets; kept")
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--steps", type=int, default=RL_STEPS, help="of GRPO (default %(default)s)")
  parser.add_argument("--least", type=float, default=GUESSING, help="pass rates must be above (default %(default)s)")
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  reports = [measure(arguments.workdir / f"seed{seed}", int(seed), arguments) for seed in arguments.seeds.split(",")]
  gains = {name: [report[name]["after"] - report[name]["before"] for report in reports] for name in SETS}
  wins = [chosen > other for chosen, other in zip(gains["chosen"], gains["random"])]
  means = {name: statistics.fmean(values) for name, values in gains.items()}
  print(
    f"gain in pass@1 on held-out problems: chosen {means['chosen']:+.3f}, random {means['random']:+.3f}; "
    f"chosen is ahead with {sum(wins)} of {len(wins)} seeds. Bar: with all."
  )
  if arguments.json:
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    arguments.json.write_text(json.dumps({"machine": machine, "gains": gains, "seeds": reports}, indent=2) + "\n")
  sys.exit(0 if all(wins) else 1)


if __name__ == "__main__":
  main()
