"""Continuous batching: requests in, results out, slots refilled as they end.

The engine runs the training model's own layers on a cache. A step of the engine admits what waits, prefills it, and
runs a few decoding steps in one program; between steps the host reads a few numbers per slot. Every program has a
shape from a short list of buckets, so that nothing is compiled once each has been.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from qwen3_jax.models.cached import Place
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.rollout import decode as programs
from qwen3_jax.rollout.cache import page_bytes
from qwen3_jax.rollout.decode import Produced, Rows, Status
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.page_table import PageTable
from qwen3_jax.rollout.programs import engine_programs
from qwen3_jax.rollout.request import FinishReason, Request, Result, request_key
from qwen3_jax.rollout.rows import Start, packed, rows_of
from qwen3_jax.rollout.thinking_budget import ThinkingTokens
from qwen3_jax.sharding import batch_shards

_REASONS: dict[int, FinishReason] = {
  programs.STOP: "stop",
  programs.LENGTH: "length",
  programs.CONTEXT: "context",
  programs.NOT_FINITE: "not_finite",
}
_SHORTEST = 8  # of the buckets that prompts are prefilled in
_SHORTEST_CACHE = 64  # of the buckets that a dense cache grows through


class _Sequence:
  """One request's life."""

  def __init__(self, id: int, request: Request):
    self.id = id
    self.request = request
    self.result = Result()
    self.tokens = list(request.prompt)  # prompt and answer
    self.prompt = np.asarray(request.prompt, np.int32).tobytes()  # quick to look up
    self.key = request_key(request.seed)
    self.slot: int | None = None
    self.cached = 0  # tokens in the slot's cache
    self.turn_start = len(self.tokens)  # where the answer that is being written starts
    self.row: Rows | None = None  # of one that had to give up its slot
    self.held = False
    self.decoding = False  # whether the slot's row on the devices is this request's

  def start(self) -> Start:
    result = self.result
    generated = [token for token, sampled in zip(result.tokens, result.sampled) if sampled]
    return Start(self.request, self.key, self.tokens, generated)


