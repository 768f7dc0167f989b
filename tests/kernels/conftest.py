"""What tests of Pallas kernels need: the interpreter that looks for races, and the TPU compiler."""

import jax
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.compilation_cache import compilation_cache
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen3_jax.compilation.topologies import parse_topology, prepare_environment
from tests.chips import CHIPS


def pytest_collection_modifyitems(config, items):
  """Of what is compiled for a TPU, every shape for one chip, by turns, so that no kernel is compiled for one alone."""
  if config.getoption("--every-chip"):
    return
  shapes: dict[str, list] = {}
  left_out = []
  for item in items:
    if "compile_for_tpu" not in getattr(item, "fixturenames", ()):
      continue
    parameters = dict(item.callspec.params)
    chip = parameters.pop("compile_for_tpu")
    seen = shapes.setdefault(f"{item.path}:{item.originalname}", [])
    if parameters not in seen:
      seen.append(parameters)
    if CHIPS[(seen.index(parameters) + 1) % len(CHIPS)] != chip:
      left_out.append(item)
  config.hook.pytest_deselected(items=left_out)
  items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def interpret():
  """Parameters of the interpreter with uninitialised memory as NaN; fails the test if a kernel has a data race."""
  pltpu.reset_tpu_interpret_mode_state()
  interpret_pallas_call.races = None
  yield pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
  assert interpret_pallas_call.races is not None, "no kernel ran with race detection"
  assert not interpret_pallas_call.races.races_found


@pytest.fixture(params=CHIPS)
def compile_for_tpu(request):
  """`compile(fn, *arrays)` for one device of a chip; arrays are ShapeDtypeStructs."""
  pytest.importorskip("libtpu")
  prepare_environment()
  kept = jax.config.jax_enable_compilation_cache
  jax.config.update("jax_enable_compilation_cache", False)
  compilation_cache.reset_cache()
  device = parse_topology(request.param).devices()[:1]
  mesh = jax.make_mesh((1,), ("device",), devices=device, axis_types=(jax.sharding.AxisType.Auto,))

  def compile(fn, *arrays):
    there = NamedSharding(mesh, P())
    arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there) for x in arrays]
    mapped = jax.shard_map(fn, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return jax.jit(mapped).lower(*arrays).compile()

  yield compile
  jax.config.update("jax_enable_compilation_cache", kept)
  compilation_cache.reset_cache()
