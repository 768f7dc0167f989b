"""Pallas kernels beside those that ship with JAX, by the TPU compiler's static cycles. No TPU is needed.

  python benchmarks/kernel_cycles.py [--cases=forward,backward] [--topologies=v5p:2x2x1] [--json=FILE]

Cycles are of a kernel's hot body, for a tile of 1,024 queries by 1,024 keys of one head (the rows that say 512: of 512
by 512), or as they are for a grouped matmul. `unit` is the part of those cycles in which the matrix unit multiplies;
`slots` the busiest units by issue slots. A kernel that applies a mask only where one cuts has a second body for that.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.megablox import gmm
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from static_cycles import Kernel, compile_for, compiled_in_child

from kernels.flash_attention import pallas_tpu as flash
from kernels.flash_attention.pairs import Masks
from kernels.grouped_matmul import pallas_tpu as grouped

TOPOLOGIES = ("v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
T, N, H = 4096, 8, 128

Array = jax.ShapeDtypeStruct
bf16 = lambda *shape: Array(shape, jnp.bfloat16)


@dataclasses.dataclass(frozen=True)
class Case:
  fn: Callable
  arrays: list[Array]
  kernels: str  # a regular expression of their names; cycles are summed


@dataclasses.dataclass(frozen=True)
class Comparison:
  name: str
  ours: str
  peer: str
  peer_name: str
  unit: str  # of the bars
  bars: dict[str, float]  # generation -> most cycles, or least use of the matrix unit
  queries: int = 0  # of the tile to which cycles are scaled
  peer_queries: int = 0  # of the peer's own


def _flash(backward: bool, groups: int) -> Case:
  K = N // groups
  query, key, ids = bf16(1, T, N, H), bf16(1, T, K, H), Array((1, T), jnp.int32)
  masks = lambda ids: Masks(ids, ids, jnp.arange(T))
  if not backward:
    return Case(lambda q, k, v, ids: flash.forward(q, k, v, masks(ids)), [query, key, key, ids], "flash_attention")
  numbers = Array((1, N, T), jnp.float32)
  return Case(
    lambda q, k, v, ids, sums, deltas, do: flash.backward(q, k, v, masks(ids), sums, deltas, do),
    [query, key, key, ids, numbers, numbers, query],
    "flash_attention_gradient",
  )


def _splash(mask, block: int, backward: bool) -> Case:
  sizes = splash.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    block_q_dq=block,
    block_kv_dq=block,
  )
  masks = splash_mask.MultiHeadMask([mask((T, T))] * N)
  attend = lambda *a: splash.make_splash_mha_single_device(masks, block_sizes=sizes)(*a)
  if not backward:
    return Case(attend, [bf16(N, T, H)] * 3, "splash_mha_fwd")
  loss = lambda *a: jnp.sum(attend(*a).astype(jnp.float32))
  return Case(jax.grad(loss, argnums=(0, 1, 2)), [bf16(N, T, H)] * 3, "splash_mha_d")


def _megablox(M: int, D: int, F: int, E: int, backward: bool) -> Case:
  multiply = lambda lhs, rhs, sizes: gmm(lhs, rhs, sizes, preferred_element_type=jnp.bfloat16, tiling=(512, 1024, 1024))
  return _grouped(multiply, M, D, F, E, backward)


def _grouped(multiply: Callable, M: int, D: int, F: int, E: int, backward: bool) -> Case:
  arrays = [bf16(M, D), bf16(E, D, F), Array((E,), jnp.int32)]
  if not backward:
    return Case(multiply, arrays, "gmm|grouped_matmul")
  gradients = lambda lhs, rhs, sizes, do: jax.vjp(lambda *a: multiply(*a, sizes), lhs, rhs)[1](do)
  return Case(gradients, [*arrays, bf16(M, F)], ".*(gmm|grouped_matmul)")


SMALL, LARGE = (4096, 2048, 2048, 8), (40_960, 4096, 1536, 32)
CASES: dict[str, Callable[[], Case]] = {
  "flash_forward": lambda: _flash(False, 4),
  "flash_backward": lambda: _flash(True, 4),
  "flash_forward_ungrouped": lambda: _flash(False, 1),
  "splash_full_512": lambda: _splash(splash_mask.FullMask, 512, False),
  "splash_causal_1024": lambda: _splash(splash_mask.CausalMask, 1024, False),
  "splash_backward": lambda: _splash(splash_mask.CausalMask, 1024, True),
  "grouped": lambda: _grouped(grouped.grouped_matmul, *SMALL, False),
  "grouped_large": lambda: _grouped(grouped.grouped_matmul, *LARGE, False),
  "grouped_backward": lambda: _grouped(grouped.grouped_matmul, *LARGE, True),
  "megablox": lambda: _megablox(*SMALL, False),
  "megablox_large": lambda: _megablox(*LARGE, False),
  "megablox_backward": lambda: _megablox(*LARGE, True),
}

ATTENTION, GROUPED = "cycles", "use"
COMPARISONS = (
  Comparison("forward, 512", "flash_forward", "splash_full_512", "splash", ATTENTION, {"v5p": 1300}, 512, 512),
  Comparison("forward, 1024", "flash_forward", "splash_causal_1024", "splash", ATTENTION, {"v5p": 4900}, 1024, 1024),
  Comparison(
    "forward, a key head each", "flash_forward_ungrouped", "splash_causal_1024", "splash", ATTENTION, {}, 1024, 1024
  ),
  Comparison("backward, 1024", "flash_backward", "splash_backward", "splash", ATTENTION, {"v5p": 12_000}, 1024, 1024),
  Comparison(
    "grouped 2048 x 2048", "grouped", "megablox", "megablox", GROUPED, {"v5p": 0.97, "v6e": 0.88, "tpu7x": 0.85}
  ),
  Comparison("grouped 4096 x 1536", "grouped_large", "megablox_large", "megablox", GROUPED, {}),
  Comparison("its gradients", "grouped_backward", "megablox_backward", "megablox", GROUPED, {}),
)


def matmul_size(generation: str) -> int:
  """Columns of the matrix unit."""
  return 128 if generation == "v5p" else 256


def _scores_of_a_step(generation: str, groups: int) -> int:
  block = flash._blocks(T, T, groups, matmul_size(generation))
  return block.heads * block.queries * block.keys


def _compiled(case: str, topology: str) -> list[Kernel]:
  return compiled_in_child([__file__, "--compile", case, topology], CASES[case]().kernels)


def _measure(comparison: Comparison, topology: str) -> dict[str, object]:
  generation = topology.split(":")[0]
  ours, peers = _compiled(comparison.ours, topology), _compiled(comparison.peer, topology)
  row: dict[str, object] = {"name": comparison.name, "topology": topology, "unit": comparison.unit}
  for who, kernels in (("ours", ours), (comparison.peer_name, peers)):
    row |= {f"{who} kernels": [dataclasses.asdict(kernel) for kernel in kernels]}
  if comparison.unit == GROUPED:
    values = [min(kernel.utilisation for kernel in kernels) for kernels in (ours, peers)]
    better = lambda value, bar: value >= bar
  else:
    groups = 1 if "ungrouped" in comparison.ours else 4
    steps = _scores_of_a_step(generation, groups), comparison.peer_queries**2
    values = [
      round(sum(kernel.cycles for kernel in kernels) * comparison.queries**2 / scores)
      for kernels, scores in zip((ours, peers), steps)
    ]
    better = lambda value, bar: value <= bar
  bar = comparison.bars.get(generation, values[1])  # else no worse than the peer
  return row | {"ours": values[0], "peer": values[1], "bar": bar, "holds": better(values[0], bar)}


def _print(row: dict, peer_name: str) -> None:
  show = (lambda x: f"{x:7.1%}") if row["unit"] == GROUPED else (lambda x: f"{x:7,}")
  print(
    f"{row['name']:26s} {row['topology']:12s} {show(row['ours'])}  {peer_name} {show(row['peer'])}  ratio "
    f"{row['ours'] / row['peer']:.2f}  bar {show(row['bar'])}  {'holds' if row['holds'] else 'FAILS'}"
  )
  for kernel in row["ours kernels"]:
    hot, *others = kernel["bodies"]
    slots = ", ".join(f"{unit} {share:.0%}" for unit, share in hot["slots"].items())
    masked = f", other body {others[0]['bundles']:,}" if others and others[0]["products"] == hot["products"] else ""
    print(
      f"    {kernel['name']}: unit {kernel['utilisation']:.1%}, bundles {hot['bundles']:,}{masked}, slots {slots}",
      flush=True,
    )


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--cases", default="", help="names that start with one of these")
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  parser.add_argument("--json", type=Path)
  parser.add_argument("--compile", nargs=2, metavar=("CASE", "TOPOLOGY"), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.compile:
    case = CASES[options.compile[0]]()
    compile_for(case.fn, case.arrays, options.compile[1])
    return 0
  wanted = tuple(options.cases.split(","))
  rows = []
  for comparison in COMPARISONS:
    if comparison.name.startswith(wanted):
      for topology in options.topologies.split(","):
        rows.append(_measure(comparison, topology))
        _print(rows[-1], comparison.peer_name)
  if options.json:
    options.json.write_text(json.dumps(rows, indent=2) + "\n")
  return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
  sys.exit(main())
