"""Lowers and compiles a program for a topology, and reads what the compiler says when it does not fit."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import re
import resource
import time
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from qwen3_jax.compilation.chips import GIB
from qwen3_jax.compilation.memory import MemoryStatistics, memory_statistics
from qwen3_jax.models.config import ModelConfig

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_SIZE = r"([\d.]+)([BKMGT])i?B?"
_TEMPORARIES = re.compile(rf"HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)")
_USED = re.compile(rf"Used {_SIZE} of {_SIZE} hbm", re.IGNORECASE)
_ALLOCATION = re.compile(rf"Size: {_SIZE}.*?Operator: op_name=\"([^\"]*)\".*?Shape: (\S+)", re.DOTALL)


class CompilerError(Exception):
  """The TPU compiler refuses a program for another reason than too little HBM, e.g. a kernel's on-chip memory."""


class Program(Protocol):
  """What can be compiled and reported: the train step, and later other kinds of steps."""

  @property
  def model(self) -> ModelConfig: ...

  @property
  def tokens_per_step(self) -> int: ...

  @property
  def flops_per_step(self) -> float:
    """Analytic, over all devices, nothing counted that is computed twice."""

  def arguments(self, mesh: Mesh) -> dict[str, Any]:
    """What a step is given, by kind: `parameters` and others, as trees of ShapeDtypeStructs with shardings."""

  def resident(self, mesh: Mesh) -> dict[str, Any]:
    """What else is on the devices meanwhile, likewise."""

  def lower(self, mesh: Mesh) -> jax.stages.Lowered: ...


@dataclasses.dataclass(frozen=True)
class Lowered:
  program: jax.stages.Lowered
  seconds: float  # tracing and lowering
  fingerprint: str  # equal for equal programs


@dataclasses.dataclass(frozen=True)
class Compiled:
  hlo: str  # optimised
  memory: MemoryStatistics
  seconds: float


@dataclasses.dataclass(frozen=True)
class HbmOverflow:
  """The compiler refused: bytes per device."""

  required: int
  limit: int
  largest: tuple[tuple[int, str, str], ...]  # allocations: bytes, scope, shape
  seconds: float

  @property
  def excess(self) -> int:
    return self.required - self.limit


def lower(program: Program, mesh: Mesh) -> Lowered:
  start = time.perf_counter()
  lowered = program.lower(mesh)
  seconds = time.perf_counter() - start
  return Lowered(lowered, seconds, hashlib.sha256(lowered.as_text().encode()).hexdigest())


def compile_lowered(lowered: Lowered, argument_bytes: int) -> Compiled | HbmOverflow:
  """Compiles. Raises CompilerError for anything but too little HBM.

  `argument_bytes`: what the arguments take on a device, which one form of the compiler's message leaves out.
  """
  start = time.perf_counter()
  try:
    compiled = lowered.program.compile()
  except jax.errors.JaxRuntimeError as error:
    overflow = parse_overflow(str(error), argument_bytes, time.perf_counter() - start)
    if overflow is None:
      raise CompilerError(f"the TPU compiler refuses the program: {error}") from error
    return overflow
  try:
    text = compiled.as_text()
  except jax.errors.JaxRuntimeError as error:
    versions = f"libtpu {importlib.metadata.version('libtpu')} and jaxlib {importlib.metadata.version('jaxlib')}"
    raise CompilerError(f"{versions} do not fit (pip install 'jax[tpu]=={jax.__version__}'): {error}") from error
  assert text is not None
  return Compiled(text, memory_statistics(compiled), time.perf_counter() - start)


def parse_overflow(message: str, argument_bytes: int, seconds: float = 0.0) -> HbmOverflow | None:
  """What an out-of-memory message says; None when it is about something else, e.g. on-chip memory."""
  if "RESOURCE_EXHAUSTED" not in message:
    return None
  if found := _USED.search(message):
    required, limit = _bytes(found[1], found[2]), _bytes(found[3], found[4])
  elif found := _TEMPORARIES.search(message):
    required, limit = _bytes(found[1], found[2]) + argument_bytes, _bytes(found[3], found[4])
  else:
    return None
  allocations = ((_bytes(size, unit), scope, shape) for size, unit, scope, shape in _ALLOCATION.findall(message))
  return HbmOverflow(required, limit, tuple(sorted(set(allocations), reverse=True)), seconds)


def host_peak_bytes() -> int:
  """The most memory that this process has held so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _bytes(number: str, unit: str) -> int:
  return int(float(number) * _UNITS[unit])
