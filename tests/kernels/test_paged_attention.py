"""Paged attention against float64, with NaN wherever no sequence has a token."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.paged_attention import api, pallas_tpu, reference, xla
from kernels.paged_attention.items import tokens_of_item
from kernels.paged_attention.pages import quantised

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "int8": jnp.int8}


class Case(NamedTuple):
  """Arguments of `paged_attention`, and the keys and values of each sequence."""

  query: jax.Array
  pages: api.Pages
  page_table: jax.Array
  lengths: jax.Array
  query_starts: jax.Array
  keys: list[np.ndarray]
  values: list[np.ndarray]

  @property
  def arguments(self):
    return self[:5]


def unwritten(*shape_and_dtype):
  """Pages of NaN; int8 ones by their scales."""
  return jax.tree.map(
    lambda x: jnp.full_like(x, 99 if x.dtype == jnp.int8 else jnp.nan), api.empty_pages(*shape_and_dtype)
  )


def make(sequences, N, K, H, page_size, dtype, padding=0, query_dtype=None, seed=0):
  """`sequences`: (length, new tokens) of each. Pages are dealt at random; `padding` rows follow the last sequence."""
  rng = np.random.default_rng(seed)
  used = [-(-length // page_size) for length, _ in sequences]
  P = sum(used) + 3
  order = rng.permutation(P)
  page_table = np.full((len(sequences), max(*used, 1) + 1), 10**6, np.int32)  # no such page: not to be read
  keys, values, slots, taken = [], [], [], 0
  for r, (length, _) in enumerate(sequences):
    page_table[r, : used[r]] = order[taken : taken + used[r]]
    taken += used[r]
    place = np.arange(length)
    slots.append(page_table[r, place // page_size] * page_size + place % page_size)
    keys.append(rng.normal(size=(length, K, H)))
    values.append(rng.normal(size=(length, K, H)))
  together = lambda x: jnp.asarray(np.concatenate(x), jnp.float32)
  pages = jax.jit(api.write)(
    unwritten(P, K, page_size, H, dtype), together(keys), together(values), jnp.asarray(np.concatenate(slots))
  )
  new = [0, *(new for _, new in sequences)]
  query = rng.normal(size=(sum(new) + padding, N, H))
  query_dtype = query_dtype or (jnp.bfloat16 if dtype == jnp.int8 else dtype)
  return Case(
    jnp.asarray(query, query_dtype),
    pages,
    jnp.asarray(page_table),
    jnp.asarray([length for length, _ in sequences], jnp.int32),
    jnp.asarray(np.cumsum(new), jnp.int32),
    keys,
    values,
  )


def in_float64(case):
  """The reference on the same pages."""
  with jax.enable_x64(True):
    wide = lambda x: x if x is None else jnp.asarray(np.asarray(x.astype(jnp.float32)), jnp.float64)
    pages = api.Pages(*map(wide, case.pages))
    return np.asarray(jax.jit(reference.attend)(wide(case.query), pages, *case.arguments[2:]))


def assert_close(ours, wanted, dtype):
  """Within the rounding of weights and results to query's dtype, or of float32 sums."""
  rounding = 2.0 ** (-7 if dtype == jnp.bfloat16 else -19)
  atol = rounding * max(1.0, np.abs(wanted).max())
  np.testing.assert_allclose(np.asarray(ours.astype(jnp.float32)), wanted, rtol=rounding, atol=atol)


def assert_equals_reference(ours, case):
  wanted = in_float64(case)
  assert ours.dtype == case.query.dtype
  assert_close(ours, wanted, ours.dtype)
  with pytest.raises(AssertionError):
    assert_close(jnp.zeros_like(ours), wanted, ours.dtype)


# Lengths and new tokens of sequences, for pages of 8.
SEQUENCES = {
  "one_token": [(1, 1)],
  "decode": [(13, 1), (1, 1), (8, 1), (9, 1), (40, 1), (32, 1), (31, 1)],
  "chunk": [(45, 20)],
  "whole_prompt": [(37, 37)],
  "page_boundary": [(16, 8), (17, 9), (15, 7), (24, 24)],
  "mixed": [(50, 1), (33, 29), (8, 1), (16, 16), (7, 3), (41, 1)],
  "empty": [(0, 0), (12, 5), (20, 0), (0, 0), (9, 1), (3, 0)],
  "idle": [(11, 1), (0, 1), (0, 3), (6, 2)],
}
PADDING = {"mixed": 5, "empty": 2, "idle": 1}


