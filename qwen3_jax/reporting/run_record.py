"""What a work directory says about its run, read for the report: stages, their curves, samples, config, environment."""

from __future__ import annotations

import dataclasses
import functools
import re
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_jax.metrics import read_metrics, read_samples
from qwen3_jax.reporting.numbers import is_number
from qwen3_jax.workdir import Workdir, WorkdirError, read_json


@dataclasses.dataclass(frozen=True)
class StageRecord:
  """What one stage has written so far."""

  name: str
  done: bool
  settings: dict[str, Any]  # its part of config.json, {} when unknown
  lines: list[dict[str, float]]  # of metrics.jsonl
  samples: list[dict[str, Any]]  # of samples.jsonl
  tokens_before: float  # tokens seen in the stages before

  @property
  def status(self) -> str:
    return "done" if self.done else "unfinished" if self.lines else "not started"

  @functools.cached_property
  def domains(self) -> list[str]:
    """Domains of the validation text, in the order in which they were evaluated."""
    matches = (re.fullmatch(r"validation/(.+)/loss|unigram_entropy/(.+)", name, re.DOTALL) for name in self.names)
    return list(dict.fromkeys(match[1] or match[2] for match in matches if match))

  @functools.cached_property
  def tokens_per_step(self) -> float:
    batch, length = self.settings.get("batch_size"), self.settings.get("sequence_length")
    if isinstance(batch, int) and isinstance(length, int) and batch * length > 0:
      return float(batch * length)
    seen = [(line["step"], line["tokens_seen"]) for line in self.lines if is_number(line.get("tokens_seen"))]
    if seen and seen[-1][0] > seen[0][0]:
      return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0])
    return seen[0][1] / max(seen[0][0], 1) if seen else 1.0

  @property
  def steps(self) -> int:
    return int(max((line["step"] for line in self.lines), default=0))

  @property
  def planned_steps(self) -> int | None:
    if is_number(steps := self.settings.get("steps")):
      return int(steps)
    tokens = self.settings.get("tokens")
    return int(tokens // self.tokens_per_step) if is_number(tokens) else None

  @property
  def tokens(self) -> float:
    """Tokens this stage has trained on."""
    return self.steps * self.tokens_per_step

  @property
  def wall_seconds(self) -> float | None:
    """From the first line to the last, time that the run lay stopped included."""
    times = [line["time"] for line in self.lines if is_number(line.get("time"))]
    return max(times) - min(times) if times else None

  @property
  def step_seconds(self) -> float | None:
    """Time in train steps alone, without compilation, evaluation and saving."""
    total, previous = 0.0, 0
    for step, seconds in zip(*self.series("step_seconds")):
      total += seconds * (step - previous)
      previous = step
    return total or None

  @functools.cached_property
  def names(self) -> list[str]:
    """Of all metrics, in the order in which they came up."""
    return list(dict.fromkeys(name for line in self.lines for name in line))

  @property
  def has_rollouts(self) -> bool:
    """Whether it learns from what it writes."""
    return "rollout/number" in self.names

  def series(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric, where it is finite."""
    pairs = [(line["step"], line[metric]) for line in self.lines if is_number(line.get(metric))]
    array = np.asarray(pairs, np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]

  def curve(self, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """The same over the tokens that the whole run had seen."""
    steps, values = self.series(metric)
    return self.tokens_before + steps * self.tokens_per_step, values

  def last(self, metric: str) -> float | None:
    values = self.series(metric)[1]
    return float(values[-1]) if values.size else None

  def median(self, metric: str) -> float | None:
    values = self.series(metric)[1]
    return float(np.median(values)) if values.size else None

  def sample_pairs(self) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """For each prompt its sample at the first and at the last evaluation."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for sample in self.samples:
      by_prompt.setdefault(sample["prompt"], []).append(sample)
    return [(prompt, samples[0], samples[-1]) for prompt, samples in by_prompt.items()]

  def not_finite(self) -> int:
    """Logged steps whose loss or gradient was not finite."""
    of_training = [line for line in self.lines if "learning_rate" in line]
    return sum(not (is_number(line.get("loss")) and is_number(line.get("gradient_norm"))) for line in of_training)


@dataclasses.dataclass(frozen=True)
class RunRecord:
  name: str
  config: dict[str, Any]  # {} when missing or damaged
  environment: dict[str, Any]  # likewise
  stages: list[StageRecord]
  notices: list[str]  # what is missing or looks wrong


def read_run(workdir: Workdir) -> RunRecord:
  """Reads what there is; a damaged file becomes a notice. Raises WorkdirError when the folder holds no run at all."""
  started = workdir.stages()
  if not started and not workdir.config.exists():
    problem = "has neither config.json nor stages/" if workdir.path.is_dir() else "no such folder"
    raise WorkdirError(f"workdir={workdir}: {problem}; expected the --workdir of a run of qwen3_jax.main")
  notices: list[str] = []
  config = _read_object(workdir.config, notices)
  environment = _read_object(workdir.environment, notices)
  settings, pipeline = config.get("stages"), config.get("pipeline")
  settings = settings if isinstance(settings, dict) else {}
  pipeline = pipeline if isinstance(pipeline, list) else []
  names = list(dict.fromkeys([name for name in pipeline if isinstance(name, str)] + started))

  stages: list[StageRecord] = []
  tokens = 0.0
  for name in names:
    own = settings.get(name)
    stage = StageRecord(
      name=name,
      done=workdir.is_done(name),
      settings=own if isinstance(own, dict) else {},
      lines=read_metrics(workdir.metrics(name)),
      samples=read_samples(workdir.samples(name)),
      tokens_before=tokens,
    )
    steps, seen = stage.series("tokens_seen")
    if seen.size:  # the run counts more for a stage whose predecessors ran elsewhere, less for another model's
      tokens = max(tokens, float(seen[-1] - steps[-1] * stage.tokens_per_step))
      stage = dataclasses.replace(stage, tokens_before=tokens)
    tokens += stage.tokens
    stages.append(stage)
    if name in started and not stage.lines:
      notices.append(f"stage {name}: no metrics yet")
    if count := stage.not_finite():
      notices.append(f"stage {name}: loss or gradient was not finite in {count} logged step{'s' * (count > 1)}")
  title = config.get("name")
  return RunRecord(
    name=title if isinstance(title, str) and title else workdir.path.name,
    config=config,
    environment=environment,
    stages=stages,
    notices=notices,
  )


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
  """Dotted keys and printed values of nested dicts."""
  if isinstance(value, dict) and value:
    return [pair for key, item in value.items() for pair in flatten(item, f"{prefix}.{key}" if prefix else str(key))]
  if isinstance(value, list):
    return [(prefix, "(" + ", ".join(_printed(item) for item in value) + ")")]
  return [(prefix, _printed(value))]


def _printed(value: Any) -> str:
  if isinstance(value, list):
    return "(" + ", ".join(map(_printed, value)) + ")"
  return repr(value) if isinstance(value, str) and (not value or value != value.strip()) else str(value)


def visible(text: str) -> str:
  """`text` with what a page cannot hold or would obey (control characters, text direction) as visible characters."""
  return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
  hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or ord(character) & 0xFFFE == 0xFFFE
  if not hidden or character in "\n\t\u200c\u200d":  # the joiners are part of ordinary writing
    return character
  return f"⟨U+{ord(character):04X}⟩"


def _read_object(path: Path, notices: list[str]) -> dict[str, Any]:
  try:
    value = read_json(path)
  except FileNotFoundError:
    notices.append(f"{path.name} is missing")
    return {}
  except (OSError, ValueError):
    value = None
  if not isinstance(value, dict):
    notices.append(f"{path.name} is damaged")
    return {}
  return value
