"""Pages of the report for tests: a finished run written as the train loop does, and what a page holds."""

import html.parser
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np

from qwen3_jax.config import base_config, pretrain_stage
from qwen3_jax.metrics import MetricWriter
from qwen3_jax.report import write_report
from qwen3_jax.workdir import Workdir, environment, write_json

ENTROPY = {"python": 6.25, "docs": 6.5}
LENGTHS = {"s1": 128, "s2": 512}
STEPS, BATCH = 20, 4
# Text that the page must not obey.
HOSTILE = (
  "<script>alert(1)</script><b>&amp;'\"{{ 7*7 }}{% raw %} $x_1^2$ \x00\x1b[31m\u202e\ud800\uffff ``` | \u2028 长城😀"
)
_VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(html.parser.HTMLParser):
  """Tables, texts and elements of a page; fails where tags do not match."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.open: list[str] = []
    self.elements: list[tuple[str, dict]] = []
    self.tables: list[list[list[str]]] = []
    self.text = ""
    self.feed(text)
    self.close()
    assert self.open == []

  def handle_starttag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))
    if tag not in _VOID:
      self.open.append(tag)
    if tag == "table":
      self.tables.append([])
    elif tag == "tr":
      self.tables[-1].append([])
    elif tag in ("td", "th"):
      self.tables[-1][-1].append("")

  def handle_startendtag(self, tag, attributes):
    self.elements.append((tag, dict(attributes)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if "style" in self.open:
      return
    self.text += data
    if "td" in self.open or "th" in self.open:
      self.tables[-1][-1][-1] += data

  def table(self, first: str, second: str) -> dict[str, list[str]]:
    """The columns of the table whose header begins with these two."""
    table = next(table for table in self.tables if table[0][:2] == [first, second])
    return {name: [row[index] for row in table[1:]] for index, name in enumerate(table[0])}


def loss_at(stage: str, step: int) -> float:
  return (6.0 if stage == "s1" else 4.0) - 0.1 * step + 0.05 * math.sin(step)


def run_config() -> dict:
  config = base_config()
  config.name = "small-moe"
  config.model.update(num_experts=8, num_experts_per_token=2)
  config.pipeline = ("s1", "s2", "s3")
  for name, length, theta in (("s1", 128, 1e4), ("s2", 512, 1e6), ("s3", 512, 1e6)):
    tokens = STEPS * BATCH * length
    config.stages[name] = pretrain_stage(sequence_length=length, batch_size=BATCH, tokens=tokens, rope_theta=theta)
  return config.to_dict()


def write_run(workdir: Workdir) -> None:
  """S1 and S2 done, S3 not started; evaluation between two logged steps."""
  write_json(workdir.config, run_config())
  write_json(workdir.environment, environment())
  before = 0
  for stage, length in LENGTHS.items():
    writer = MetricWriter(workdir, stage)
    writer.write(0, {f"unigram_entropy/{domain}": value for domain, value in ENTROPY.items()})
    for step in range(1, STEPS + 1):
      if step % 2 == 0:
        scalars = {
          "loss": loss_at(stage, step),
          "gradient_norm": 1.0 + 0.1 * step,
          "learning_rate": 1e-3,
          "tokens_seen": before + step * BATCH * length,
          "tokens_per_second": 10_000 + 100 * step,
          "mfu": 0.25,
          "step_seconds": 0.5,
          "skipped_steps": 0,
          "expert_load_entropy": 0.9,
          "expert_max_violation": 0.4,
        }
        writer.write(step, scalars)
      if step in (9, 20):
        losses = {domain: loss_at(stage, step) + 0.5 * index for index, domain in enumerate(ENTROPY)}
        results = {f"validation/{domain}/loss": loss for domain, loss in losses.items()}
        results |= {f"validation/{domain}/accuracy": 0.125 for domain in losses}
        writer.write(step, results | {"validation/loss": sum(losses.values()) / 2})
        writer.write_sample(step, "def f(", f"x): return {stage} at {step}")
    writer.close()
    workdir.mark_done(stage, STEPS)
    before += STEPS * BATCH * length


def report_page(workdir: Workdir) -> Page:
  """Writes the report; the page as it is read."""
  return Page(write_report(workdir).read_text(encoding="utf-8"))


def check_offline(page: Page, workdir: Workdir) -> None:
  tags = {tag for tag, _ in page.elements}
  assert not tags & {"script", "img", "link", "iframe", "object", "embed"}
  for _, attributes in page.elements:
    for name, value in attributes.items():
      assert name not in ("src", "srcset") and not name.startswith("on")
      assert not name.endswith("href") or value.startswith("#")
  text = workdir.report.read_text(encoding="utf-8")
  assert "@import" not in text
  assert set(re.findall(r"url\((.)", text)) <= {"#"}
  assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def check_references_and_colors(page: Page, workdir: Workdir) -> None:
  ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
  values = [value or "" for _, attributes in page.elements for value in attributes.values()]
  referenced = {match for value in values for match in re.findall(r"^#([\w-]+)|url\(#([\w-]+)\)", value)}
  assert {first or second for first, second in referenced} == set(ids)
  assert len(ids) == len(set(ids))
  styles = [attributes.get("style", "") for tag, attributes in page.elements if tag != "rect"]
  assert not any(re.search(r"#[0-9a-fA-F]{3,6}\b", re.sub(r"url\(.*?\)", "", style)) for style in styles)
  assert "prefers-color-scheme: dark" in workdir.report.read_text(encoding="utf-8")


def figures(workdir: Workdir) -> dict[str, ElementTree.Element]:
  text = workdir.report.read_text(encoding="utf-8")
  figures = re.findall(r"<figcaption>(.*?)(?: <span>.*?)?</figcaption>.*?(<svg.*?</svg>)", text, re.DOTALL)
  return {title.strip(): ElementTree.fromstring(svg) for title, svg in figures}


def paths(svg: ElementTree.Element, color: int, dashed: bool = False) -> list[np.ndarray]:
  """Points of the curves in a colour."""
  found = []
  for group in svg.iter("{http://www.w3.org/2000/svg}path"):
    style = group.get("style", "")
    if f"stroke: var(--c{color})" in style and "fill: none" in style and ("dasharray" in style) == dashed:
      points = [tuple(map(float, point)) for point in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", group.get("d"))]
      found.append(np.array(points))
  return found


def tags_of_a_report() -> set[str]:
  text = "html head meta title style body main nav a h1 h2 h3 p ul li div b br span details summary i"
  tables, figures = "table thead tbody tr th td", "figure figcaption svg g path use text defs clippath rect"
  return set(f"{text} {tables} {figures}".split())


def truncate(path: Path) -> None:
  path.write_bytes(path.read_bytes()[:-20])
