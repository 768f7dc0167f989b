"""The HLO reader on lines that the TPU compiler printed."""

import pytest

from qwen3_jax.compilation.hlo import HBM, HOST, VMEM, parse_instruction, parse_module, parse_shape
from qwen3_jax.compilation.trip_counts import TripCounts

ALL_GATHER = (
  "%all-gather.13 = bf16[1,1024,1024]{2,1,0:T(8,128)(2,1)} all-gather(%constant_dynamic-slice_fusion.4), channel_id=16,"
  " replica_groups=[2,2]<=[2,2]T(1,0), dimensions={2}, use_global_device_ids=true,"
  ' metadata={op_name="jit(step)/jvp()/while/body/closed_call/dot_general" stack_frame_id=15},'
  ' backend_config={"flag_configs":[],"barrier_config":{"barrier_type":"CUSTOM","id":"0"}}'
)
COPY_START = (
  "%copy-start.6 = (bf16[256,1024]{1,0:T(8,128)(2,1)S(1)}, bf16[256,1024]{1,0:T(8,128)(2,1)}, u32[]{:S(2)})"
  " copy-start(%get-tuple-element.289)"
)
WHILE = (
  "%while.28 = (s32[]{:T(128)}, bf16[6,256,1024]{2,1,0:T(8,128)(2,1)}, /*index=2*/s32[]{:T(128)}) while(%tuple.51),"
  ' condition=%wide.region_1.2_spmd, body=%wide.region_0.1_spmd.sunk, backend_config={"known_trip_count":{"n":"7"}}'
)
# A loop from 0 to below 6 that counts up in a fusion; within it one from 5 down to 2 in steps of 2, whose limit comes
# in through the tuples of both loops; within that one whose end depends on data.
LOOPS = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(s32[])->s32[]}

%step (p: s32[]) -> s32[] {
  %p = s32[]{:T(128)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  ROOT %sum = s32[]{:T(128)} add(%p, %one)
}

%deep_body (t: (s32[], s32[])) -> (s32[], s32[]) {
  %t = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %a = s32[]{:T(128)} get-tuple-element(%t), index=0
  %b = s32[]{:T(128)} get-tuple-element(%t), index=1
  %c = s32[]{:T(128)} multiply(%a, %b)
  ROOT %r = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%c, %b)
}

%deep_condition (t: (s32[], s32[])) -> pred[] {
  %t = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %a = s32[]{:T(128)} get-tuple-element(%t), index=0
  %k = s32[]{:T(128)} constant(9)
  ROOT %lt = pred[]{:T(512)} compare(%a, %k), direction=LT
}

%inner_body (t: (s32[], s32[])) -> (s32[], s32[]) {
  %t = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %limit = s32[]{:T(128)} get-tuple-element(%t), index=1
  %two = s32[]{:T(128)} constant(2)
  %deep_start = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%i, %two)
  %deep = (s32[]{:T(128)}, s32[]{:T(128)}) while(%deep_start), condition=%deep_condition, body=%deep_body
  %next = s32[]{:T(128)} subtract(%i, %two)
  ROOT %r = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%next, %limit)
}

%inner_condition (t: (s32[], s32[])) -> pred[] {
  %t = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %limit = s32[]{:T(128)} get-tuple-element(%t), index=1
  ROOT %ge = pred[]{:T(512)} compare(%i, %limit), direction=GE
}

%body (t: (s32[], s32[])) -> (s32[], s32[]) {
  %t = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %copied = s32[]{:T(128)S(6)} copy(%i)
  %limit = s32[]{:T(128)} get-tuple-element(%t), index=1
  %five = s32[]{:T(128)} constant(5)
  %start = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%five, %limit)
  %inner = (s32[]{:T(128)}, s32[]{:T(128)}) while(%start), condition=%inner_condition, body=%inner_body
  %next = s32[]{:T(128)} fusion(%copied), kind=kLoop, calls=%step
  ROOT %r = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%next, %limit)
}

