"""The demo from beginning to end: does every stage do what the report says of it, in 20 minutes, killed or not?

  python benchmarks/demo.py [--seeds=0,1,2] [--form=quick] [--kills=5] [--workdir=DIR] [--json=FILE]

Each seed is a run of experiments/miniature.py as `make demo` starts it. Its claims are read from what it leaves, with
95% intervals. With --kills a second run of the first seed gets SIGKILL so often, each time at a random moment of the
time that the undisturbed run took, and is started again with the same command; in the end all its metrics but times,
and all evaluations, must be those of the undisturbed run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiment_runs import DEMO_LOG_EVERY, ROOT, demo, metrics, train, training

from qwen3_jax.evaluation.confidence import Estimate, Interval, difference, wilson
from qwen3_jax.evaluation.result_tables import budget_group
from qwen3_jax.workdir import Workdir, read_json

MINUTES = {"": 20.0, "quick": 5.0}
# What a clock says, or how often a run was started.
TIMINGS = ("time", "seconds", "tokens_per_second", "mfu")


def run(form: str, seed: int, workdir: Path) -> float:
  """Seconds that it took."""
  started = time.monotonic()
  train(demo(form), workdir, seed, DEMO_LOG_EVERY)
  return time.monotonic() - started


def run_killed(form: str, seed: int, workdir: Path, kills: int, seconds: float) -> list[float]:
  """Kills the run at random moments, then lets it end; the seconds that each attempt lived.

  All of them together live for little more than half of `seconds`, which an undisturbed run takes that has to compile,
  so that each kill finds it at work.
  """
  rng = random.Random(f"kills {seed}")
  moments = [0.0, *sorted(rng.uniform(0.02, 0.55) * seconds for _ in range(kills))]
  lived = [after - before for before, after in itertools.pairwise(moments)]
  for wait in lived:
    command = [sys.executable, "-m", "qwen3_jax.main", *training(demo(form), workdir, seed, DEMO_LOG_EVERY)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
      raise RuntimeError(f"{workdir}: the run had ended when it was to be killed")
  run(form, seed, workdir)
  return lived


def left(workdir: Path) -> dict[str, Any]:
  """All metrics of all stages but times, and all evaluations."""
  found: dict[str, Any] = {}
  for stage in Workdir(workdir).stages():
    found[stage] = [
      {name: value for name, value in line.items() if not any(word in name for word in TIMINGS)}
      for line in metrics(workdir, stage)
    ]
  for path in sorted((workdir / "evaluations").glob("*.json")):
    found[path.name] = read_json(path)
  return found


def claims(workdir: Path) -> list[tuple[str, Estimate, bool]]:
  """What is claimed, with its interval, whether it holds.

  Of pass@1 while training, an interval counts every problem as one answer.
  """
  stages = read_json(Workdir(workdir).config)["stages"]

  def pass1(stage: str, of: str = "") -> tuple[Estimate, Estimate]:
    """At its first and last evaluation."""
    found = [line[f"validation/pass@1{of}"] for line in metrics(workdir, stage) if "validation/pass@1" in line]
    problems = stages[stage]["evaluate_problems"]
    first, last = (Estimate(share, wilson(share, problems)) for share in (found[0], found[-1]))
    return first, last

  def measured(task: dict[str, Any], name: str) -> Estimate:
    return Estimate(task["metrics"][name], Interval(*task["intervals"][name]))

  before, fused = (_evaluation(workdir, name) for name in ("reasoning", "fusion"))
  full, none = (f"{budget_group(budget)}/accuracy" for budget in (None, 0))
  thinking, answering = (measured(fused["modes"], f"{mode}/pass@1") for mode in ("think", "no_think"))
  obeying = measured(fused["think_follow"], "all turns/obeys")
  budgets = fused["budget_curve"]
  well_formed = min(measured(fused["modes"], f"{mode}/well_formed") for mode in ("think", "no_think"))
  kept = difference(thinking, measured(before["budget_curve"], full))
  cold, reinforced = pass1("reasoning_rl")
  by_rl = difference(reinforced, cold)
  # Thinking: without it the teacher is no better than the student.
  (off_policy, distilled), (_, student_rl) = (pass1(f"student_{stage}", "/think") for stage in ("on_policy", "rl"))
  by_distillation, beside_rl = difference(distilled, off_policy), difference(distilled, student_rl)
  by_thinking = difference(measured(budgets, full), measured(budgets, none))
  return [
    ("reasoning RL: pass@1 gained", by_rl, by_rl.value > 0),
    ("fusion: thinking, less before it", kept, kept.value >= -0.03),
    ("fusion: thinking, less not thinking", difference(thinking, answering), thinking.value > answering.value),
    ("fusion: answers of the right form", well_formed, well_formed.value == 1.0),
    ("ThinkFollow: turns that obey", obeying, obeying.value >= 0.98),
    (
      "thinking budget: full, less none; rises",
      by_thinking,
      budgets["metrics"]["monotone"] == 1.0 and by_thinking.value > 0,
    ),
    ("student thinking: distilled, pass@1 gained", by_distillation, by_distillation.value > 0),
    ("student thinking: distilled, less by RL", beside_rl, beside_rl.value >= -0.02),
  ]


def _evaluation(workdir: Path, name: str) -> dict[str, Any]:
  """Its tasks by kind."""
  found = read_json(workdir / "evaluations" / f"{name}.json")
  return {task.partition(":")[0]: result for task, result in found.items()}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--form", default="", choices=MINUTES)
  parser.add_argument("--kills", type=int, default=0)
  parser.add_argument("--workdir", type=Path)
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  folder = arguments.workdir or Path(tempfile.mkdtemp(prefix="demo-"))
  rows = []

  def add(name: str, value: float, holds: bool, interval: Interval | None = None) -> None:
    rows.append({"name": name, "ours": value, "interval": interval, "holds": holds})
    shown = f"[{interval.low:.3f}, {interval.high:.3f}]" if interval else ""
    print(f"{name:56s} {value:8.3f}  {shown:16s} {'yes' if holds else 'NO'}", flush=True)

  seeds = [int(seed) for seed in arguments.seeds.split(",")]
  for seed in seeds:
    workdir = folder / f"seed{seed}"
    seconds = run(arguments.form, seed, workdir)
    limit = MINUTES[arguments.form]
    add(f"seed {seed}: minutes, at most {limit:g}", seconds / 60, seconds <= 60 * limit)
    for name, estimate, holds in claims(workdir):
      add(f"seed {seed}: {name}", estimate.value, holds, estimate.interval)
    if arguments.kills and seed == seeds[0]:
      killed = folder / f"killed{seed}"
      lived = run_killed(arguments.form, seed, killed, arguments.kills, seconds)
      undisturbed, disturbed = left(workdir), left(killed)
      differ = [name for name in undisturbed.keys() | disturbed.keys() if undisturbed.get(name) != disturbed.get(name)]
      print(
        f"killed after {', '.join(f'{wait:.0f} s' for wait in lived)}; differ: {', '.join(sorted(differ)) or 'none'}"
      )
      add(f"seed {seed}: killed {len(lived)} times, stages and evaluations that differ", len(differ), not differ)
  if arguments.json:
    arguments.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
  sys.exit(0 if all(row["holds"] for row in rows) else 1)


if __name__ == "__main__":
  main()
