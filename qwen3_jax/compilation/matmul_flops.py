"""Floating-point operations of the instructions that use the matrix unit."""

from __future__ import annotations

import math
import re

import numpy as np

from qwen3_jax.compilation.hlo import Computation, Instruction

_COST_ESTIMATE = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
_DIM_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


def matmul_flops(instruction: Instruction, computation: Computation) -> float | None:
  """Operations of one execution, a multiply-add counted as two; 0 for what uses no matrix unit.

  None for a custom call whose author gave no cost.
  """
  if instruction.opcode == "dot":
    return _dot(instruction, computation)
  if instruction.opcode == "convolution":
    return _convolution(instruction, computation)
  if instruction.opcode == "ragged-dot":
    return _ragged_dot(instruction, computation)
  if instruction.opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.attributes:
    cost = _COST_ESTIMATE.search(instruction.backend_config)
    integers = all(array.dtype[0] in "su" for array in instruction.shape)
    return float(cost[1]) if cost else 0.0 if integers else None
  return 0.0


def _dot(instruction: Instruction, computation: Computation) -> float:
  left = computation.operand(instruction, 0).shape[0]
  contracted = _sizes(instruction.attribute("lhs_contracting_dims"))
  return 2.0 * instruction.shape[0].elements * math.prod(left.dims[axis] for axis in contracted)


def _ragged_dot(instruction: Instruction, computation: Computation) -> float:
  """Rows [M, D] times one [D, F] of a group each: every row meets one matrix, so 2 * M * D * F."""
  left, right = (computation.operand(instruction, index).shape[0] for index in (0, 1))
  return 2.0 * left.elements * right.dims[-1]


def _convolution(instruction: Instruction, computation: Computation) -> float:
  """2 per pair of an output and a kernel element that meet an input element, not padding or a hole of dilation.

  The TPU compiler writes batched matmuls as convolutions with a dilated spatial axis for the batch, of which
  only the diagonal is real.
  """
  image, kernel = (computation.operand(instruction, index).shape[0] for index in (0, 1))
  labels = _DIM_LABELS.search(instruction.attributes)
  if labels is None:
    raise ValueError(f"convolution without dim_labels: {instruction.name}")
  image_labels, kernel_labels, output_labels = labels.groups()
  output = instruction.shape[0]
  window = _window(instruction)
  spatial = 1
  for axis in range(len(image_labels) - 2):
    label = str(axis)
    sizes = (array.dims[names.index(label)] for array, names in zip((image, output), (image_labels, output_labels)))
    spatial *= _positions(*sizes, **{key: values[axis] for key, values in window.items()})
  groups = int(instruction.attribute("batch_group_count") or 1)
  channels = kernel.dims[kernel_labels.index("i")] * kernel.dims[kernel_labels.index("o")]
  return 2.0 * channels * image.dims[image_labels.index("b")] / groups * spatial


def _window(instruction: Instruction) -> dict[str, list[int]]:
  """Per spatial axis: size, stride, padding before, dilation of the kernel and of the image."""
  text = instruction.attribute("window") or "{}"
  fields = dict(re.findall(r"(\w+)=([\w-]+)", text))
  size = [int(part) for part in fields.get("size", "").split("x") if part]
  ones = "x".join("1" for _ in size)
  zeros = "x".join("0_0" for _ in size)
  numbers = lambda key: [int(part) for part in fields.get(key, ones).split("x") if part]
  padding = [int(part.split("_")[0]) for part in fields.get("pad", zeros).split("x") if part]
  return {
    "window": size,
    "stride": numbers("stride"),
    "padding": padding,
    "kernel_dilation": numbers("rhs_dilate"),
    "image_dilation": numbers("lhs_dilate"),
  }


def _positions(
  image: int, output: int, *, window: int, stride: int, padding: int, kernel_dilation: int, image_dilation: int
) -> int:
  places = np.arange(output)[:, None] * stride - padding + np.arange(window)[None, :] * kernel_dilation
  return int(np.sum((places >= 0) & (places % image_dilation == 0) & (places // image_dilation < image)))


def _sizes(text: str | None) -> list[int]:
  return [int(part) for part in (text or "").strip("{}").split(",") if part]
