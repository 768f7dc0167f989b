"""Continuous batching: requests in, results out, slots refilled as they end.

The engine runs the training model's own layers on a cache. A step of the engine admits what waits, prefills it, and
runs a few decoding steps in one program; between steps the host reads a few numbers per slot. Every program has a
shape from a short list of buckets, so that nothing is compiled once each has been.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.rollout import decode as programs
from qwen3_jax.rollout.cache import page_bytes
from qwen3_jax.rollout.decode import Produced, Rows, Status
from qwen3_jax.rollout.dense_slots import DenseSlots
from qwen3_jax.rollout.engine_sequence import EngineSequence
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.free_slots import FreeSlots
from qwen3_jax.rollout.paged_slots import PagedSlots
from qwen3_jax.rollout.prefill_batches import PrefillBatch, PrefillBatches
from qwen3_jax.rollout.programs import engine_programs
from qwen3_jax.rollout.request import FinishReason, Request, Result
from qwen3_jax.rollout.rows import packed, rows_of
from qwen3_jax.rollout.slot_cache import Copy, SlotCache
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.sharding import batch_shards

_REASONS: dict[int, FinishReason] = {
  programs.STOP: "stop",
  programs.LENGTH: "length",
  programs.CONTEXT: "context",
  programs.NOT_FINITE: "not_finite",
}


class Engine:
  """Generates for many requests at once, with one set of parameters at a time.

  A request's tokens do not depend on the others, on the number of slots or on the mesh, up to rounding of the logits.

  Args:
    config: of the model; its dtype is that of the parameters and the computation here.
    mesh: of the axes data, expert and tensor, over which `sharding.DECODING_RULES` lay parameters and slots; None: one
      device.
    thinking: ids of the thinking tokens, for budgets.
  """

  def __init__(
    self,
    config: ModelConfig,
    settings: EngineSettings | None = None,
    *,
    mesh: Mesh | None = None,
    thinking: ThinkingTokens | None = None,
  ):
    settings = settings or EngineSettings()
    settings.check(config, mesh)
    self._shards = batch_shards(mesh)
    up = lambda n: -(-n // self._shards) * self._shards
    slots = up(settings.slots)
    self.settings = dataclasses.replace(settings, slots=slots, prefill_rows=up(min(settings.prefill_rows, slots)))
    self.config, self.mesh, self._ids = config, mesh, thinking or ThinkingTokens()
    on_cpu = (jax.devices() if mesh is None else mesh.devices.flat)[0].platform == "cpu"
    self.paged = settings.cache == "paged" or (settings.cache == "auto" and not on_cpu)
    self._params: Parameters | None = None
    self._programs = engine_programs(config, self._ids, self.settings, mesh, not (on_cpu or config.unroll_layers))
    self._prefills = PrefillBatches(self.settings, self._shards)
    self._cache: SlotCache | None = None
    self._rows: Rows | None = None
    self._waiting: collections.deque[EngineSequence] = collections.deque()
    self._slots: list[EngineSequence | None] = [None] * slots
    self._held: dict[int, EngineSequence] = {}
    self._finished: dict[int, EngineSequence] = {}
    self._next_id = 0

  # Parameters

  def update(self, params: Parameters) -> None:
    """Takes parameters [of `models.transformer.parameters`] in any dtype and sharding; what runs goes on with them.

    They are cast and moved on the devices. Nothing that other parameters cached is used for later requests.
    """
    self._params = self._programs.layout(params)

  def rest(self) -> None:
    """Frees parameters and cache, until `update`; then it is as new: what was rounded depends on no earlier request.

    Raises ValueError while anything waits, runs or is held.
    """
    if self._waiting or any(self._slots) or self._held:
      raise ValueError("Engine.rest: there are requests")
    self._params = self._cache = self._rows = None

  # Requests

  def submit(self, request: Request) -> int:
    """Queues a request -> its number. Raises ValueError for what can never run."""
    self.check(request)
    sequence = EngineSequence(self._next_id, request)
    self._next_id += 1
    self._waiting.append(sequence)
    return sequence.id

  def check(self, request: Request) -> None:
    """Raises ValueError for what can never run."""
    request.check(self.config, self.settings, self._ids)

  def run(
    self, requests: Iterable[Request], on_progress: Callable[[int, int], None] = lambda done, total: None
  ) -> list[Result]:
    """Results in the order of requests, the longest of which start first."""
    requests = list(requests)
    order = sorted(range(len(requests)), key=lambda i: -requests[i].max_new_tokens)  # stable: groups stay together
    ids: dict[int, int] = {}
    for i in order:
      ids[self.submit(requests[i])] = i
    results: dict[int, Result] = {}
    try:
      while len(results) < len(requests):
        for id in self.step():
          if id in ids:
            results[ids[id]] = self.take(id)
            on_progress(len(results), len(requests))
    except BaseException:
      for id in ids:
        self.cancel(id)
      raise
    return [results[i] for i in range(len(requests))]

  def cancel(self, id: int) -> None:
    """Drops a request in any state, and its result."""
    self._finished.pop(id, None)
    self._waiting = collections.deque(s for s in self._waiting if s.id != id)
    for sequence in self._slots:
      if sequence is not None and sequence.id == id:
        self._stop_row(sequence)
        self._free(sequence)
    self._held.pop(id, None)

  def take(self, id: int) -> Result:
    """The result of a request that ended."""
    return self._finished.pop(id).result

  def result(self, id: int) -> Result:
    """What there is of a request's result, while it runs, is held or has ended."""
    return self._find(id).result

  def extend(self, id: int, tokens: Sequence[int], max_new_tokens: int) -> None:
    """Appends tokens the model did not write to a held request, and lets it answer again: another turn.

    Raises ValueError, and changes nothing, if they do not fit the context or the vocabulary.
    """
    sequence = self._held[id]
    request = dataclasses.replace(sequence.request, max_new_tokens=max_new_tokens)  # says what is wrong
    outside = [token for token in tokens if not 0 <= token < self.config.vocab_size]
    if outside:
      raise ValueError(f"a turn with the token id {outside[0]}, outside of the vocabulary of {self.config.vocab_size}")
    longest = self.settings.max_length
    if len(sequence.tokens) + len(tokens) >= longest:
      raise ValueError(f"a turn of {len(tokens)} tokens after {len(sequence.tokens)} does not fit {longest} tokens")
    del self._held[id]
    sequence.result.append_given(list(tokens))
    sequence.result.finish_reason = None
    sequence.tokens += tokens
    sequence.turn_start = len(sequence.tokens)
    sequence.request = request
    sequence.held = False
    self._waiting.appendleft(sequence)  # its slot, if it still has it, waits for it

  def release(self, id: int) -> Result:
    """Ends a held request -> its result."""
    sequence = self._held.pop(id)
    self._free(sequence)
    return sequence.result

  @property
  def busy(self) -> bool:
    """Whether anything waits or runs."""
    return bool(self._waiting) or self.running

  @property
  def running(self) -> bool:
    """Whether anything is being decoded: not what waits for a slot, nor what is held."""
    return bool(self._running())

  def step(self) -> list[int]:
    """Admits, prefills and decodes a little -> the requests whose answers ended: to be taken, or extended if held."""
    if self._params is None:
      raise ValueError("Engine.step: no parameters yet; call update first")
    self._admit()
    steps = self._steps()
    self._make_room(steps)
    running = self._running()
    return self._collect(running, *self._run_decode(steps)) if running else []

  @property
  def slots(self) -> int:
    """Sequences that are decoded at a time."""
    return self.settings.slots

  # What a step does

  def _running(self) -> list[EngineSequence]:
    return [s for s in self._slots if s is not None and not s.held]

  def _steps(self) -> int:
    """Decoding steps until the host looks again: while requests wait, until some slots may be free.

    A tenth of them, since to look, and to prefill, takes as long as a step or two.
    """
    left = sorted(map(self._left, self._running())) or [1]
    some = left[len(left) // 10]
    if self._waiting:
      return min(self.settings.steps, some)
    return self._started().steps(self._longest(), min(self.settings.most_steps, left[-1]))

  def _left(self, sequence: EngineSequence) -> int:
    """Tokens that a running request may still get, at most."""
    request = sequence.request
    left = request.max_new_tokens - (len(sequence.tokens) - sequence.turn_start)
    if request.thinking_budget is not None:
      left += request.thinking_budget + len(self._ids.sentence) + 2
    return max(1, min(left, self.settings.max_length - len(sequence.tokens)))

  def _longest(self) -> int:
    """Tokens of the longest sequence that has a slot."""
    return max((len(s.tokens) for s in self._slots if s is not None), default=0)

  def _started(self) -> SlotCache:
    """The cache; it and the rows are made when they are needed first."""
    if self._cache is None:
      self._rows = self._programs.empty_rows(self.slots)
      if self.paged:
        self._cache = PagedSlots(self._programs, self.settings, self._shards, self._most_pages())
      else:
        self._cache = DenseSlots(self._programs, self.settings, self._shards)
    return self._cache

  def _most_pages(self) -> int | None:
    """Pages of each layer that a device of a shard can hold in `cache_bytes`; None: any number."""
    if not self.settings.cache_bytes:
      return None
    tensor = 1 if self.mesh is None else self.mesh.shape["tensor"]
    dtype = self.settings.cache_dtype or self.config.dtype
    return self.settings.cache_bytes // (page_bytes(self.config, self.settings.page_size, dtype) // tensor)

  def warm_up(self) -> None:
    """Compiles every program that requests may need, so that none is compiled later. Before anything is submitted."""
    if self._params is None or self.busy:
      raise ValueError("Engine.warm_up: needs parameters and no requests")
    cache = self._started()
    A = self.settings.prefill_rows
    self._insert([None] * A, np.full(A, self.slots, np.int32))
    self._stop_row()
    jax.device_get(self._programs.row(self._rows, np.int32(0)))
    for _ in cache.shapes():
      for batch in self._prefills.shapes():
        self._run_prefill(batch)
      self._run_decode(1)

  def _admit(self) -> None:
    """Gives slots to what waits, as long as there are slots and room; the cache then fits those and the next steps."""
    cache = self._started()
    waiting, self._waiting = self._waiting, collections.deque()
    full = False
    admitted: list[EngineSequence] = []
    free = FreeSlots(self._slots, self._slots_of_shard)
    for sequence, slot in [(s, s.slot) for s in waiting]:
      if slot is None:
        slot = None if full else free.best(sequence, cache.has_room)
        if slot is None:
          full = True  # later ones do not overtake
          self._waiting.append(sequence)
          continue
      elif sequence.slot is None:  # a further turn, which had one until an older request took its pages: it waits again
        continue
      sequence.slot = slot
      self._slots[slot] = sequence
      admitted.append(sequence)
      if self._grow(sequence, len(sequence.tokens) + 1):
        free = FreeSlots(self._slots, self._slots_of_shard)
      else:
        free.fill(slot, sequence)
    admitted = [s for s in admitted if s.slot is not None]
    cache.follow(self._longest())
    if not admitted:
      return
    self._fill(admitted)
    A = self.settings.prefill_rows
    for start in range(0, len(admitted), A):
      some = admitted[start : start + A]
      slots = np.full(A, self.slots, np.int32)
      slots[: len(some)] = [s.known_slot for s in some]
      self._insert([*some, *[None] * (A - len(some))], slots)
      for sequence in some:
        sequence.decoding = True

  @property
  def _slots_of_shard(self) -> int:
    return self.slots // self._shards

  def _shard(self, sequence: EngineSequence) -> int:
    return sequence.known_slot // self._slots_of_shard

  def _fill(self, admitted: list[EngineSequence]) -> None:
    """The cache with all tokens but the last of each; of requests with one prompt, those of the first are copied."""
    copies: list[tuple[EngineSequence, EngineSequence]] = []
    leaders: list[EngineSequence] = []
    new = {s.id for s in admitted}
    holders = {(s.prompt, self._shard(s)): s for s in self._slots if s is not None and s.id not in new}
    for sequence in admitted:
      source = holders.setdefault((sequence.prompt, self._shard(sequence)), sequence)
      if source is not sequence and sequence.is_fresh:
        copies.append((source, sequence))
      else:
        leaders.append(sequence)
    for batch in self._prefills.of(leaders):
      self._run_prefill(batch)
    for _, sequence in copies:
      sequence.cached = len(sequence.tokens) - 1
    self._started().copy([Copy(source.known_slot, target.known_slot, target.cached) for source, target in copies])

  def _run_prefill(self, batch: PrefillBatch) -> None:
    cache = self._started()
    place = cache.place(batch.slots, batch.starts, batch.counts)
    cache.arrays = self._programs.prefill(self._params, batch.tokens, place, cache.arrays)

  def _run_decode(self, steps: int) -> tuple[Produced, Status]:
    cache = self._started()
    arguments = (self._params, cache.arrays, self._rows, cache.table, np.int32(steps))
    cache.arrays, self._rows, news = self._programs.decode(*arguments)
    return jax.device_get(news)

  def _make_room(self, steps: int) -> None:
    """For what the next steps add; where there is too little, the youngest give theirs up and wait."""
    for sequence in sorted(self._running(), key=lambda s: s.id):
      if sequence.slot is not None:
        self._grow(sequence, min(sequence.cached + steps + 1, self.settings.max_length))

  def _grow(self, sequence: EngineSequence, tokens: int) -> bool:
    """Room for so many tokens -> whether any request gave up its slot for it: younger ones, else this one."""
    cache, slot = self._started(), sequence.known_slot
    suspended = False
    while sequence.slot is not None and not cache.grow(slot, tokens):
      shard = self._shard(sequence)
      others = [s for s in self._slots if s is not None and s.id > sequence.id and self._shard(s) == shard]
      self._suspend(max(others, key=lambda s: s.id, default=sequence))
      suspended = True
    return suspended

  def _suspend(self, sequence: EngineSequence) -> None:
    """Frees a slot; its request goes on later, from its tokens and what its row held."""
    if not sequence.held:
      if sequence.decoding:
        sequence.row = jax.device_get(self._programs.row(self._rows, np.int32(sequence.known_slot)))
        self._stop_row(sequence)
      self._waiting.appendleft(sequence)
    self._free(sequence)

  def _free(self, sequence: EngineSequence) -> None:
    if sequence.slot is None:
      return
    self._started().release(sequence.slot)
    self._slots[sequence.slot] = None
    sequence.slot, sequence.cached, sequence.decoding = None, 0, False

  def _stop_row(self, *sequences: EngineSequence) -> None:
    slots = np.full(self.slots, self.slots, np.int32)
    slots[: len(sequences)] = [s.known_slot for s in sequences]
    self._rows = self._programs.stop(self._rows, slots)

  def _collect(self, running: list[EngineSequence], produced: Produced, status: Status) -> list[int]:
    """What the steps produced, into results; slots of what ended become free."""
    done: list[EngineSequence] = []
    stopped: list[EngineSequence] = []
    counts = produced.valid.sum(axis=0).tolist()  # a row runs from the first step on, until it stops
    tokens, log_probabilities, of_sampling, inserted = (x.T.tolist() for x in produced[:4])
    for sequence in running:
      slot, result = sequence.known_slot, sequence.result
      n = counts[slot]
      new = tokens[slot][:n]
      sequence.tokens += new
      sequence.cached += n
      result.tokens += new
      result.log_probabilities += log_probabilities[slot][:n]
      result.sampling_log_probabilities += of_sampling[slot][:n]
      result.sampled += [not x for x in inserted[slot][:n]]
      result.experts += [None] * n if produced.experts is None else list(produced.experts[:n, slot])
      result.thinking_halted |= bool(status.halted[slot])
      reason = _REASONS.get(int(status.ended[slot]))
      if sequence.request.ends_at is not None and new:
        keep = sequence.request.ends_at(new)
        if keep is not None:
          if reason is None:
            stopped.append(sequence)
          reason = "stop_string"
          result.cut(len(result.tokens) - len(new) + keep)
          del sequence.tokens[len(sequence.tokens) - len(new) + keep :]
          sequence.cached = min(sequence.cached, len(sequence.tokens) - 1)
      if reason is not None:
        result.finish_reason = reason
        done.append(sequence)
    if stopped:
      self._stop_row(*stopped)
    for sequence in done:
      self._end(sequence)
    return [s.id for s in done]

  def _end(self, sequence: EngineSequence) -> None:
    if sequence.result.finish_reason == "not_finite":
      self._started().clear(sequence.known_slot)
    if sequence.request.hold and sequence.result.finish_reason in ("stop", "length", "stop_string"):
      sequence.held, sequence.decoding = True, False
      self._held[sequence.id] = sequence
      return
    self._free(sequence)
    self._finished[sequence.id] = sequence

  def _find(self, id: int) -> EngineSequence:
    if id in self._finished:
      return self._finished[id]
    return next(s for s in [*self._slots, *self._waiting, *self._held.values()] if s is not None and s.id == id)

  def _insert(self, sequences: Sequence[EngineSequence | None], slots: np.ndarray) -> None:
    rows = self._rows_of(sequences)
    self._rows = self._programs.insert(self._rows, packed(rows), rows.adjustments, slots)

  def _rows_of(self, sequences: Sequence[EngineSequence | None]) -> Rows:
    """Rows of sequences, on the host; None is a row that does not run."""
    rows = rows_of(self.config, self.settings, self._ids, [None if s is None else s.start() for s in sequences])
    for a, sequence in enumerate(sequences):
      if sequence is not None and sequence.row is not None:
        jax.tree.map(lambda column, x, a=a: column.__setitem__(a, x), rows, sequence.row)
        sequence.row = None
    return rows
