"""python -m tests.curation.curate_small URL FOLDER: a small curation, in a process that may be killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from qwen3_jax.curation.cold_start import ColdStart, curate
from qwen3_jax.language_models.endpoint import Endpoint, Retries
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.registry import verify_all

SETTINGS = ColdStart(samples=3, max_tokens=2048, validation_share=0.1, most_of_median=3.0)


def main(url: str, problems: Path, folder: Path) -> None:
  model = Endpoint(url, "scripted", concurrency=4, retries=Retries(attempts=2, first_wait=0.05))
  made = [Problem(**record) for record in json.loads(problems.read_text())]
  curate(
    made, folder, assistant=model, reasoner=model, settings=SETTINGS, judge=lambda p, r: verify_all(p, r, workers=1)
  )


if __name__ == "__main__":
  main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
