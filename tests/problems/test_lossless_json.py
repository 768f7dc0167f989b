"""JSON and back gives equal values of equal types."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.problems.lossless_json import pack, unpack

keys = st.text() | st.integers() | st.tuples(st.integers(), st.integers())
values = st.recursive(
  st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
  lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
  max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_round_trip(value):
  assert repr(unpack(json.loads(json.dumps(pack(value))))) == repr(value)
