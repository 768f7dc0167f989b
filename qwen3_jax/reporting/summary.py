"""The run at a glance: tables of its stages and of their validation, tiles of numbers, where its time went."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.number_text import compact, duration
from qwen3_jax.observability.goodput import Goodput, goodput
from qwen3_jax.observability.goodput import summary as goodput_summary
from qwen3_jax.reporting.numbers import MISSING, is_number, loss, number, percent, perplexity
from qwen3_jax.reporting.run_record import RunRecord, visible
from qwen3_jax.reporting.table import Table
from qwen3_jax.workdir import Workdir


def stage_table(run: RunRecord) -> Table:
  header = (
    "Stage",
    "Status",
    "Steps",
    "Tokens",
    "Sequence length",
    "RoPE base",
    "Train loss",
    "Validation loss",
    "Perplexity",
    "Tokens/s",
    "MFU",
    "In steps",
    "Wall time",
  )
  rows = []
  for stage in run.stages:
    planned = stage.planned_steps
    validation = stage.last("validation/loss")
    row = (
      visible(stage.name),
      stage.status,
      f"{stage.steps:,}" if planned in (None, stage.steps) else f"{stage.steps:,} of {planned:,}",
      compact(stage.tokens) if stage.steps else MISSING,
      number(stage.settings.get("sequence_length"), lambda value: f"{value:,}"),
      number(stage.settings.get("rope_theta"), lambda value: f"{value:,.0f}"),
      number(stage.last("loss"), loss),
      number(validation, loss),
      number(validation, perplexity),
      number(stage.median("tokens_per_second"), compact),
      number(stage.median("mfu"), percent),
      number(stage.step_seconds, duration),
      number(stage.wall_seconds, duration),
    )
    rows.append(row)
  note = (
    "Losses in nats per token, the last ones logged; validation loss is the mean over domains. Tokens/s and MFU are"
    " medians over logged steps. Wall time runs from the first line of metrics to the last."
  )
  return Table("Stages", header, rows, frozenset({0, 1}), note)


def validation_table(run: RunRecord) -> Table:
  rows = []
  for stage in run.stages:
    for domain in stage.domains:
      found, entropy = stage.last(f"validation/{domain}/loss"), stage.last(f"unigram_entropy/{domain}")
      if found is None:
        continue  # not evaluated yet
      below = entropy - found if entropy is not None else None
      rows.append(
        (
          visible(stage.name),
          visible(domain),
          number(found, loss),
          number(entropy, loss),
          number(below, loss),
          number(found, perplexity),
          number(stage.last(f"validation/{domain}/accuracy"), percent),
        )
      )
  note = "Unigram entropy, in nats per token: the loss of the best model that ignores context on the same text."
  header = ("Stage", "Domain", "Validation loss", "Unigram entropy", "Below it by", "Perplexity", "Accuracy")
  return Table("Validation by domain", header, rows, frozenset({0, 1}), note)


def subtitle(run: RunRecord) -> str:
  formats: dict[str, Callable[[str], str]] = {
    "started": lambda value: value[:16].replace("T", " ") + " UTC" * value.endswith("+00:00"),
    "devices": str,
    "jax": "JAX {}".format,
    "commit": lambda value: f"commit {value[:12]}",
  }
  facts = [(show, run.environment.get(key)) for key, show in formats.items()]
  return visible(" · ".join(show(value) for show, value in facts if isinstance(value, str)))


def read_goodput(workdir: Workdir, notices: list[str]) -> Goodput | None:
  """None where nothing is recorded; a damaged record is named in a notice."""
  try:
    found = goodput(workdir)
    return found if found.starts and found.total > 0 else None
  except (OSError, TypeError, ValueError, KeyError, AttributeError):
    notices.append("goodput.jsonl is damaged")
    return None


def whole_run(run: RunRecord, spent: Goodput | None) -> str:
  """How long the run took, with all that is part of no stage: evaluation, writing of data, starts."""
  if spent is not None:
    starts = f" in {spent.starts} starts" if spent.starts > 1 else ""
    return f"The whole run took {duration(spent.total)}{starts}: {goodput_summary(spent)}."
  seconds = _logged_seconds(run)
  if seconds is None:
    return ""
  return (
    f"From the first line of metrics to the last, {duration(seconds)}, with what is part of no stage:"
    " evaluations, data that the run's own models write."
  )


def tiles(run: RunRecord, spent: Goodput | None) -> list[tuple[str, str]]:
  """(value, label)"""
  trained = [stage for stage in run.stages if stage.lines]
  if not trained:
    return []
  found = []
  model = run.config.get("model")
  try:
    config = ModelConfig(**model) if isinstance(model, dict) else None
    if config is not None:
      label = f"parameters, {compact(config.active_parameter_count())} active" if config.is_moe else "parameters"
      found.append((compact(config.parameter_count()), label))
  except (TypeError, ValueError, ArithmeticError):
    pass  # a config of another version
  done = sum(stage.done for stage in run.stages)
  found.append((f"{done} of {len(run.stages)}", "stages done"))
  found.append((compact(sum(stage.tokens for stage in trained)), "tokens trained on"))
  pretrained = [stage for stage in trained if stage.settings.get("kind", "pretrain") == "pretrain"]
  evaluated = [stage for stage in pretrained or trained if stage.last("validation/loss") is not None]
  evaluated = [stage for stage in evaluated if not stage.settings.get("model")] or evaluated  # rather than a student
  if evaluated:
    stage = evaluated[-1]
    found.append((number(stage.last("validation/loss"), loss), f"nats per token after {visible(stage.name)}"))
    entropies = [stage.last(f"unigram_entropy/{domain}") for domain in stage.domains]
    known = [entropy for entropy in entropies if entropy is not None]
    if known:
      found.append((loss(float(np.mean(known))), "unigram entropy of that text"))
  scores = {stage.name: score for stage in trained if (score := stage.last("validation/pass@1")) is not None}
  if scores:
    best = max(scores, key=scores.__getitem__)
    found.append((number(scores[best], percent), f"pass@1 after {visible(best)}"))
  found.append((number(spent.total if spent is not None else _logged_seconds(run), duration), "wall time"))
  return found


def _logged_seconds(run: RunRecord) -> float | None:
  """From the run's first line of metrics to its last."""
  times = [line["time"] for stage in run.stages for line in stage.lines if is_number(line.get("time"))]
  return max(times) - min(times) if times else None
