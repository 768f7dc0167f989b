"""Thinking-mode fusion in miniature: does the fused model obey, reason as before, and use its budget?

  python benchmarks/fusion_miniature.py [--seeds=0,1,2] [--workdir=DIR] [--json=FILE]

Every seed is a run of experiments/miniature_fusion.py as a user starts it, and three tasks of qwen3_jax.evaluate on its
end: dialogs with random /think and /no_think (ThinkFollow), answers by mode, and accuracy against the thinking budget,
which the report's sentence ends. Answers to held-out problems are sampled as the report does. Bars: 98% of turns obey,
all answers have the form that their mode demands, thinking loses at most three points to the model before fusion, is
better than not thinking, and no budget is significantly worse than a smaller one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiment_runs import command, train

from qwen3_jax.evaluation.result_tables import budget_group

sys.path.insert(0, str(Path(__file__).parents[1]))  # experiments/
from experiments.miniature_fusion import TASK

PROBLEMS = TASK._replace(measured=256).held_out
FOLLOW, LOSS = 0.98, 0.03
TASKS = {
  "follow": [f"--tasks=think_follow:{PROBLEMS}", "--dialogs=200", "--turns=4"],
  "modes": [f"--tasks=modes:{PROBLEMS}", "--samples=4"],
  "budgets": [f"--tasks=budget_curve:{PROBLEMS}", "--samples=4", "--budgets=0,3,6,9,12,15,18,21,24"],
}
SAMPLING = ["--presence_penalty=0.0"]  # else as the report samples (section 4.6): temperature 0.6 and 0.7, top-p, top-k


def evaluate(workdir: Path, stage: str, name: str, options: list[str]) -> dict[str, float]:
  """Metrics of a task on the end of a stage, also for the report of the run."""
  path = workdir / "evaluations" / f"{name}-{stage}.json"
  path.parent.mkdir(exist_ok=True)
  common = [*SAMPLING, "--dtype=float32", "--slots=256", f"--max_new_tokens={TASK.answer}", f"--json={path}"]
  command("qwen3_jax.evaluate", f"--checkpoint={workdir / 'stages' / stage}", *options, *common)
  (found,) = json.loads(path.read_text()).values()
  return found["metrics"]


def run(seed: int, workdir: Path) -> dict[str, Any]:
  started = time.monotonic()
  train("miniature_fusion.py", workdir, seed, log_every=10)
  seconds = time.monotonic() - started
  before = evaluate(workdir, "reasoning_rl", "plain", [*TASKS["budgets"][:2], "--budgets=64"])
  found = {name: evaluate(workdir, "fusion", name, options) for name, options in TASKS.items()}
  command("qwen3_jax.report", f"--workdir={workdir}")
  return {"seed": seed, "seconds": seconds, "before": before[f"{budget_group(None)}/accuracy"], **found}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--seeds", default="0,1,2")
  parser.add_argument("--workdir", type=Path)
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  runs, rows = [], []
  with tempfile.TemporaryDirectory() as temporary:
    for seed in map(int, arguments.seeds.split(",")):
      runs.append(run(seed, (arguments.workdir or Path(temporary)) / f"seed{seed}"))
      rows += judged(runs[-1])
      print_run(runs[-1])
  for row in rows:
    print(f"{row['name']:44s} {row['ours']:7.3f}  bar {row['bar']:6.3f}  {'yes' if row['holds'] else 'NO'}")
  if arguments.json:
    arguments.json.write_text(json.dumps({"rows": rows, "runs": runs}, indent=2) + "\n")
  sys.exit(not all(row["holds"] for row in rows))


def judged(found: dict[str, Any]) -> list[dict[str, Any]]:
  modes = found["modes"]
  well_formed = min(modes[f"{mode}/well_formed"] for mode in ("think", "no_think"))
  thinking, not_thinking = modes["think/pass@1"], modes["no_think/pass@1"]
  of = lambda name, ours, bar, holds: {
    "name": f"seed {found['seed']}: {name}",
    "unit": "share",
    "ours": ours,
    "peer": None,
    "peer_name": "",
    "ratio": None,
    "bar": bar,
    "holds": bool(holds),
  }
  return [
    of("turns that obey", found["follow"]["all turns/obeys"], FOLLOW, found["follow"]["all turns/obeys"] >= FOLLOW),
    of("answers of the right form", well_formed, 1.0, well_formed == 1.0),
    of("thinking, less before fusion", thinking - found["before"], -LOSS, thinking - found["before"] >= -LOSS),
    of("thinking, less not thinking", thinking - not_thinking, 0.0, thinking > not_thinking),
    of("budgets: least p of a drop", found["budgets"]["drop_p"], 0.05, found["budgets"]["monotone"] == 1.0),
  ]


def print_run(found: dict[str, Any]) -> None:
  print(f"\nseed {found['seed']}: {found['seconds']:.0f} s to train; pass@1 before fusion {found['before']:.3f}")
  for name in ("follow", "modes", "budgets"):
    for metric, value in found[name].items():
      print(f"  {name:8s} {metric:44s} {value:8.3f}")


if __name__ == "__main__":
  main()
