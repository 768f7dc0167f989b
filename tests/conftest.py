"""Every test sees eight CPU devices; programs are compiled with few optimisations, and cached between runs."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from tests import fast_compiling

jax.config.update("jax_num_cpu_devices", 8)
_flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{_flags} {fast_compiling.FLAGS}"  # compiling is most of what small tests do
jax.devices()  # reads the flags, which processes that tests start do not get
os.environ["XLA_FLAGS"] = _flags
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

GOLDEN = pathlib.Path(__file__).parent / "golden"


def pytest_addoption(parser):
  parser.addoption(
    "--every-chip", action="store_true", help="compile each kernel in each shape for each TPU, not for one of them"
  )


@pytest.fixture(scope="session")
def golden() -> pathlib.Path:
  """Folder of reference checkpoints with the reference implementation's outputs."""
  return GOLDEN
