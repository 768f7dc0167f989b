"""The report in headless Chromium: wide and narrow, light and dark."""

import json
import os
import shutil

import numpy as np
import pytest
from report_pages import LENGTHS, write_run
from student_run import write_student_run

from qwen3_jax.metrics import MetricWriter
from qwen3_jax.report import write_report
from qwen3_jax.reporting.expert_choices import write_expert_choices
from qwen3_jax.workdir import Workdir, write_json

sync_api = pytest.importorskip("playwright.sync_api")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LUMINANCE = """name => {
  const [r, g, b] = getComputedStyle(document.body)[name].match(/[\\d.]+/g).map(Number)
  return 0.2126 * r + 0.7152 * g + 0.0722 * b
}"""

_DRAWN = """all => all.map(svg => {
  const box = svg.getBBox()
  return [svg.querySelectorAll("path").length, box.width, box.height]
})"""


@pytest.fixture(scope="module")
def browser():
  with sync_api.sync_playwright() as playwright:
    installed = next(filter(None, map(shutil.which, _NAMES)), None) or playwright.chromium.executable_path
    if not os.path.exists(installed):
      pytest.skip("no Chromium: `apt install chromium` or `playwright install chromium`")
    browser = playwright.chromium.launch(executable_path=installed, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
  """Of a run with everything that a page can show."""
  run = Workdir(tmp_path_factory.mktemp("browser") / "run")
  write_run(run)
  write_student_run(run)
  for stage in LENGTHS:
    rng = np.random.default_rng(0)
    write_expert_choices(run.stage(stage), 20, {name: rng.integers(1, 99, (3, 64)) for name in ("code", "prose")})
  with MetricWriter(run, "distilled") as writer:
    for step in range(7, 12):
      writer.write(step, {"rollout/pass@1": step / 20, "rollout/rollout_entropy": 0.5, "entropy_target": 0.4})
  metrics = {f"budget {budget}/accuracy": 0.1 + budget / 40 for budget in (0, 4, 16)} | {"think/pass@1": 0.5}
  intervals = {name: [value - 0.1, value + 0.1] for name, value in metrics.items()}
  tasks = {"modes:x": {"metrics": metrics, "intervals": intervals}}
  write_json(run.path / "evaluations" / "a_name_of_an_evaluation_that_is_long.json", tasks)
  report = {"name": "a s1", "topology": "v5p:2x2x1", "devices": 4, "mesh": {}, "fits": True}
  write_json(run.path / "compile" / "a.json", report | {"hbm": {"peak": 2**30, "limit": 2**33}})
  sample = {"step": 1, "prompt": "x" * 300, "text": "no_break_" * 60}
  run.samples("first").write_text(json.dumps(sample) + "\n")
  return write_report(run)


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page(browser, report, width, scheme):
  page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
  problems, requests = [], []
  page.on("console", lambda message: problems.append(message.text))
  page.on("pageerror", lambda error: problems.append(str(error)))
  page.on("request", lambda request: requests.append(request.url))
  page.goto(report.as_uri())
  assert problems == [] and requests == [report.as_uri()]
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  light, dark = page.evaluate(_LUMINANCE, "backgroundColor"), page.evaluate(_LUMINANCE, "color")
  assert (light - dark if scheme == "light" else dark - light) > 150
  figures = page.locator("figure svg").evaluate_all(_DRAWN)
  assert len(figures) > 10
  for paths, wide, high in figures:
    assert paths > 5 and wide > 100 and high > 50
  centres = "all => all.map(one => { const box = one.getBoundingClientRect(); return (box.top + box.bottom) / 2 })"
  boxes, dots = (page.locator(f".pipeline {part}").evaluate_all(centres) for part in (".box", "path.dot"))
  assert len(boxes) > 5
  np.testing.assert_allclose(dots, boxes, atol=1.5)
  clipped = page.locator(".box").evaluate_all(
    "all => all.filter(box => box.scrollHeight > box.clientHeight + 1).length"
  )
  assert clipped == 0
  for link in page.locator("nav a").all():
    target = link.get_attribute("href")
    assert page.locator(target).inner_text() == link.inner_text()
  page.close()
