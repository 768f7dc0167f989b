"""Operations of single instructions, against sums over every pair that is multiplied."""

import itertools

import numpy as np
import pytest

from qwen3_jax.compilation.hlo import parse_module
from qwen3_jax.compilation.matmul_flops import matmul_flops


def flops(instruction, *operands):
  """Of `ROOT instruction` with operands %a, %b ... of the given shapes."""
  names = "abcdefgh"
  lines = [f"  %{name} = {shape} parameter({index})" for index, (name, shape) in enumerate(zip(names, operands))]
  text = "\n".join(["ENTRY %main (a: f32[]) -> f32[] {", *lines, f"  ROOT %out = {instruction}", "}"])
  entry = parse_module(text).entry
  return matmul_flops(entry.root, entry)


def test_dot():
  line = "f32[4,5,7]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0},"
  assert flops(line + " rhs_contracting_dims={1}", "f32[4,5,6]{2,1,0}", "f32[4,6,7]{2,1,0}") == 2 * 4 * 5 * 6 * 7


def test_matmul_as_convolution():
  line = "bf16[256,1024]{1,0:T(8,128)(2,1)} convolution(%a, %b), dim_labels=bf_oi->bf"
  assert flops(line, "bf16[256,512]{1,0}", "bf16[1024,512]{1,0}") == 2 * 256 * 1024 * 512


def test_batched_matmul_as_dilated_convolution():
  """What the TPU compiler makes of einsum('nbd,ndf->nbf'): a spatial axis of which only the diagonal is real."""
  n, b, d, f = 8, 16, 32, 64
  line = f"f32[{n},{b},{f}]{{2,1,0}} convolution(%a, %b), window={{size={n} stride={n - 1} lhs_dilate={n}}},"
  found = flops(line + " dim_labels=0bf_0io->0bf", f"f32[{n},{b},{d}]{{2,1,0}}", f"f32[{n},{d},{f}]{{2,1,0}}")
  assert found == 2 * n * b * d * f


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (2, 1)])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (1, 3), (3, 2)])
def test_windows(stride, padding, dilation):
  """Two spatial axes: padding and the holes of dilation cost nothing."""
  image, kernel, (image_dilation, kernel_dilation) = (5, 4), (3, 2), dilation
  lengths = [
    ((size - 1) * image_dilation + 1 + sum(padding) - (window - 1) * kernel_dilation - 1) // stride + 1
    for size, window in zip(image, kernel)
  ]
  real = 1
  for size, window, length in zip(image, kernel, lengths):
    dilated = np.zeros((size - 1) * image_dilation + 1 + sum(padding), bool)
    dilated[padding[0] : padding[0] + (size - 1) * image_dilation + 1 : image_dilation] = True
    real *= sum(
      dilated[out * stride + place * kernel_dilation] for out, place in itertools.product(range(length), range(window))
    )
  pad = f"{padding[0]}_{padding[1]}"
  line = (
    f"f32[2,{lengths[0]},{lengths[1]},7]{{3,2,1,0}} convolution(%a, %b), window={{size={kernel[0]}x{kernel[1]}"
    f" stride={stride}x{stride} pad={pad}x{pad} lhs_dilate={image_dilation}x{image_dilation}"
    f" rhs_dilate={kernel_dilation}x{kernel_dilation}}}, dim_labels=b01f_01io->b01f"
  )
  found = flops(line, f"f32[2,{image[0]},{image[1]},6]{{3,2,1,0}}", f"f32[{kernel[0]},{kernel[1]},6,7]{{3,2,1,0}}")
  assert found == 2 * 2 * 6 * 7 * real


def test_grouped_convolution():
  line = "f32[2,9,8]{2,1,0} convolution(%a, %b), window={size=1}, dim_labels=b0f_0io->b0f, feature_group_count=4"
  assert flops(line, "f32[2,9,12]{2,1,0}", "f32[1,3,8]{2,1,0}") == 2 * 2 * 9 * 3 * 8


def test_ragged_dot():
  line = "bf16[128,32]{1,0} ragged-dot(%a, %b, %c), lhs_contracting_dims={1}, rhs_contracting_dims={1}"
  assert flops(line, "bf16[128,64]{1,0}", "bf16[8,64,32]{2,1,0}", "s32[8]{0}") == 2 * 128 * 64 * 32


def test_kernels_state_their_cost():
  call = 'f32[128,32]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="ragged-dot"}'
  config = ', backend_config={"custom_call_config":{"body":"abc","cost_estimate":{"flops":"524288","bytes":"1"}}}'
  assert flops(call + config, "f32[128,64]{1,0}") == 524288
  assert flops(call, "f32[128,64]{1,0}") is None
  assert flops(call.replace("f32[128,32]", "s32[9]"), "f32[128,64]{1,0}") == 0  # indices need no matrix unit
  assert flops('f32[8]{0} custom-call(), custom_call_target="AllocateBuffer"') == 0
