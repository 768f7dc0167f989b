"""`run` and `call`: once with the rights the tests have, and, where that is root, once as an ordinary user."""

import dataclasses
import functools
import os
import textwrap

import pytest

from qwen3_jax.sandbox.run import Limits, run_python
from tests.sandbox.worker import Worker

SHORT = Limits(seconds=3.0, memory_bytes=128 * 2**20, processes=16, output_bytes=100_000, file_bytes=2**20)
BRIEF = dataclasses.replace(SHORT, seconds=1.0)


@pytest.fixture(scope="session", params=["root", "user"] if os.geteuid() == 0 else ["user"])
def call(request):
  """Calls a function of an importable module."""
  if request.param == "user" and os.geteuid() == 0:
    with Worker() as worker:
      yield worker.call
  else:
    yield lambda function, *arguments, **options: function(*arguments, **options)


@pytest.fixture(scope="session")
def run(call):
  """`run_python` of an indented program, by default with short limits."""
  return functools.partial(_run, call)


def _run(call, source, *, stdin="", limits=SHORT):
  return call(run_python, textwrap.dedent(source), stdin=stdin, limits=limits)
