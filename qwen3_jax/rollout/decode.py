"""What runs on the devices: prompts into the cache, and steps that each give every running slot a token."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qwen3_jax.models.cached import Place, cached_hidden
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.rollout.sampling import Adjustments, Controls, Needs, draw_with, gumbel_noise, log_distribution
from qwen3_jax.rollout.thinking_budget import AFTER, INSIDE, NO_BUDGET, Thinking, ThinkingTokens
from qwen3_jax.sharding import constrain

_NOISE_AHEAD = 1 << 19  # numbers, at most, that are drawn for several steps at once: fewer small operations
_STEPS_AHEAD = 8  # at most; those beyond the last step are drawn for nothing
RUNNING, STOP, LENGTH, CONTEXT, NOT_FINITE = range(5)  # how a row ended


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
  """What slots hold beside their cache: arrays [R, ...]."""

  token: jax.Array  # int32: the last token; its keys are not cached yet
  length: jax.Array  # int32: tokens that are cached
  running: jax.Array  # bool
  ended: jax.Array  # int32: RUNNING, ...
  drawn: jax.Array  # int32: tokens since the request started, those inserted included: the next one's randomness
  key: jax.Array  # uint32 [R, 2]
  limit: jax.Array  # int32: tokens at most; with a thinking budget, after the thinking
  left: jax.Array  # int32: of the limit
  room: jax.Array  # int32: tokens until the context is full
  stop_ids: jax.Array  # int32 [R, stops]; -1 is none
  thinking: Thinking
  controls: Controls
  adjustments: Adjustments | None


class Produced(NamedTuple):
  """Of a step, [R]; of n steps, [n, R]."""

  tokens: jax.Array  # int32
  log_probabilities: jax.Array  # float32: of the model
  sampling_log_probabilities: jax.Array  # float32: of the distribution drawn from; 0 where inserted
  inserted: jax.Array  # bool: not the model's choice
  valid: jax.Array  # bool: whether the row produced a token in this step
  experts: jax.Array | None  # int16 [R, L, k]: whom the token before it went to; None where not recorded


class Status(NamedTuple):
  """Of rows after some steps, int32 [R]."""

  ended: jax.Array  # RUNNING, ...
  halted: jax.Array  # 1 where the thinking budget was used up


def prefill(config: ModelConfig, params: Parameters, tokens: jax.Array, place: Place, cache: Any) -> Any:
  """The cache with tokens int32 [A, T]."""
  return cached_hidden(config, params, tokens, place, cache)[2]


def decode(
  config: ModelConfig,
  ids: ThinkingTokens,
  most_steps: int,
  record_experts: bool,
  params: Parameters,
  cache: Any,
  rows: Rows,
  page_table: jax.Array | None,
  steps: jax.Array,
) -> tuple[Any, Rows, tuple[Produced, Status]]:
  """`steps`, at most `most_steps`, tokens for every running row.

  Nothing in the loop depends on all rows, so that devices which hold some of them go on by themselves.
  """
  R = rows.token.shape[0]
  empty = lambda dtype: jnp.zeros((most_steps, R), dtype)
  experts = None
  if record_experts:
    experts = jnp.zeros((most_steps, R, config.num_layers, config.num_experts_per_token), jnp.int16)
  produced = Produced(empty(jnp.int32), empty(jnp.float32), empty(jnp.float32), empty(bool), empty(bool), experts)

  needs = Needs.of(rows.controls)
  V = config.vocab_size
  block = max(1, min(_STEPS_AHEAD, most_steps, _NOISE_AHEAD // (R * V)))
  ahead = jnp.arange(block)[:, None]

  def steps_of_block(b, carry):
    rows = carry[1]
    keys = jax.vmap(jax.vmap(jax.random.fold_in), in_axes=(None, 0))(rows.key, rows.drawn + ahead)
    noise = gumbel_noise(keys, V, needs.noise)

    def step(i, carry):
      cache, rows, produced = carry
      number = b * block + i
      cache, rows, new = decode_step(config, ids, record_experts, params, cache, rows, page_table, needs, noise[i])
      return cache, rows, jax.tree.map(lambda old, x: old.at[number].set(x), produced, new)

    return jax.lax.fori_loop(0, jnp.minimum(block, steps - b * block), step, carry)

  blocks = (steps + block - 1) // block
  cache, rows, produced = jax.lax.fori_loop(0, blocks, steps_of_block, (cache, rows, produced))
  return cache, rows, (produced, Status(rows.ended, rows.thinking.halted))


def decode_step(
  config: ModelConfig,
  ids: ThinkingTokens,
  record_experts: bool,
  params: Parameters,
  cache: Any,
  rows: Rows,
  page_table: jax.Array | None,
  needs: Needs,
  noise: jax.Array,
) -> tuple[Any, Rows, Produced]:
  """One token for every running row, by Gumbel noise [R, V]; what is produced has arrays [R]."""
  place = Place(None, rows.length, rows.running.astype(jnp.int32), page_table)
  model, hidden, cache, experts = cached_hidden(config, params, rows.token[:, None], place, cache, record_experts)
  logits = constrain(model.logits(hidden[:, 0]), "batch", "vocab")
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  finite = jnp.isfinite(log_normaliser)
  safe = jnp.where(finite[:, None], logits, 0.0)
  distribution = log_distribution(safe, rows.controls, rows.adjustments, needs)
  drawn = draw_with(distribution, noise)
  tokens, place_in_sentence = rows.thinking.insert(ids, drawn)
  inserted = place_in_sentence >= 0
  of_token = lambda x: jnp.take_along_axis(x, tokens[:, None], axis=1)[:, 0]

  valid = rows.running & finite
  new = Produced(
    tokens=tokens,
    log_probabilities=of_token(safe) - log_normaliser,
    sampling_log_probabilities=jnp.where(inserted, 0.0, of_token(distribution)),
    inserted=inserted,
    valid=valid,
    experts=None if experts is None else jnp.moveaxis(experts[:, :, 0], 0, 1).astype(jnp.int16),
  )
  return cache, _advance(rows, new, rows.thinking.after(ids, tokens, place_in_sentence), finite), new


def _advance(rows: Rows, new: Produced, thinking: Thinking, finite: jax.Array) -> Rows:
  """Rows after a step; those that do not run stay as they are."""
  tokens, inserted = new.tokens, new.inserted
  free = (rows.thinking.budget < NO_BUDGET) & (inserted | (thinking.phase == INSIDE))  # not of the limit
  answers = (rows.thinking.budget < NO_BUDGET) & (thinking.phase == AFTER) & (rows.thinking.phase != AFTER)
  left = jnp.where(answers, rows.limit, rows.left - ~free)
  room = rows.room - 1
  stops = ~inserted & jnp.any(tokens[:, None] == rows.stop_ids, axis=1)
  ended = jnp.where(left <= 0, LENGTH, jnp.where(room <= 0, CONTEXT, RUNNING))
  ended = jnp.where(~finite, NOT_FINITE, jnp.where(stops, STOP, ended))
  after = dataclasses.replace(
    rows,
    token=tokens,
    length=rows.length + 1,
    running=ended == RUNNING,
    ended=ended,
    drawn=rows.drawn + 1,
    left=left,
    room=room,
    thinking=thinking,
    adjustments=None,
  )
  keep = lambda new, old: jnp.where(rows.running.reshape(-1, *(1,) * (new.ndim - 1)), new, old)
  kept = jax.tree.map(keep, after, dataclasses.replace(rows, adjustments=None))
  adjustments = rows.adjustments and rows.adjustments.after(tokens, new.valid)
  return dataclasses.replace(kept, adjustments=adjustments)
