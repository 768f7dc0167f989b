"""Every test sees eight CPU devices; programs are compiled with few optimisations, and cached between runs."""

import gc
import os
import pathlib
import shutil

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from tests import fast_compiling

jax.config.update("jax_num_cpu_devices", 8)
_flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_flags} {fast_compiling.FLAGS}"  # compiling is most of what small tests do
jax.devices()  # reads the flags, which processes that tests start do not get
os.environ["XLA_FLAGS"] = _flags
jax.config.update("jax_compilation_cache_dir", str(fast_compiling.CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_traceback_in_locations_limit", 0)  # nobody reads where an operation was written
gc.set_threshold(100_000, 20, 50)  # tracing makes many objects, few of them garbage

GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_addoption(parser):
  parser.addoption(
    "--every-chip", action="store_true", help="compile each kernel in each shape for each TPU, not for one of them"
  )


def pytest_sessionstart(session):
  if "PYTEST_XDIST_WORKER" not in os.environ:
    shutil.rmtree(fast_compiling.RUNS_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
  """Folder of reference checkpoints with the reference implementation's outputs."""
  return GOLDEN
