"""The report's curves as inline SVG: matplotlib draws, the page's style sheet colours."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from qwen3_jax.number_text import compact

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"#([\w-]+)")
_COLOR = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"font-family:[^;]*; ?")
_LONG_NUMBER = re.compile(r"(\.\d\d)\d+")

MAX_POINTS = 1000  # of one curve
PALETTE_SIZE = 8  # colours --c0 ... that the style sheet defines

# Colours that matplotlib writes and the style sheet replaces, so that one drawing serves light and dark pages.
_TEXT, _GRID = "#000001", "#000002"
_SERIES = tuple(f"#0000{index + 16:02x}" for index in range(PALETTE_SIZE))
_ROUND = [1, 2, 2.5, 5, 10]  # ticks at multiples of these
_STYLE: dict[Any, Any] = {
  "svg.fonttype": "none",  # text stays text: small, selectable, in the page's font
  "text.parse_math": False,
  "axes.edgecolor": _GRID,
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.spines.left": False,
  "axes.labelcolor": _TEXT,
  "axes.labelsize": 9,
  "axes.grid": True,
  "axes.axisbelow": True,
  "grid.color": _GRID,
  "grid.linewidth": 0.8,
  "xtick.color": _GRID,
  "xtick.labelcolor": _TEXT,
  "xtick.labelsize": 9,
  "ytick.left": False,
  "ytick.labelcolor": _TEXT,
  "ytick.labelsize": 9,
  "text.color": _TEXT,
  "font.size": 9,
  "lines.linewidth": 1.6,
  "lines.solid_joinstyle": "round",
}


@dataclass(frozen=True)
class Curve:
  """One line of a plot. `color` counts through the palette."""

  x: np.ndarray
  y: np.ndarray
  color: int
  style: str = "line"  # line, faint (raw values behind a smoothed line), dots (a line through points) or dashed


@dataclass(frozen=True)
class Band:
  """A line through points, and how sure each is. All [points]."""

  x: np.ndarray
  y: np.ndarray
  low: np.ndarray
  high: np.ndarray
  color: int = 0


def draw(
  name: str,
  curves: Sequence[Curve],
  spans: Sequence[tuple[str, float, float]],
  *,
  size: tuple[float, float] = (5.2, 2.6),
  log: bool = False,
  format_y: Callable[[float], str] = lambda value: f"{value:g}",
  format_x: Callable[[float], str] = compact,
  y_top: float | None = None,
  x_label: str = "tokens",
  band: Band | None = None,
) -> str:
  """One plot as an <svg> element.

  Args:
    name: distinguishes the ids inside from those of the page's other plots.
    curves: what to draw, back to front.
    spans: name, first and last token of each stage, marked along the axis of tokens.
    size: width and height in inches; the page scales it.
    log: logarithmic values.
    format_y: how to print a value.
    format_x: likewise a place along the axis below.
    y_top: where the axis of values ends, when curves may go beyond.
    x_label: what the axis below counts.
    band: shaded behind the curves; its line is not drawn.
  """
  with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    if band is not None:
      _shade(axes, band)
    for curve in curves:
      x, y = downsample(curve.x, curve.y)
      axes.plot(x, y, color=_SERIES[curve.color % PALETTE_SIZE], **_line_style(curve.style, x.size))
    if log:
      axes.set_yscale("log")
      low, high = axes.get_ylim()
      axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=8))
      axes.yaxis.set_minor_locator(NullLocator())
    else:
      axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_y(value)))
    if y_top is not None:
      axes.set_ylim(top=y_top)
    axes.xaxis.set_major_locator(MaxNLocator(5 if size[0] < 7 else 8, steps=_ROUND))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_x(value)))
    axes.set_xlabel(x_label)
    end = max([last for _, _, last in spans] or [float(curve.x[-1]) for curve in curves if curve.x.size] or [1.0])
    axes.set_xlim(-0.01 * end, 1.01 * end)
    _mark_stages(axes, spans, end)
    return _to_svg(figure)


def draw_band(
  name: str,
  band: Band,
  labels: Sequence[tuple[float, str]],
  *,
  x_label: str,
  format_y: Callable[[float], str],
  size: tuple[float, float],
) -> str:
  """One plot of a band as an <svg> element.

  Args:
    name, size, format_y: as `draw` has them.
    labels: places along the axis below, and what is written there.
    x_label: what the axis counts.
  """
  with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    paint = _SERIES[band.color % PALETTE_SIZE]
    _shade(axes, band)
    axes.plot(band.x, band.y, color=paint, **_line_style("dots", band.x.size))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=_ROUND))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_y(value)))
    axes.set_xticks([place for place, _ in labels], [label for _, label in labels])
    axes.set_xlabel(x_label)
    return _to_svg(figure)


def color(index: int) -> str:
  """The CSS colour of `Curve.color`."""
  return f"var(--c{index % PALETTE_SIZE})"


def downsample(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
  """At most `limit` points that keep the extremes: of each run of neighbours, the lowest and the highest."""
  if x.size <= limit:
    return x, y
  runs = np.array_split(np.arange(x.size), limit // 2)
  kept = np.unique([run[index(y[run])] for run in runs for index in (np.argmin, np.argmax)])
  return x[kept], y[kept]


def smooth(x: np.ndarray, y: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
  """At most `limit` points, each a mean over a fiftieth of the values, or fewer at both ends."""
  if x.size > limit:
    runs = np.array_split(np.arange(x.size), limit)
    x, y = (np.array([values[run].mean() for run in runs]) for values in (x, y))
  half = max(1, y.size // 100)
  index = np.arange(y.size)
  reach = np.minimum(half, np.minimum(index, y.size - 1 - index))
  return x, np.array([y[i - r : i + r + 1].mean() for i, r in zip(index, reach)])


def _line_style(style: str, points: int) -> dict[str, Any]:
  alone = {"marker": "o", "markersize": 4} if points == 1 else {}
  styles: dict[str, dict[str, Any]] = {
    "line": alone,
    "faint": {"alpha": 0.35, "linewidth": 0.9},
    "dots": {"marker": "o", "markersize": 3.5 if points <= 60 else 0},
    "dashed": {"linestyle": (0, (4, 3)), "linewidth": 1.3},
  }
  return styles[style]


def _shade(axes, band: Band) -> None:
  paint = _SERIES[band.color % PALETTE_SIZE]
  axes.fill_between(band.x, band.low, band.high, color=paint, alpha=0.16, linewidth=0)


def _mark_stages(axes, spans: Sequence[tuple[str, float, float]], end: float) -> None:
  """A line where a stage begins, its name above; a name that would run into the one before is left out."""
  width = axes.figure.get_size_inches()[0]
  free_from = -1.0
  for index, (name, first, last) in enumerate(spans):
    if index:
      axes.axvline(first, color=_GRID, linewidth=1.2, zorder=0.5)
    middle, label = (first + last) / 2 / end * width, name if len(name) <= 24 else name[:23] + "…"
    half = 0.045 * len(label)  # of the printed name, in inches
    if middle - half >= free_from:
      free_from = middle + half + 0.08
      at = axes.get_xaxis_transform()
      axes.text((first + last) / 2, 1.02, label, transform=at, ha="center", va="bottom", fontsize=9)


def _to_svg(figure: Figure) -> str:
  """The drawing without fixed size, fonts and colours, which the page gives, and with coordinates to a hundredth."""
  file = io.StringIO()
  figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
  ElementTree.register_namespace("", _SVG)
  ElementTree.register_namespace("xlink", _XLINK)
  svg = ElementTree.fromstring(file.getvalue())
  svg[:] = [part for part in svg if part.tag == f"{{{_SVG}}}g" or part.find(f"{{{_SVG}}}clipPath") is not None]
  del svg.attrib["width"], svg.attrib["height"]
  referenced = {id for element in svg.iter() for value in element.attrib.values() for id in _REFERENCE.findall(value)}
  variables = {_TEXT: "var(--muted)", _GRID: "var(--line)"} | {
    written: color(index) for index, written in enumerate(_SERIES)
  }
  for element in svg.iter():
    attributes = element.attrib
    if attributes.get("id") not in referenced:
      attributes.pop("id", None)
    if "style" in attributes:
      style = _FONT.sub("", attributes["style"])
      attributes["style"] = _COLOR.sub(lambda match: variables.get(match[0], match[0]), style)
    for name in ("d", "x", "y", "transform"):
      if name in attributes:
        attributes[name] = _LONG_NUMBER.sub(r"\1", attributes[name]).replace("\n", " ")
  return ElementTree.tostring(svg, encoding="unicode")
