"""The Pallas kernels in a compiled program."""

from qwen3_jax.compilation.hlo import Instruction, parse_module


def kernels_in(program) -> list[Instruction]:
  module = parse_module(program.as_text())
  return [x for computation in module.computations.values() for x in computation if "tpu_custom_call" in x.attributes]
