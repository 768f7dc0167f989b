"""Numbers as people read them."""

import pytest

from qwen3_jax.number_text import compact, duration


@pytest.mark.parametrize(
  ("number", "text"),
  [
    (0, "0"),
    (12.345, "12.3"),
    (999.4, "999"),
    (999.6, "1k"),
    (12_345, "12.3k"),
    (999_400, "999k"),
    (999_960, "1M"),
    (3.6e13, "36T"),
    (1.2e16, "12000T"),
  ],
)
def test_compact(number, text):
  assert compact(number) == text


@pytest.mark.parametrize(
  ("seconds", "text"), [(0.34, "0.3s"), (42.4, "42s"), (59.9, "1m 00s"), (3_725, "1h 02m"), (200_000, "2d 7h")]
)
def test_duration(seconds, text):
  assert duration(seconds) == text
