"""What the TPU compiler schedules beside what: tokens move while experts work."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from qwen3_jax.compilation.hlo import parse_module
from qwen3_jax.compilation.topologies import parse_topology, prepare_environment
from qwen3_jax.compiler_options import compiler_options
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.expert_parallel import expert_feed_forward
from qwen3_jax.sharding import TOKENS, make_mesh
from tests.chips import CHIPS

pytest.importorskip("libtpu")

T, D, F, E, k = 3072, 2048, 768, 32, 8


def under_way(module, kind: str) -> list[list[str]]:
  """For every collective of tokens [..., D] that starts in one place and ends in another: the kernels between."""
  found = []
  for computation in module.computations.values():
    instructions = list(computation)
    ends: dict[str, int] = {}
    for i, x in reversed(list(enumerate(instructions))):  # newer compilers put updates between start and end
      if x.opcode in ("call-done", "call-update"):
        ends[x.operands[0]] = i if x.opcode == "call-done" else ends[x.name]
    for start, instruction in enumerate(instructions):
      for name in instruction.called().get("to_apply", ()) if instruction.opcode == "call-start" else ():
        root = module.computations[name].root
        if root.opcode == kind and root.shape[0].dims[-1] == D:
          between = instructions[start : ends[instruction.name]]
          found.append([x.name for x in between if "tpu_custom_call" in x.attributes])
  return found


def pytest_generate_tests(metafunc):
  metafunc.parametrize("topology", CHIPS if metafunc.config.getoption("--every-chip") else ["v6e:2x2"])


def test_tokens_move_while_experts_work(topology):
  """Of three chunks of 1,024 tokens the first is gathered alone, the others, in a loop, beside products.

  Scatters start and end in two places; whether anything stands between depends on the compiler (0.0.42 yes, 0.0.50 no).
  """
  prepare_environment()
  devices = parse_topology(topology).devices()
  B = len(devices)
  mesh = make_mesh({"expert": B}, devices)
  config = ModelConfig(num_experts=E, num_experts_per_token=k, expert_dispatch_tokens=1024, remat="full")
  array = lambda dtype, spec, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
  tokens = array(jnp.bfloat16, TOKENS, B, T, D)
  choices = (array(jnp.bfloat16, TOKENS, B, T, k), array(jnp.int32, TOKENS, B, T, k))
  matrices = [array(jnp.bfloat16, P("expert"), *shape) for shape in ((E, D, F), (E, D, F), (E, F, D))]
  with jax.set_mesh(mesh):
    feed_forward = jax.jit(lambda *a: expert_feed_forward(config, *a), compiler_options=compiler_options(mesh))
    compiled = feed_forward.lower(tokens, *choices, *matrices).compile()
  module = parse_module(compiled.as_text())
  gathers, scatters = under_way(module, "all-gather"), under_way(module, "reduce-scatter")
  assert len(gathers) == 2 and len(scatters) == 3, (gathers, scatters)
  assert sum(map(bool, gathers)) == 1, gathers
  assert "grouped_matmul" in " ".join(name for kernels in gathers for name in kernels)