@pytest.mark.parametrize("name", SEQUENCES)
def test_reference_equals_loops(name):
  """One token and head at a time, from keys and values that were never in a page."""
  N, K, H = 4, 2, 8
  case = make(SEQUENCES[name], N, K, H, 8, jnp.float32, PADDING.get(name, 0))
  query = np.asarray(case.query, np.float64)
  wanted = np.zeros_like(query)
  row = 0
  for (length, new), keys, values in zip(SEQUENCES[name], case.keys, case.values):
    for position in range(length - new, length):
      for n in range(N if position >= 0 else 0):
        k = n // (N // K)
        scores = keys[: position + 1, k] @ query[row, n] / np.sqrt(H)
        weights = np.exp(scores - scores.max())
        wanted[row, n] = weights @ values[: position + 1, k] / weights.sum()
      row += 1
  assert_close(jnp.asarray(in_float64(case), jnp.float32), wanted, jnp.float32)
  assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize(
  "name,dtype", [*((name, "f32") for name in SEQUENCES), *((name, "int8") for name in PADDING), ("mixed", "bf16")]
)
def test_equals_reference(name, dtype, monkeypatch):
  monkeypatch.setattr(xla, "_KEYS", 16)
  monkeypatch.setattr(xla, "_TOKENS", 8)
  case = make(SEQUENCES[name], 4, 2, 16, 8, DTYPES[dtype], PADDING.get(name, 0))
  ours = jax.jit(api.paged_attention)(*case.arguments)
  assert_equals_reference(ours, case)
  rows = int(case.query_starts[-1])
  assert not np.asarray(ours[rows:]).any()
  if name == "idle":
    assert not np.asarray(ours[1:5]).any()


@pytest.mark.parametrize("N,K", [(3, 3), (4, 2), (8, 1), (10, 2)])
def test_groups(N, K):
  case = make(SEQUENCES["mixed"], N, K, 16, 8, jnp.float32)
  assert_equals_reference(jax.jit(api.paged_attention)(*case.arguments), case)


def test_float32_queries_on_narrow_pages():
  for dtype in (jnp.bfloat16, jnp.int8):
    case = make(SEQUENCES["mixed"], 4, 2, 16, 8, dtype, query_dtype=jnp.float32)
    assert_equals_reference(jax.jit(api.paged_attention)(*case.arguments), case)


# For pages of 64 and blocks of 128 keys; some end at a page's end or a block's, or one token beside it.
KERNEL_SEQUENCES = {
  "decode": [(300, 1), (1, 1), (64, 1), (65, 1), (128, 1), (0, 0), (127, 1), (129, 1), (256, 1)],
  "chunk": [(290, 75)],
  "mixed": [(150, 1), (129, 129), (64, 1), (0, 0), (0, 1), (192, 64), (67, 3), (200, 0), (141, 1)],
}
# Sequences, N, K, key heads of a step, dtype of pages, dtype of queries.
KERNEL_CASES = {
  "decode, f32": ("decode", 2, 2, 2, "f32", "f32"),
  "decode, bf16": ("decode", 4, 2, 2, "bf16", "bf16"),
  "decode, int8": ("decode", 8, 1, 1, "int8", "bf16"),
  "chunk, bf16": ("chunk", 4, 2, 2, "bf16", "bf16"),
  "chunk, int8": ("chunk", 2, 2, 1, "int8", "f32"),
  "mixed, f32": ("mixed", 4, 2, 1, "f32", "f32"),
  "mixed, bf16": ("mixed", 8, 1, 1, "bf16", "bf16"),
  "mixed, int8": ("mixed", 10, 2, 1, "int8", "bf16"),
}


def of_kernel(case, interpret):
  return jax.jit(lambda *arguments: pallas_tpu.attend(*arguments, interpret=interpret))(*case.arguments)


