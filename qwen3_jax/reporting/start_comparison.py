"""Students that go on from one start, by distillation and by RL (Qwen3 report, section 4.5 and Table 21)."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from qwen3_jax.config import OF_STAGE
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.evaluation.confidence import wilson
from qwen3_jax.number_text import compact, duration
from qwen3_jax.reporting import lineage
from qwen3_jax.reporting.compute import Point, forward_flops, learning_curve, pass_at_more
from qwen3_jax.reporting.numbers import MISSING, is_number, number, operations, percent
from qwen3_jax.reporting.run_record import RunRecord, StageRecord, visible
from qwen3_jax.reporting.table import Table
from qwen3_jax.workdir import Workdir

_METHODS = {"rl": "RL", "distill": "on-policy distillation", "sft": "supervised fine-tuning"}
_MODES = {"think": "thinking", "no_think": "not thinking"}  # in which pass@1 was measured, too
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, ArithmeticError)


@dataclasses.dataclass(frozen=True)
class Student:
  """A stage that went on from the start; its points are over the operations of this stage alone."""

  stage: StageRecord
  points: list[Point]


@dataclasses.dataclass(frozen=True)
class StartComparison:
  start: StageRecord
  start_flops: float | None  # of training it, None where its model cannot be read
  students: list[Student]
  has_prompts: bool  # whether operations on prompts are known

  @property
  def table(self) -> Table:
    before = self.students[0].points[0]
    k = pass_at_more(self.students[0].stage.names).removeprefix("validation/")
    modes = [mode for mode in _MODES if all(_in_mode(student.stage, mode).size for student in self.students)]
    shares = [[percent(_in_mode(self.students[0].stage, mode)[0]) for mode in modes]]
    shares += [[percent(_in_mode(student.stage, mode)[-1]) for mode in modes] for student in self.students]
    cost = (self.start.step_seconds, None, self.start_flops)
    rows = [_row(self.start, before, self.students[0].stage, cost, shares[0])]
    for student, by_mode in zip(self.students, shares[1:]):
      last = student.points[-1]
      rows.append(_row(student.stage, last, student.stage, (last.seconds, last.samples, last.flops), by_mode))
    titles = [_MODES[mode] for mode in modes]
    header = ("Stage", "Learns by", "pass@1", *titles, k or "pass@k", "In steps", "Samples", "Training operations")
    prompts = "" if self.has_prompts else " Prompts are not counted: none is at hand."
    note = (
      "Held-out problems, in brackets 95% intervals (Wilson). They take problems as independent and all answers to one"
      " problem as one, so for pass@1 they are wider than they need be. The first row is what the others start"
      " from; theirs come on top. Operations: writing an answer, learning from it, the teacher's pass over it; those of"
      f" making the teacher and its answers are left out.{prompts}"
    )
    return Table(f"From one start: {visible(self.start.name)}", header, rows, frozenset({0, 1}), note)


def start_comparisons(run: RunRecord, workdir: Workdir) -> list[StartComparison]:
  """Of stages that learn from what they write and were judged: those of which several have the same start."""
  groups: dict[str, list[StageRecord]] = collections.defaultdict(list)
  start_of = lineage.starts(run)
  for stage in run.stages:
    start = start_of[stage.name]
    if start is not None and stage.has_rollouts and stage.last("validation/pass@1") is not None:
      groups[start].append(stage)
  by_name = {stage.name: stage for stage in run.stages}
  found = []
  for start, stages in groups.items():
    if len(stages) < 2:
      continue
    prompt = _prompt_tokens(workdir, stages)
    students = [Student(stage, points) for stage in stages if (points := _curve(workdir, stage, prompt or 0.0))]
    if len(students) > 1:
      flops = _start_flops(workdir, by_name[start])
      found.append(StartComparison(by_name[start], flops, students, prompt is not None))
  return found


def _in_mode(stage: StageRecord, mode: str) -> np.ndarray:
  """pass@1 at each evaluation."""
  return stage.series(f"validation/pass@1/{mode}")[1]


def _row(
  stage: StageRecord,
  point: Point,
  judged: StageRecord,
  cost: tuple[float | None, float | None, float | None],
  by_mode: Sequence[str],
) -> tuple[str, ...]:
  """`judged` is the stage whose held-out problems the point is of."""
  problems = judged.settings.get("evaluate_problems")
  size = problems if isinstance(problems, int) and problems > 0 else None
  share = lambda value: percent(value, wilson(value, size) if size and 0 <= value <= 1 else None)
  kind = str(stage.settings.get("kind", ""))
  seconds, samples, flops = cost
  return (
    visible(stage.name),
    visible(_METHODS.get(kind, kind)) or MISSING,
    number(point.pass1, share),
    *by_mode,
    number(point.passk, share),
    number(seconds, duration),
    number(samples, compact),
    number(flops, operations),
  )


def _curve(workdir: Workdir, stage: StageRecord, prompt: float) -> list[Point]:
  settings = stage.settings
  try:
    length, epochs = settings["sequence_length"], settings.get("epochs", 1)
    grpo = settings.get("grpo", {})
    passes = int(settings.get("minibatches", 1) * epochs > 1 and stage.settings.get("kind") == "rl")
    passes += int(grpo.get("kl_coefficient", 0) > 0)
    teachers = [_teacher_flops(workdir, teacher, length) for teacher in settings.get("teachers", {}).values()]
    return learning_curve(
      stage.lines,
      settings["batch_size"],
      prompt,
      forward_flops(workdir.stage(stage.name), length),
      float(np.mean(teachers)) if teachers else 0.0,
      epochs=epochs,
      forward_passes=passes,
    )
  except (*_UNREADABLE, AttributeError):
    return []  # a config of another version


def _teacher_flops(workdir: Workdir, teacher: dict[str, Any], length: int) -> float:
  path = teacher["path"]
  own = path.startswith(OF_STAGE)
  return forward_flops(workdir.stage(path.removeprefix(OF_STAGE)) if own else workdir.path / path, length)


def _start_flops(workdir: Workdir, stage: StageRecord) -> float | None:
  length = stage.settings.get("sequence_length")
  if not is_number(length):
    return None
  try:
    return 3 * forward_flops(workdir.stage(stage.name), int(length)) * stage.tokens
  except _UNREADABLE:
    return None


def _prompt_tokens(workdir: Workdir, stages: Sequence[StageRecord]) -> float | None:
  """Mean length of the prompts in the stages' samples, None where there are none."""
  prompts = list(dict.fromkeys(sample["prompt"] for stage in stages for sample in stage.samples))
  try:
    tokenizer = Tokenizer.from_pretrained(workdir.tokenizer)
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    lengths = [len(encode_conversation(tokenizer, c, add_generation_prompt=True).ids) for c in conversations]
  except _UNREADABLE:
    return None
  return float(np.mean(lengths)) if lengths else None


def comparison_plot(comparison: StartComparison, prefix: str) -> dict[str, Any]:
  """Right answers against operations, all from the start's. Imports matplotlib."""
  from qwen3_jax.reporting.curves import percent as axis_percent
  from qwen3_jax.reporting.plots import Curve, color, draw

  curves, legend = [], []
  for index, student in enumerate(comparison.students):
    x = np.array([point.flops for point in student.points])
    for offset, (name, y) in enumerate((("pass@1", "pass1"), ("pass@k", "passk"))):
      values = np.array([getattr(point, y) for point in student.points])
      if not all(map(math.isfinite, values)):
        continue
      curves.append(Curve(x, values, index, "dashed" if offset else "dots"))
      k = pass_at_more(student.stage.names).removeprefix("validation/")
      label = f"{visible(student.stage.name)}, {k if offset else name}"
      legend.append((label, color(index), "dashed" if offset else "line"))
  svg = draw(
    prefix, curves, [], size=(10.8, 3.4), format_y=axis_percent, format_x=operations, x_label="training operations"
  )
  title = "Right answers against training operations"
  return {"title": title, "about": "held-out problems", "wide": True, "legend": legend, "svg": svg}