%condition (t: (s32[], s32[])) -> pred[] {
  %six = s32[]{:T(128)} constant(6)
  %t = (s32[]{:T(128)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %six), direction=LT
}

ENTRY %main.6_spmd (x: s32[]) -> s32[] {
  %x = s32[]{:T(128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %zero_copy = s32[]{:T(128)} copy(%zero)
  %limit = s32[]{:T(128)} constant(2)
  %start = (s32[]{:T(128)}, s32[]{:T(128)}) tuple(%zero_copy, %limit)
  %outer = (s32[]{:T(128)}, s32[]{:T(128)}) while(%start), condition=%condition, body=%body
  ROOT %out = s32[]{:T(128)} get-tuple-element(%outer), index=0
}
"""


def test_instruction():
  gather = parse_instruction(ALL_GATHER)
  assert (gather.name, gather.opcode) == ("all-gather.13", "all-gather")
  assert gather.operands == ("constant_dynamic-slice_fusion.4",)
  assert gather.bytes == 2 * 1024 * 1024
  assert gather.op_name == "jit(step)/jvp()/while/body/closed_call/dot_general"
  assert gather.attribute("dimensions") == "{2}"
  assert gather.attribute("channel_id") == "16"


def test_operands_with_shapes_before_them():
  """The form that XLA prints without compact options."""
  line = "%dot.1 = f32[4,8]{1,0} dot(f32[4,16]{1,0} %x, /*index=1*/(f32[2]{0}, s32[]) %y.2), lhs_contracting_dims={1}"
  assert parse_instruction(line).operands == ("x", "y.2")


def test_tuple_and_memory_spaces():
  start = parse_instruction(COPY_START)
  assert start.is_tuple and [array.space for array in start.shape] == [VMEM, HBM, 2]
  (host,) = parse_shape("bf16[94,4,4096,4096]{3,2,1,0:T(8,128)(2,1)S(5)}")
  assert host.space == HOST


def test_loop_calls_and_known_trip_count():
  loop = parse_instruction(WHILE)
  assert loop.called() == {"condition": ["wide.region_1.2_spmd"], "body": ["wide.region_0.1_spmd.sunk"]}
  assert [array.dims for array in loop.shape] == [(), (6, 256, 1024), ()]
  assert "known_trip_count" in loop.backend_config


@pytest.mark.parametrize(
  ("text", "plain", "padded"),
  [
    ("bf16[6,512,1024]{2,1,0:T(8,128)(2,1)}", 6 * 512 * 1024 * 2, 6 * 512 * 1024 * 2),
    ("f32[5,130]{1,0:T(8,128)}", 5 * 130 * 4, 8 * 256 * 4),
    ("f32[5,130]{0,1:T(8,128)}", 5 * 130 * 4, 128 * 136 * 4),  # the first axis is the minor one
    ("pred[32,64]{1,0:T(8,128)(4,1)S(1)}", 32 * 64, 32 * 128),
    ("s32[]{:T(128)}", 4, 4),
    ("s4[16]{0}", 8, 8),
    ("token[]", 0, 0),
    ("f8e4m3fn[3,7]{1,0}", 21, 21),
  ],
)
def test_bytes(text, plain, padded):
  (array,) = parse_shape(text)
  assert (array.bytes, array.padded_bytes) == (plain, padded)


def test_module_and_trip_counts():
  module = parse_module(LOOPS)
  assert module.entry.name == "main.6_spmd"
  assert module.entry.parameters[0].name == "x"
  trips = TripCounts(module)
  counts = {
    loop.name: trips.of(computation, loop)
    for computation in module.computations.values()
    for loop in computation
    if loop.opcode == "while"
  }
  assert counts == {"outer": 6, "inner": 2, "deep": None}  # 5, 3 are at least 2


def test_text_without_entry():
  with pytest.raises(ValueError, match="ENTRY"):
    parse_module("HloModule empty\n")
