"""The table of block sizes of the attention kernels, by the TPU compiler's static cycles. No TPU is needed.

  python benchmarks/tune_blocks.py [--topologies=v5p:2x2x1,v6e:2x2] [--json=FILE]

Compiles forward and backward kernel with every candidate and prints cycles for 1,024 queries by 1,024 keys of one head.
`*` marks the fewest, `<` what kernels/flash_attention/pallas_tpu.py has. A candidate that the compiler refuses, for
want of VMEM, has no cycles. Cycles are of a block that no mask cuts: of larger ones a mask cuts more. Minutes
for a chip.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

from kernel_cycles import CASES, TOPOLOGIES, T, matmul_size
from static_cycles import compile_for, compiled_in_child

from kernels.flash_attention import pallas_tpu as flash

QUERIES, KEYS = (256, 512, 1024), (512, 1024)
PASSES = ("flash_forward", "flash_backward")
GROUP = 4  # query heads to a key head, as in those cases


def use(topology: str, queries: int, keys: int) -> None:
  """Puts a candidate in the table."""
  size = matmul_size(topology.split(":")[0])
  flash._BLOCKS[size] = flash._BLOCKS[size]._replace(queries=queries, keys=keys)


def cycles(case: str, topology: str, queries: int, keys: int) -> int | None:
  """Of a tile of 1,024 by 1,024 of one head; None if the compiler refuses."""
  heads = flash._blocks(T, T, GROUP, matmul_size(topology.split(":")[0])).heads
  try:
    kernels = compiled_in_child([__file__, "--compile", case, topology, str(queries), str(keys)], CASES[case]().kernels)
  except RuntimeError as error:
    if "vmem" not in str(error).lower():
      raise
    return None
  return round(sum(kernel.cycles for kernel in kernels) * 1024**2 / (heads * queries * keys))


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  parser.add_argument("--json", type=Path)
  parser.add_argument("--compile", nargs=4, metavar=("CASE", "TOPOLOGY", "QUERIES", "KEYS"), help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.compile:
    case, topology, queries, keys = options.compile
    use(topology, int(queries), int(keys))
    compile_for(CASES[case]().fn, CASES[case]().arrays, topology)
    return 0
  rows = []
  for topology, case in itertools.product(options.topologies.split(","), PASSES):
    chosen = flash._BLOCKS[matmul_size(topology.split(":")[0])]
    found = {candidate: cycles(case, topology, *candidate) for candidate in itertools.product(QUERIES, KEYS)}
    fewest = min(count for count in found.values() if count)
    for (queries, keys), count in found.items():
      marks = "*" * (count == fewest) + "<" * ((queries, keys) == (chosen.queries, chosen.keys))
      told = f"{count:7,}" if count else "refused"
      print(f"{topology:12s} {case:15s} {queries:5d} x {keys:5d}  {told} {marks}", flush=True)
      rows.append({"topology": topology, "pass": case, "queries": queries, "keys": keys, "cycles": count})
  if options.json:
    options.json.write_text(json.dumps(rows, indent=2) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