class _Room:
  """Where there is room for requests, by shard."""

  def __init__(self, slots: Sequence[_Sequence | None], of_shard: int):
    self._of_shard = of_shard
    self.free: list[collections.deque[int]] = [collections.deque() for _ in range(len(slots) // of_shard)]
    self.prompts: dict[bytes, set[int]] = {}  # shards that hold a prompt
    for slot, sequence in enumerate(slots):
      if sequence is None:
        self.free[slot // of_shard].append(slot)
      else:
        self.prompts.setdefault(sequence.prompt, set()).add(slot // of_shard)

  def fill(self, slot: int, sequence: _Sequence) -> None:
    shard = slot // self._of_shard
    if slot in self.free[shard]:  # a further turn has its slot already
      self.free[shard].remove(slot)
    self.prompts.setdefault(sequence.prompt, set()).add(shard)


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
    self.config = config
    self.settings = settings = settings or EngineSettings()
    self.mesh = mesh
    self._ids = thinking or ThinkingTokens()
    _check(config, settings, mesh)
    self._shards = batch_shards(mesh)
    up = lambda n: -(-n // self._shards) * self._shards
    self.slots = up(settings.slots)
    self._prefill_rows = up(min(settings.prefill_rows, self.slots))
    on_cpu = (jax.devices() if mesh is None else mesh.devices.flat)[0].platform == "cpu"
    self.paged = settings.cache == "paged" or (settings.cache == "auto" and not on_cpu)
    self._stacked = not (on_cpu or config.unroll_layers)
    self._params: Parameters | None = None
    self._programs = engine_programs(config, self._ids, settings, mesh, self._stacked)
    self._pages: PageTable | None = None
    self._cache: Any = None
    self._rows: Rows | None = None
    self._waiting: collections.deque[_Sequence] = collections.deque()
    self._slots: list[_Sequence | None] = [None] * self.slots
    self._held: dict[int, _Sequence] = {}
    self._finished: dict[int, _Sequence] = {}
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
    self._params = self._cache = self._rows = self._pages = None

  # Requests

  def submit(self, request: Request) -> int:
    """Queues a request -> its number. Raises ValueError for what can never run."""
    self.check(request)
    sequence = _Sequence(self._next_id, request)
    self._next_id += 1
    self._waiting.append(sequence)
    return sequence.id

  def check(self, request: Request) -> None:
    """Raises ValueError for what can never run."""
    _check_request(request, self.config, self.settings, self._ids)

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
    if self._cache is None:
      self._start()
    self._admit()
    steps = self._steps()
    self._make_room(steps)
    running = self._running()
    return self._collect(running, *self._run_decode(steps)) if running else []

  # What a step does

  def _running(self) -> list[_Sequence]:
    return [s for s in self._slots if s is not None and not s.held]

  def _steps(self) -> int:
    """Decoding steps until the host looks again: while requests wait, until some slots may be free.

    A sixteenth of them, since to look, and to prefill, takes as long as a step or two.
    """
    left = sorted(map(self._left, self._running())) or [1]
    some = left[len(left) // 16]
    if self._waiting:
      return min(self.settings.steps, some)
    steps = min(self.settings.most_steps, left[-1])
    if not self.paged and (room := self._cache.length - self._longest()) >= self.settings.steps:
      steps = min(steps, room)  # a longer cache only when it is needed
    return steps

  def _left(self, sequence: _Sequence) -> int:
    """Tokens that a running request may still get, at most."""
    request = sequence.request
    left = request.max_new_tokens - (len(sequence.tokens) - sequence.turn_start)
    if request.thinking_budget is not None:
      left += request.thinking_budget + len(self._ids.sentence) + 2
    return max(1, min(left, self.settings.max_length - len(sequence.tokens)))

  def _start(self) -> None:
    settings = self.settings
    if self.paged:
      most = -(-settings.max_length // settings.page_size)
      pages = self._slots_of_shard * most
      if settings.cache_bytes:
        pages = min(pages, self.pages_in(settings.cache_bytes))
      if pages < most:
        raise ValueError(
          f"cache_bytes={settings.cache_bytes} hold {pages} pages of {settings.page_size} tokens, fewer than the {most}"
          f" of one sequence of max_length={settings.max_length}"
        )
      self._pages = PageTable(self.slots, self._shards, pages, settings.page_size, most)
      self._cache = self._programs.empty_paged(self._shards, pages)
    else:
      self._cache = self._programs.empty_dense(self.slots, self._cache_lengths()[0])
    self._rows = self._programs.empty_rows(self.slots)

  @property
  def _slots_of_shard(self) -> int:
    return self.slots // self._shards

  def pages_in(self, bytes_per_device: int) -> int:
    """Pages of each layer that a device of a shard can hold in so many bytes."""
    tensor = 1 if self.mesh is None else self.mesh.shape["tensor"]
    dtype = self.settings.cache_dtype or self.config.dtype
    return bytes_per_device // (page_bytes(self.config, self.settings.page_size, dtype) // tensor)

  def _cache_lengths(self) -> list[int]:
    """Of a dense cache: 64, 96, 128, 192, 256, ..."""
    longest = self.settings.max_length
    doubled = [_SHORTEST_CACHE << i for i in range(longest.bit_length())]
    return [n for length in doubled for n in (length, length * 3 // 2) if n < longest] + [longest]

  def _row_counts(self) -> list[int]:
    """Prompts that are prefilled at a time: one a shard, two, ..., up to what settings allow."""
    counts = [self._shards]
    while counts[-1] < self._prefill_rows:
      counts.append(min(2 * counts[-1], self._prefill_rows))
    return counts

  def _prefill_lengths(self) -> list[int]:
    """Tokens of a prompt that are prefilled at a time."""
    longest = min(self.settings.prefill_length, self.settings.max_length)
    lengths = [min(_SHORTEST, longest)]
    while lengths[-1] < longest:
      lengths.append(min(2 * lengths[-1], longest))
    return lengths

  def warm_up(self) -> None:
    """Compiles every program that requests may need, so that none is compiled later. Before anything is submitted."""
    if self._params is None or self.busy:
      raise ValueError("Engine.warm_up: needs parameters and no requests")
    self._start()
    A, nobody = self._prefill_rows, np.full(self._prefill_rows, self.slots, np.int32)
    self._insert([None] * A, nobody)
    self._stop_row()
    jax.device_get(self._programs.row(self._rows, np.int32(0)))
    for length in [0] if self.paged else self._cache_lengths():
      if not self.paged:
        self._resize_to(length)
      for T in self._prefill_lengths():
        for n in self._row_counts():
          self._run_prefill(np.zeros((n, T), np.int32), *(np.zeros(n, np.int32) for _ in range(3)))
      self._run_decode(1)
      if self._pages is None:
        nothing = np.zeros((self._shards, A), np.int32)
        self._cache = self._programs.copy(self._cache, nothing, nothing)
        self._cache = self._programs.clear(self._cache, np.int32(0))
      else:
        pages = np.full((self._shards, A), -1, np.int32)
        self._cache = self._programs.copy(self._cache, np.zeros_like(pages), pages)
    if not self.paged:
      self._resize_to(self._cache_lengths()[0])

  def _admit(self) -> None:
    """Gives slots to what waits, as long as there are slots and room."""
    waiting, self._waiting = self._waiting, collections.deque()
    full = False
    admitted: list[_Sequence] = []
    room = _Room(self._slots, self._slots_of_shard)
    for sequence, slot in [(s, s.slot) for s in waiting]:
      if slot is None:
        slot = None if full else self._free_slot(sequence, room)
        if slot is None:
          full = True  # later ones do not overtake
          self._waiting.append(sequence)
          continue
      elif sequence.slot is None:  # a further turn, which had one until an older request took its pages: it waits again
        continue
      sequence.slot = slot
      self._slots[slot] = sequence
      if self._pages is None:
        room.fill(slot, sequence)
        admitted.append(sequence)
        continue
      if self._grow(sequence, len(sequence.tokens) + 1):
        admitted.append(sequence)
      room = _Room(self._slots, self._slots_of_shard)  # others may have given up theirs
    admitted = [s for s in admitted if s.slot is not None]
    if not admitted:
      return
    self._resize(self.settings.steps)
    self._fill(admitted)
    A = self._prefill_rows
    for start in range(0, len(admitted), A):
      some = admitted[start : start + A]
      slots = np.full(A, self.slots, np.int32)
      slots[: len(some)] = [s.slot for s in some]
      self._insert([*some, *[None] * (A - len(some))], slots)
      for sequence in some:
        sequence.decoding = True

  def _has_pages(self, slot: int, sequence: _Sequence) -> bool:
    """Whether a shard has the pages that a request starts with, and one for each request that runs."""
    if self._pages is None:
      return True
    shard = slot // self._slots_of_shard
    others = sum(s is not None and self._shard(s) == shard for s in self._slots)
    return others == 0 or self._pages.missing(slot, len(sequence.tokens) + 1) + others <= self._pages.free_pages(slot)

  def _free_slot(self, sequence: _Sequence, room: _Room) -> int | None:
    """An empty slot, in a shard with the pages that holds the same prompt or has most room."""
    firsts = [free[0] for free in room.free if free and self._has_pages(free[0], sequence)]
    same = room.prompts.get(sequence.prompt, set())
    shard = lambda slot: slot // self._slots_of_shard
    key = lambda slot: (shard(slot) not in same, -len(room.free[shard(slot)]), slot)
    return min(firsts, key=key, default=None)

  def _fill(self, admitted: list[_Sequence]) -> None:
    """The cache with all tokens but the last of each; of requests with one prompt, those of the first are copied."""
    copies: list[tuple[_Sequence, _Sequence]] = []
    leaders: list[_Sequence] = []
    new = {s.id for s in admitted}
    holders = {(s.prompt, self._shard(s)): s for s in self._slots if s is not None and s.id not in new}
    for sequence in admitted:
      source = holders.setdefault((sequence.prompt, self._shard(sequence)), sequence)
      # A further turn, and one that goes on after it gave up its slot, has more cached, or to cache, than a prompt.
      fresh = sequence.cached == 0 and len(sequence.tokens) == len(sequence.request.prompt) > 1
      if source is not sequence and fresh:
        copies.append((source, sequence))
      else:
        leaders.append(sequence)
    self._prefill(leaders)
    A = self._prefill_rows
    for start in range(0, len(copies), A):
      self._copy(copies[start : start + A])

  def _slot(self, sequence: _Sequence) -> int:
    assert sequence.slot is not None
    return sequence.slot

  def _shard(self, sequence: _Sequence) -> int:
    return self._slot(sequence) // self._slots_of_shard

  def _prefill(self, sequences: list[_Sequence]) -> None:
    D = self._shards
    left = lambda s: len(s.tokens) - 1 - s.cached
    todo = [[s for s in sequences if self._shard(s) == shard and left(s) > 0] for shard in range(D)]
    while any(todo):
      most_rows = D * max(map(len, todo))
      A = next((n for n in self._row_counts() if n >= most_rows), self._prefill_rows)
      rows: list[_Sequence | None] = []
      for of_shard in todo:
        of_shard.sort(key=left)  # alike lengths together
        some = of_shard[-(A // D) :]
        rows += [*some, *[None] * (A // D - len(some))]
      most = max(left(s) for s in rows if s is not None)
      T = next((n for n in self._prefill_lengths() if n >= most), self._prefill_lengths()[-1])
      tokens = np.zeros((A, T), np.int32)
      slots, starts, counts = (np.zeros(A, np.int32) for _ in range(3))
      for a, sequence in enumerate(rows):
        slots[a] = a // (A // D) * self._slots_of_shard  # of the row's shard, in any case
        if sequence is None:
          continue
        n = min(T, left(sequence))
        tokens[a, T - n :] = sequence.tokens[sequence.cached : sequence.cached + n]
        slots[a], starts[a], counts[a] = self._slot(sequence), sequence.cached, n
        sequence.cached += n
      self._run_prefill(tokens, slots, starts, counts)
      todo = [[s for s in of_shard if left(s) > 0] for of_shard in todo]

  def _run_prefill(self, tokens: np.ndarray, slots: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> None:
    arrays: tuple[Any, ...] = (slots, starts, counts, None)
    if self._pages is not None:
      arrays = (None, starts, counts, self._pages.table[slots])
    self._cache = self._programs.prefill(self._params, tokens, Place(*arrays), self._cache)

  def _run_decode(self, steps: int) -> tuple[Produced, Status]:
    table = self._pages.table if self._pages is not None else None
    number = np.int32(steps)
    self._cache, self._rows, news = self._programs.decode(self._params, self._cache, self._rows, table, number)
    return jax.device_get(news)

  def _copy(self, pairs: list[tuple[_Sequence, _Sequence]]) -> None:
    """What slots hold of their prompts, to others with the same prompt."""
    A = self._prefill_rows
    for _, target in pairs:
      target.cached = len(target.tokens) - 1
    if self._pages is None:
      sources, targets = np.zeros((self._shards, A), np.int32), np.zeros((self._shards, A), np.int32)
      for a, (source, target) in enumerate(pairs):
        sources[self._shard(target), a] = self._slot(source) % self._slots_of_shard
        targets[self._shard(target), a] = self._slot(target) % self._slots_of_shard
    else:
      sources, targets = np.zeros((self._shards, A), np.int32), np.full((self._shards, A), -1, np.int32)
      for a, (source, target) in enumerate(pairs):
        assert source.slot is not None and target.slot is not None
        self._pages.release(target.slot)
        pair = self._pages.share(source.slot, target.slot, target.cached)
        if pair is not None:
          sources[self._shard(target), a], targets[self._shard(target), a] = pair
        self._pages.grow(target.slot, len(target.tokens) + 1)
      if (targets < 0).all():
        return
    self._cache = self._programs.copy(self._cache, sources, targets)

  def _make_room(self, steps: int) -> None:
    """For what the next steps add; where pages are short, the youngest give theirs up and wait."""
    if self._pages is None:
      self._resize(steps)
      return
    for sequence in sorted(self._running(), key=lambda s: s.id):
      if sequence.slot is not None:
        self._grow(sequence, min(sequence.cached + steps + 1, self.settings.max_length))

  def _resize(self, steps: int) -> None:
    """A dense cache for so many more tokens in its longest slot: every slot's row is as long, and read to its end."""
    if self._pages is not None:
      return
    longest = self._longest() + steps
    self._resize_to(next(n for n in self._cache_lengths() if n >= min(longest, self.settings.max_length)))

  def _longest(self) -> int:
    """Tokens of the longest sequence that has a slot."""
    return max((len(s.tokens) for s in self._slots if s is not None), default=0)

  def _resize_to(self, length: int) -> None:
    """At least `length`, and less than twice as much; by neighbours, so that few programs do it."""
    lengths = self._cache_lengths()
    while self._cache.length < length:
      self._cache = self._programs.resize(self._cache, lengths[lengths.index(self._cache.length) + 1])
    while self._cache.length >= 2 * length:
      self._cache = self._programs.resize(self._cache, lengths[lengths.index(self._cache.length) - 1])

  def _grow(self, sequence: _Sequence, tokens: int) -> bool:
    """Pages for so many tokens, if need be of younger requests; else the request gives up its own and waits."""
    assert self._pages is not None and sequence.slot is not None
    while not self._pages.grow(sequence.slot, tokens):
      shard = self._shard(sequence)
      others = [s for s in self._slots if s is not None and s.id > sequence.id and self._shard(s) == shard]
      victim = max(others, key=lambda s: s.id, default=sequence)
      self._suspend(victim)
      if victim is sequence:
        return False
    return True

  def _suspend(self, sequence: _Sequence) -> None:
    """Frees a slot; its request goes on later, from its tokens and what its row held."""
    if not sequence.held:
      if sequence.decoding:
        sequence.row = jax.device_get(self._programs.row(self._rows, np.int32(self._slot(sequence))))
        self._stop_row(sequence)
      self._waiting.appendleft(sequence)
    self._free(sequence)

  def _free(self, sequence: _Sequence) -> None:
    if sequence.slot is None:
      return
    if self._pages is not None:
      self._pages.release(sequence.slot)
    self._slots[sequence.slot] = None
    sequence.slot, sequence.cached, sequence.decoding = None, 0, False

  def _stop_row(self, *sequences: _Sequence) -> None:
    slots = np.full(self.slots, self.slots, np.int32)
    slots[: len(sequences)] = [s.slot for s in sequences]
    self._rows = self._programs.stop(self._rows, slots)

  def _collect(self, running: list[_Sequence], produced: Produced, status: Status) -> list[int]:
    """What the steps produced, into results; slots of what ended become free."""
    done: list[_Sequence] = []
    stopped: list[_Sequence] = []
    counts = produced.valid.sum(axis=0).tolist()  # a row runs from the first step on, until it stops
    tokens, log_probabilities, of_sampling, inserted = (x.T.tolist() for x in produced[:4])
    for sequence in running:
      slot, result = self._slot(sequence), sequence.result
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

  def _end(self, sequence: _Sequence) -> None:
    if sequence.result.finish_reason == "not_finite" and not self.paged:
      self._cache = self._programs.clear(self._cache, np.int32(self._slot(sequence)))
    if sequence.request.hold and sequence.result.finish_reason in ("stop", "length", "stop_string"):
      sequence.held, sequence.decoding = True, False
      self._held[sequence.id] = sequence
      return
    self._free(sequence)
    self._finished[sequence.id] = sequence

  def _find(self, id: int) -> _Sequence:
    if id in self._finished:
      return self._finished[id]
    return next(s for s in [*self._slots, *self._waiting, *self._held.values()] if s is not None and s.id == id)

  def _insert(self, sequences: Sequence[_Sequence | None], slots: np.ndarray) -> None:
    rows = self._rows_of(sequences)
    self._rows = self._programs.insert(self._rows, packed(rows), rows.adjustments, slots)

  def _rows_of(self, sequences: Sequence[_Sequence | None]) -> Rows:
    """Rows of sequences, on the host; None is a row that does not run."""
    rows = rows_of(self.config, self.settings, self._ids, [None if s is None else s.start() for s in sequences])
    for a, sequence in enumerate(sequences):
      if sequence is not None and sequence.row is not None:
        jax.tree.map(lambda column, x, a=a: column.__setitem__(a, x), rows, sequence.row)
        sequence.row = None
    return rows


def _check(config: ModelConfig, settings: EngineSettings, mesh: Mesh | None) -> None:
  problems = []
  if settings.cache not in ("auto", "dense", "paged"):
    problems.append(f"cache={settings.cache!r}, expected auto, dense or paged")
  for name in ("slots", "max_length", "steps", "prefill_rows", "prefill_length", "page_size"):
    if getattr(settings, name) < 1:
      problems.append(f"{name}={getattr(settings, name)}, expected at least 1")
  if mesh is not None:
    unused = [axis for axis in ("fsdp", "context") if mesh.shape[axis] > 1]
    if unused:
      problems.append(f"a mesh that splits {' and '.join(unused)}; decoding uses data, expert and tensor")
    if config.num_kv_heads % mesh.shape["tensor"]:
      problems.append(f"tensor={mesh.shape['tensor']} does not divide num_kv_heads={config.num_kv_heads}")
  if settings.record_experts and not config.is_moe:
    problems.append("record_experts=True and a dense model")
  if problems:
    raise ValueError("Engine: " + "; ".join(problems))


def _check_request(request: Request, config: ModelConfig, settings: EngineSettings, ids: ThinkingTokens) -> None:
  if len(request.prompt) >= settings.max_length:
    raise ValueError(
      f"Request: a prompt of {len(request.prompt)} tokens leaves no room in a context of {settings.max_length}"
    )
  V = config.vocab_size
  outside = [token for token in (*request.prompt, *request.sampling.logit_bias) if not 0 <= token < V]
  if outside:
    raise ValueError(f"Request: token id {outside[0]} is outside of the vocabulary of {V}")
  if request.thinking_budget is not None and not ids.sentence:
    raise ValueError("Request: thinking_budget needs a vocabulary with <think> and </think>")
  if request.sampling.adjusts and not settings.adjustments:
    raise ValueError("Request: penalties and logit_bias need an engine with adjustments=True")
