"""From logits to the next token: penalties, temperature, filters, and the probabilities of what was drawn.

The order is: logit bias and penalties, temperature, top-k, then top-p and min-p of what top-k leaves. Filters look for
a threshold instead of sorting: tokens of equal probability are kept or dropped together, and rows split over a mesh by
vocabulary need sums alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_TINY = float(np.finfo(np.float32).tiny)  # less may count as zero


def _is_float32(value: Any) -> bool:
  """Whether `value` is a number that is finite in float32."""
  number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
  return number and bool(abs(value) <= float(np.finfo(np.float32).max))


@dataclasses.dataclass(frozen=True)
class SamplingParams:
  """How a request's tokens are drawn. The defaults draw from the model's own distribution, as RL does."""

  temperature: float = 1.0  # 0 takes the most likely token
  top_k: int = 0  # only so many of the most likely tokens; 0: all
  top_p: float = 1.0  # only the fewest most likely tokens that have this probability together
  min_p: float = 0.0  # only tokens at least so likely, as a share of the most likely one
  presence_penalty: float = 0.0  # off the logit of every token generated so far
  frequency_penalty: float = 0.0  # off the logit for each time that a token was generated
  repetition_penalty: float = 1.0  # divides positive logits of tokens of prompt and answer, multiplies negative ones
  logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)  # token id -> added to its logit

  def __post_init__(self):
    problems = []

    def check(name: str, holds: Callable[[Any], bool], expected: str) -> None:
      value = getattr(self, name)
      if not _is_float32(value) or not holds(value):
        problems.append(f"{name}={value!r}, expected {expected}")

    check("temperature", lambda x: x >= 0, "a finite number from 0 (greedy) on")
    check("top_k", lambda x: 0 <= x < 2**31 and x == int(x), "a whole number below 2**31, 0 for all tokens")
    check("top_p", lambda x: 0 < x <= 1, "a number in (0, 1]")
    check("min_p", lambda x: 0 <= x <= 1, "a number in [0, 1]")
    for name in ("presence_penalty", "frequency_penalty"):
      check(name, lambda x: True, "a finite number")
    check("repetition_penalty", lambda x: x >= _TINY, "a positive, finite number")
    if not isinstance(self.logit_bias, Mapping):
      raise ValueError(f"SamplingParams: logit_bias={self.logit_bias!r}, expected a mapping from token ids to numbers")
    for token, bias in self.logit_bias.items():
      whole = isinstance(token, int | np.integer) and not isinstance(token, bool)
      if not whole or token < 0 or not _is_float32(bias):
        problems.append(f"logit_bias[{token!r}]={bias!r}, expected a token id and a finite number")
    if problems:
      raise ValueError("SamplingParams: " + "; ".join(problems))

  @property
  def adjusts(self) -> bool:
    """Whether what was generated, or a bias, changes the logits."""
    return bool(
      self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1 or any(self.logit_bias.values())
    )


# What the Qwen3 report evaluates with (section 4.6), with thinking and without.
THINKING = SamplingParams(temperature=0.6, top_p=0.95, top_k=20)
NOT_THINKING = SamplingParams(temperature=0.7, top_p=0.8, top_k=20, presence_penalty=1.5)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Controls:
  """The numbers of SamplingParams for R rows: float32 [R], top_k int32 [R]."""

  temperature: jax.Array
  top_k: jax.Array
  top_p: jax.Array
  min_p: jax.Array
  presence_penalty: jax.Array
  frequency_penalty: jax.Array
  repetition_penalty: jax.Array

  @classmethod
  def of(cls, rows: list[SamplingParams]) -> Controls:
    def column(name: str) -> np.ndarray:
      return np.array([getattr(row, name) for row in rows], np.int32 if name == "top_k" else np.float32)

    return cls(**{field.name: column(field.name) for field in dataclasses.fields(cls)})  # type: ignore[arg-type]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adjustments:
  """What penalties and biases are made of, R rows of V tokens."""

  generated: jax.Array  # int32 [R, V]: how often each token was generated
  prompted: jax.Array  # bool [R, V]: whether the prompt holds it
  bias: jax.Array  # float32 [R, V]

  def after(self, tokens: jax.Array, rows: jax.Array) -> Adjustments:
    """With one more token int32 [R] where `rows` bool [R]."""
    R = tokens.shape[0]
    return dataclasses.replace(self, generated=self.generated.at[jnp.arange(R), tokens].add(rows.astype(jnp.int32)))


def adjusted(logits: jax.Array, controls: Controls, adjustments: Adjustments) -> jax.Array:
  """Logits float32 [R, V] with biases and penalties.

  Presence and frequency count what was generated, repetition what the prompt holds, too (Keskar et al. 2019).
  """
  column = lambda x: x[:, None]
  logits = logits + adjustments.bias
  seen = adjustments.prompted | (adjustments.generated > 0)
  penalty = column(controls.repetition_penalty)
  logits = jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
  logits -= column(controls.presence_penalty) * (adjustments.generated > 0)
  return logits - column(controls.frequency_penalty) * adjustments.generated


class Needs(NamedTuple):
  """What any of the rows needs, bool []; the rest is left out. On a mesh, finding it makes devices wait."""

  filters: jax.Array
  greedy: jax.Array
  noise: jax.Array

  @classmethod
  def of(cls, controls: Controls) -> Needs:
    greedy = controls.temperature == 0
    filters = ~greedy & ((controls.top_k > 0) | (controls.top_p < 1) | (controls.min_p > 0))
    return cls(jnp.any(filters), jnp.any(greedy), jnp.any(~greedy))


def log_distribution(
  logits: jax.Array, controls: Controls, adjustments: Adjustments | None = None, needs: Needs | None = None
) -> jax.Array:
  """Log-probabilities float32 [R, V] of the distribution that a row's next token is drawn from.

  A token that is filtered out has -inf; a greedy row has 0 at its most likely token (the first of equals).
  """
  needs = needs or Needs.of(controls)
  column = lambda x: x[:, None]
  if adjustments is not None:
    logits = adjusted(logits, controls, adjustments)
  greedy = controls.temperature == 0
  logits = logits / column(jnp.where(greedy, 1.0, jnp.maximum(controls.temperature, 1e-30)))  # finite logits stay so
  logits = jax.lax.cond(needs.filters, _filtered, lambda logits, _: logits, logits, controls)

  def with_greedy(logits: jax.Array) -> jax.Array:
    others = (jnp.arange(logits.shape[1]) != column(jnp.argmax(logits, axis=-1))) & column(greedy)
    return jnp.where(others, -jnp.inf, logits)

  logits = jax.lax.cond(needs.greedy, with_greedy, lambda logits: logits, logits)
  return jax.nn.log_softmax(logits, axis=-1)


def draw(log_probabilities: jax.Array, keys: jax.Array, needs_noise: jax.Array | bool = True) -> jax.Array:
  """A token int32 [R] of each row's distribution [R, V], by keys uint32 [R, 2]: the row's own randomness alone.

  `needs_noise`: bool [], False where every row has one token.
  """
  return draw_with(log_probabilities, gumbel_noise(keys, log_probabilities.shape[1], needs_noise))


def draw_with(log_probabilities: jax.Array, noise: jax.Array) -> jax.Array:
  """A token int32 [R] of each row's distribution, by Gumbel noise [R, V]."""
  return jnp.argmax(log_probabilities + noise, axis=-1).astype(jnp.int32)


