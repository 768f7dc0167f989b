"""Progress of tasks that count: lines where there is no terminal, bars where there is one."""

import io

import pytest
from clock import Clock
from rich.console import Console

from qwen3_jax import task_progress as module
from qwen3_jax.task_progress import task_progress


@pytest.fixture
def clock(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(module, "time", clock)
  return clock


def test_lines_now_and_then_with_the_time_that_is_left(clock):
  console = Console(file=io.StringIO(), soft_wrap=True, highlight=False)
  with task_progress(console, line_seconds=10.0) as show:
    show("answers", 40, 100)  # what an earlier run had done says nothing of the speed
    for done in (50, 60, 70, 100):
      clock.sleep(6.0)
      show("answers", done, 100)
    show("quick", 0, 5)
    clock.sleep(1.0)
    show("quick", 5, 5)
  assert console.file.getvalue().splitlines() == [
    "[answers] 60/100 (60%)  24s left",
    "[answers] 100/100 (100%)",
  ]


def test_bars_on_a_terminal():
  console = Console(file=io.StringIO(), force_terminal=True, width=100)
  with task_progress(console) as show:
    show("thinking samples", 1, 4)
    show("checklists", 2, 8)
    show("Preparing text:[a-z]*.txt", 0, 1)
    show("thinking samples", 4, 4)
  shown = console.file.getvalue()
  assert "thinking samples" in shown and "4/4" in shown and "2/8" in shown and "text:[a-z]*.txt" in shown
