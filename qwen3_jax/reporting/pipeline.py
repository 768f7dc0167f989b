"""The run as a diagram: a box for each stage, arrows from what it starts from, dashed ones from its teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from qwen3_jax.number_text import duration
from qwen3_jax.reporting import lineage
from qwen3_jax.reporting.numbers import MISSING, loss, number, percent
from qwen3_jax.reporting.run_record import RunRecord, StageRecord, visible

# Pixels; the style sheet has the height of a box and the gap below it, which make the pitch.
PITCH = 68
_MIDDLE = 28  # of a box
_TEACHER = 42  # where a dashed line leaves a box or reaches it
_LANE = 15
_MARGIN = 10
_COLORS = 7  # of models; the palette's last colour is the teachers'


class Box(NamedTuple):
  name: str
  status: str
  about: str  # kind and model
  figure: str  # what it reached
  time: str


class Line(NamedTuple):
  """Of the drawing beside the boxes."""

  path: str
  color: str
  style: str  # line, dashed or head


@dataclasses.dataclass(frozen=True)
class Diagram:
  boxes: list[Box]
  lines: list[Line]
  dots: list[tuple[int, int, str]]  # x, y, colour
  width: int  # of the drawing beside the boxes
  has_teachers: bool

  @property
  def height(self) -> int:
    return PITCH * len(self.boxes)


def diagram(run: RunRecord) -> Diagram:
  names = [stage.name for stage in run.stages]
  start_of, teachers_of, model_of = lineage.starts(run), lineage.teachers(run), lineage.models(run)
  start_rows = [_row(names, start_of[name]) for name in names]
  teacher_rows = [[names.index(teacher) for teacher in teachers_of[name]] for name in names]
  lanes = _lanes(start_rows)
  shared = _teacher_lanes(teacher_rows, max(lanes, default=0) + 1)
  count = max([*lanes, *shared.values()], default=0) + 1
  width = 2 * _MARGIN + _LANE * (count - 1) + 6
  x = lambda lane: _MARGIN + _LANE * lane
  palette = {name: f"var(--c{index % _COLORS})" for index, name in enumerate(dict.fromkeys(model_of.values()))}

  lines, dots = [], []
  for teacher, lane in shared.items():
    learners = [row for row, teachers in enumerate(teacher_rows) if teacher in teachers]
    lines += _dashed(x(lane), width, teacher, learners)
  for row, (name, lane, start) in enumerate(zip(names, lanes, start_rows)):
    color = palette[model_of[name]]
    middle = row * PITCH + _MIDDLE
    if start is not None:
      lines += _solid(x(lanes[start]), start, x(lane), row, color)
    lines.append(Line(f"M {x(lane)} {middle} H {width}", color, "line"))
    dots.append((x(lane), middle, color))
  boxes = [_box(run, stage, model_of[stage.name], len(palette) > 1) for stage in run.stages]
  return Diagram(boxes, lines, dots, width, bool(shared))


def _row(names: Sequence[str], name: str | None) -> int | None:
  return None if name is None else names.index(name)


def _lanes(start_rows: Sequence[int | None]) -> list[int]:
  """Of each row: that of what it starts from, where nothing stands between, else one to the right."""
  taken: dict[int, set[int]] = {}  # lane -> rows with a dot or a line
  lanes: list[int] = []
  for row, start in enumerate(start_rows):
    rows = set(range(row if start is None else start + 1, row + 1))
    lane = len(taken) if start is None else lanes[start]
    while rows & taken.get(lane, set()):
      lane += 1
    taken.setdefault(lane, set()).update(rows)
    lanes.append(lane)
  return lanes


def _teacher_lanes(teacher_rows: Sequence[Sequence[int]], first: int) -> dict[int, int]:
  """Teacher -> the lane of its dashed line, from `first` on."""
  last = {teacher: row for row, teachers in enumerate(teacher_rows) for teacher in teachers}
  taken: dict[int, int] = {}  # lane -> the last row of its line
  lanes = {}
  for teacher in sorted(last):
    lane = first
    while taken.get(lane, -1) >= teacher:
      lane += 1
    taken[lane] = last[teacher]
    lanes[teacher] = lane
  return lanes


def _solid(x0: int, start: int, x1: int, row: int, color: str) -> list[Line]:
  y0, y1 = start * PITCH + _MIDDLE, row * PITCH + _MIDDLE
  half, below = y0 + PITCH // 2, y0 + PITCH - 12
  path = f"M {x0} {y0} V {y1}" if x0 == x1 else f"M {x0} {y0} C {x0} {half} {x1} {half} {x1} {below} V {y1}"
  tip = y1 - 5
  return [Line(path, color, "line"), Line(f"M {x1 - 4} {tip - 7} h 8 L {x1} {tip} Z", color, "head")]


def _dashed(x: int, width: int, teacher: int, learners: Sequence[int]) -> list[Line]:
  """From a teacher's box along its lane to the boxes that learn from it."""
  color = f"var(--c{_COLORS})"
  y0, last = teacher * PITCH + _TEACHER, max(learners) * PITCH + _TEACHER
  lines = [Line(f"M {width} {y0} H {x} V {last} H {width - 6}", color, "dashed")]
  for row in learners:
    y = row * PITCH + _TEACHER
    if y != last:
      lines.append(Line(f"M {x} {y} H {width - 6}", color, "dashed"))
    lines.append(Line(f"M {width - 7} {y - 4} v 8 L {width} {y} Z", color, "head"))
  return lines


def _box(run: RunRecord, stage: StageRecord, model: str, several_models: bool) -> Box:
  kind = stage.settings.get("kind")
  about = [kind if isinstance(kind, str) else "stage"]
  if several_models:
    main = run.config.get("model")
    name = main.get("name") if isinstance(main, dict) else None
    about.append(model or (name if isinstance(name, str) and name else "main model"))
  time = number(stage.wall_seconds, duration)
  return Box(visible(stage.name), stage.status, visible(" · ".join(about)), key_figure(stage), time)


def key_figure(stage: StageRecord) -> str:
  """Right answers to held-out problems, before and after the stage, or its validation loss."""
  steps, scores = stage.series("validation/pass@1")
  parts = []
  if scores.size:
    before = f"{percent(scores[0])} → " if scores.size > 1 and steps[0] == 0 else ""
    parts.append(f"pass@1 {before}{percent(scores[-1])}")
  final = stage.last("validation/loss")
  if final is not None:
    parts.append(f"validation loss {number(final, loss)}")
  return " · ".join(parts) or MISSING