def gumbel_noise(keys: jax.Array, V: int, needed: jax.Array | bool = True) -> jax.Array:
  """float32 [..., V] by keys uint32 [..., 2]; zeros unless `needed`."""
  noise = functools.partial(_gumbel, V=V)
  for _ in range(keys.ndim - 1):  # the axes stay as they are: a merged one would be gathered from the mesh
    noise = jax.vmap(noise)
  return jax.lax.cond(needed, noise, lambda keys: jnp.zeros((*keys.shape[:-1], V)), keys)


def _gumbel(key: jax.Array, V: int) -> jax.Array:
  """Gumbel noise [V] of 32 random bits each: with the 23 of jax.random.gumbel a long tail is drawn far too rarely."""
  uniform = (jax.random.bits(key, (V,), jnp.uint32).astype(jnp.float32) + 0.5) * 2.0**-32
  return -jnp.log(-jnp.log1p(-jnp.minimum(uniform, 1 - 2.0**-24)))  # below 1, where the noise would be -inf


def _filtered(logits: jax.Array, controls: Controls) -> jax.Array:
  column = lambda x: x[:, None]
  V = logits.shape[1]
  most = jnp.where(controls.top_k > 0, jnp.minimum(controls.top_k, V), V)
  logits = _above(logits, lambda above: jnp.sum(above, axis=-1) >= most)
  probabilities = jax.nn.softmax(logits, axis=-1)
  share = jnp.where(controls.top_p < 1, jnp.maximum(controls.top_p, _TINY), 2.0)  # 2 is never reached: all are kept
  kept = _above(logits, lambda above: jnp.sum(jnp.where(above, probabilities, 0), axis=-1) >= column(share)[:, 0])
  peak = jnp.max(probabilities, axis=-1, keepdims=True)
  return jnp.where(probabilities >= column(controls.min_p) * peak, kept, -jnp.inf)


def _above(logits: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Logits [R, V] down to the highest threshold at which `enough(above [R, V]) -> bool [R]` holds; else -inf.

  Floats are compared as integers of the same order, whose 32 bits are found one by one.
  """
  bits = jax.lax.bitcast_convert_type(jnp.where(logits == 0, 0.0, logits), jnp.int32)  # -0.0 as 0.0
  order = jnp.where(bits < 0, ~bits, bits | jnp.int32(-(2**31)))
  order = jax.lax.bitcast_convert_type(order, jnp.uint32)

  def step(i, threshold):
    candidate = threshold | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
    return jnp.where(enough(order >= candidate[:, None]), candidate, threshold)

  threshold = jax.lax.fori_loop(0, 32, step, jnp.zeros(logits.shape[0], jnp.uint32))
  return jnp.where(order >= threshold[:, None], logits, -jnp.inf)