@pytest.mark.parametrize("name", KERNEL_CASES)
def test_kernel_equals_reference(name, monkeypatch, interpret):
  sequences, N, K, heads, dtype, query_dtype = KERNEL_CASES[name]
  page_size = 64
  usual = pallas_tpu._blocks
  small = lambda *arguments: usual(*arguments)._replace(heads=heads, pages=128 // page_size)
  monkeypatch.setattr(pallas_tpu, "_blocks", small)
  monkeypatch.setattr(pallas_tpu, "_STRIP", 32)
  monkeypatch.setattr(pallas_tpu, "_UNROLLED", 3)
  padding = 3 if sequences == "mixed" else 0
  case = make(KERNEL_SEQUENCES[sequences], N, K, 128, page_size, DTYPES[dtype], padding, DTYPES[query_dtype])
  ours = of_kernel(case, interpret)
  assert_equals_reference(ours, case)
  assert not np.asarray(ours[int(case.query_starts[-1]) :]).any()


def test_kernel_with_its_own_blocks(interpret):
  """Pages that fill lanes only several together, and fewer of them than a block holds."""
  case = make([(40, 1), (100, 60), (33, 1)], 4, 2, 128, 32, jnp.int8)
  assert pallas_tpu.supported(case.query, case.pages, case.page_table)
  block = pallas_tpu._blocks(case.query, case.pages, case.page_table)
  assert block.pages == 8 and block.few < block.rows
  assert_equals_reference(of_kernel(case, interpret), case)


def test_kernel_takes():
  def takes(H=128, page_size=64, dtype=jnp.bfloat16, query_dtype=jnp.bfloat16, width=8):
    pages = api.Pages(*[jax.ShapeDtypeStruct((9, 2, page_size, H), dtype)] * 2)
    query = jax.ShapeDtypeStruct((4, 4, H), query_dtype)
    return pallas_tpu.supported(query, pages, jax.ShapeDtypeStruct((64, width), jnp.int32))

  assert takes() and takes(page_size=16) and takes(page_size=32, dtype=jnp.int8) and takes(width=2048)
  assert not takes(H=64) and not takes(page_size=16, dtype=jnp.int8) and not takes(page_size=20)
  assert not takes(query_dtype=jnp.float16) and not takes(width=2049)


# N, K, page size, new tokens, sequences, tokens of a sequence at most, dtype.
PRODUCTION = {
  "0.6B, decode": (16, 8, 64, 64, 64, 4096, "bf16"),
  "0.6B, decode, 32k, int8": (16, 8, 64, 64, 64, 32768, "int8"),
  "0.6B, chunk": (16, 8, 64, 2048, 1, 32768, "bf16"),
  "235B, decode, 32k": (64, 4, 128, 64, 64, 32768, "bf16"),
  "235B, decode, int8": (64, 4, 128, 64, 64, 4096, "int8"),
  "235B, mixed, int8": (64, 4, 128, 2048 + 63, 64, 4096, "int8"),
  "235B, tensor, largest page table": (16, 1, 64, 256, 256, 32768, "bf16"),
}


@pytest.mark.parametrize("name", PRODUCTION)
def test_kernel_compiles(name, compile_for_tpu):
  N, K, page_size, S, R, context, dtype = PRODUCTION[name]
  P = 2**33 // (K * page_size * 128 * jnp.dtype(DTYPES[dtype]).itemsize)  # a copy, even of scales, would show
  pages = jax.tree.leaves(jax.eval_shape(lambda: api.empty_pages(P, K, page_size, 128, DTYPES[dtype])))
  ids = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)
  attend = lambda query, table, lengths, starts, *pages: api.paged_attention(
    query, api.Pages(*pages), table, lengths, starts
  )
  query = jax.ShapeDtypeStruct((S, N, 128), jnp.bfloat16)
  program = compile_for_tpu(attend, query, ids(R, context // page_size), ids(R), ids(R + 1), *pages)
  text = program.as_text()
  assert text.count("tpu_custom_call") == 1 and " while(" not in text
  copied = program.memory_analysis().temp_size_in_bytes
  assert copied < 2**28, f"{copied} bytes: pages are copied"


@pytest.mark.parametrize("dtype,S", [("bf16", 2048), ("int8", 64)])
def test_write_copies_no_pages(dtype, S, compile_for_tpu):
  pages, tree = jax.tree.flatten(jax.eval_shape(lambda: api.empty_pages(16384, 4, 128, 128, DTYPES[dtype])))
  new = jax.ShapeDtypeStruct((S, 4, 128), jnp.bfloat16)
  write = lambda keys, values, slots, *pages: api.write(jax.tree.unflatten(tree, pages), keys, values, slots)
  program = compile_for_tpu(write, new, new, jax.ShapeDtypeStruct((S,), jnp.int32), *pages)
  assert program.memory_analysis().temp_size_in_bytes < 2**24


@pytest.mark.parametrize("dtype", DTYPES)
def test_write(dtype):
  """Tokens land in their slots, and nothing else changes."""
  rng = np.random.default_rng(0)
  P, K, page_size, H = 5, 3, 4, 8
  old = unwritten(P, K, page_size, H, DTYPES[dtype])
  keys, values = (jnp.asarray(rng.normal(size=(6, K, H)), jnp.float32) for _ in range(2))
  slots = np.asarray([7, -1, 0, 19, 8, -5])
  new = jax.jit(api.write)(old, keys, values, jnp.asarray(slots, jnp.int32))
  expected = jax.tree.map(lambda x: np.array(x.astype(jnp.float32)), old)
  written = [x.astype(DTYPES[dtype]) for x in (keys, values)]
  if dtype == "int8":
    pairs = [quantised(x) for x in (keys, values)]
    written = [x for x, _ in pairs] + [scales for _, scales in pairs]
  for s, slot in enumerate(slots):
    for into, token in zip(expected, written):
      if slot >= 0 and into is not None:
        into[slot // page_size, :, slot % page_size] = np.asarray(token[s].astype(jnp.float32))
  for ours, before, wanted in zip(new, old, expected):
    if before is None:
      assert ours is None
    else:
      assert ours.dtype == before.dtype
      np.testing.assert_array_equal(np.asarray(ours.astype(jnp.float32)), wanted)


def test_int8_error_is_bounded():
  """Half a step of the head's largest number; a head of zeros stays zero."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(50, 4, 32)) * np.exp(rng.normal(size=(50, 4, 1)) * 3)
  x[3, 1] = 0
  x = jnp.asarray(x, jnp.float32)
  steps, scales = quantised(x)
  back = np.asarray(steps, np.float64) * np.asarray(scales, np.float64)[..., None]
  error = np.abs(back - np.asarray(x, np.float64)).max(-1)
  bound = np.abs(np.asarray(x, np.float64)).max(-1) / 254
  assert (error <= bound * (1 + 1e-5)).all() and error.max() > 0
  assert not back[3, 1].any()
  assert np.abs(np.asarray(steps)).max(-1).tolist() == np.where(np.asarray(scales) > 0, 127, 0).tolist()


def test_int8_attention_is_near_that_of_its_keys():
  exact = make(SEQUENCES["mixed"], 4, 2, 64, 8, jnp.float32)
  rounded = make(SEQUENCES["mixed"], 4, 2, 64, 8, jnp.int8, query_dtype=jnp.float32)
  ours = np.asarray(jax.jit(api.paged_attention)(*rounded.arguments))
  error = np.abs(ours - in_float64(exact)).max()
  assert 1e-4 < error < 0.05


def test_shapes_are_checked():
  case = make(SEQUENCES["mixed"], 4, 2, 16, 8, jnp.float32)
  query, pages, page_table, lengths, starts = case.arguments
  with pytest.raises(ValueError, match="do not fit"):
    api.paged_attention(query[:, :3], pages, page_table, lengths, starts)
  with pytest.raises(ValueError, match="do not fit"):
    api.paged_attention(query[..., :8], pages, page_table, lengths, starts)
  with pytest.raises(ValueError, match="query_starts"):
    api.paged_attention(query, pages, page_table, lengths, starts[:-1])
  with pytest.raises(ValueError, match="page_table"):
    api.paged_attention(query, pages, page_table[1:], lengths, starts)
  with pytest.raises(ValueError, match="do not fit"):
    api.paged_attention(query, pages._replace(values=pages.values[:-1]), page_table, lengths, starts)
  with pytest.raises(ValueError, match="scales"):
    api.paged_attention(query, pages._replace(key_scales=pages.keys[..., 0]), page_table, lengths, starts)
  whole = pages._replace(keys=pages.keys.astype(jnp.int32), values=pages.values.astype(jnp.int32))
  with pytest.raises(ValueError, match="int32"):
    api.paged_attention(query, whole, page_table, lengths, starts)
  with pytest.raises(ValueError, match="slots"):
    api.write(pages, pages.keys[0].swapaxes(0, 1), pages.values[0].swapaxes(0, 1), jnp.zeros(3, jnp.int32))


def test_tokens_of_an_item():
  assert [tokens_of_item(S, R, 64) for S, R in ((64, 64), (1, 8), (127, 64), (300, 64), (2048, 1))] == [1, 1, 1, 4, 64]
