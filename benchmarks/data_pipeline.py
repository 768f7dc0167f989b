"""The data pipeline: tokens a second, fill of the rows, time a step waits for its batch, planning, resume.

  python benchmarks/data_pipeline.py [--repeats=5] [--batches=100] [--json=FILE]

Both pipelines read the same prepared corpus (lengths log-normal, mean 740 tokens). The peer is grain's own: global
shuffle, threaded reads, BestFitPackIterDataset, batch and thread prefetch; it truncates documents at the window.
The rows of the long-context stage (two buckets of lengths) are planned only, over long documents (mean 16,300 tokens).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from grain.experimental import BestFitPackIterDataset, ThreadPrefetchIterDataset

from qwen3_jax.data.packing import POOL_DOCUMENTS, Bucket, Packer
from qwen3_jax.data.pipeline import PREFETCHED_BATCHES, train_batches
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.records import ShardWriter, decode_record, shard_path, write_manifest

WINDOW, ROWS, SHARDS, DOCUMENTS, VOCABULARY = 4096, 8, 4, 20_000, 60_000
STEP_SECONDS = 0.05
LONG_WINDOW, LONG_BUCKETS = 32_768, ((16_385, 32_768, 0.75), (4096, 16_384, 0.25))
BARS = {"fill": 0.97, "long fill": 0.95, "documents": 300_000, "wait": 1.0, "resume": 1.0}


def lengths_like_text(count: int, seed: int, log_median: float = 6.0) -> np.ndarray:
  return np.maximum(np.random.default_rng(seed).lognormal(log_median, 1.1, count), 2).astype(np.int32)


def write_corpus(folder: Path) -> PreparedCorpus:
  rng, tokens = np.random.default_rng(0), 0
  for shard, lengths in enumerate(np.array_split(lengths_like_text(DOCUMENTS, seed=0), SHARDS)):
    with ShardWriter(shard_path(folder, "train", shard)) as writer:
      for length in lengths:
        writer.add(np.minimum(rng.zipf(1.2, length), VOCABULARY - 1), "web", "en")
    tokens += writer.tokens
  splits = {
    "train": {"shards": SHARDS, "documents": DOCUMENTS, "tokens": tokens},
    "validation": {"shards": 0, "documents": 0, "tokens": 0},
  }
  labels = {"tokens_per_language": {"en": tokens}, "tokens_per_domain": {"web": tokens}}
  facts = {"documents": DOCUMENTS, "bytes": 0, "replaced_characters": 0, "tokenizer": "none", "source": "synthetic"}
  write_manifest(folder, {"version": 1, "splits": splits, "vocab_size": VOCABULARY, **labels, **facts})
  return PreparedCorpus.open(folder)


def ours(corpus: PreparedCorpus, seed: int) -> tuple[Iterator[np.ndarray], Callable[[], None]]:
  """Segment ids of every batch, and how to stop."""
  batches = train_batches({"web": (corpus, 1.0)}, sequence_length=WINDOW, batch_size=ROWS, seed=seed)
  return (np.asarray(batch.segment_ids) for batch in batches), batches.close


def grain_alone(corpus: PreparedCorpus, seed: int) -> tuple[Iterator[np.ndarray], Callable[[], None]]:
  def example(record: bytes) -> dict[str, np.ndarray]:
    tokens = decode_record(record)[0][: WINDOW + 1]
    return {"tokens": tokens[:-1], "targets": tokens[1:]}

  source = ArrayRecordDataSource([shard_path(corpus.path, "train", shard) for shard in range(SHARDS)])
  documents = grain.MapDataset.source(source).seed(seed).shuffle().repeat().map(example)
  packed = BestFitPackIterDataset(
    documents.to_iter_dataset(grain.ReadOptions(num_threads=8, prefetch_buffer_size=256)),
    length_struct={"tokens": WINDOW, "targets": WINDOW},
    num_packing_bins=64,
  )
  batches = iter(ThreadPrefetchIterDataset(packed.batch(ROWS), prefetch_buffer_size=PREFETCHED_BATCHES))
  return (batch["tokens_segment_ids"] for batch in batches), batches.close


PIPELINES = {"ours": ours, "grain": grain_alone}


def throughput(name: str, corpus: PreparedCorpus, batches: int, seed: int) -> tuple[float, float]:
  """Tokens a second with no step between batches, and the share of positions that hold tokens."""
  iterator, close = PIPELINES[name](corpus, seed)
  next(iterator)
  filled = 0
  start = time.perf_counter()
  for _ in range(batches):
    filled += int(np.count_nonzero(next(iterator)))
  seconds = time.perf_counter() - start
  close()
  return filled / seconds, filled / (batches * ROWS * WINDOW)


def waiting(name: str, corpus: PreparedCorpus, batches: int, seed: int) -> float:
  """Milliseconds a step of STEP_SECONDS waits for its batch, mean."""
  iterator, close = PIPELINES[name](corpus, seed)
  next(iterator)
  waited = 0.0
  for _ in range(batches):
    time.sleep(STEP_SECONDS)  # the accelerator works, the host is idle
    start = time.perf_counter()
    next(iterator)
    waited += time.perf_counter() - start
  close()
  return waited / batches * 1e3


def planning(seed: int) -> float:
  """Documents a second that are shuffled, cut and packed."""
  packer = Packer([Bucket(lengths_like_text(4 * POOL_DOCUMENTS, seed), WINDOW, 1, WINDOW, (seed,))], [1.0], (seed,))
  start = time.perf_counter()
  at = packer.start
  for _ in range(4):
    at = packer.plan(at).end
  return 4 * POOL_DOCUMENTS / (time.perf_counter() - start)


def long_context_fill(seed: int) -> float:
  """Share of positions of the long-context stage's rows that hold tokens, over a pool."""
  lengths = lengths_like_text(POOL_DOCUMENTS, seed, log_median=9.1)
  buckets = [Bucket(lengths, LONG_WINDOW, low, high, (seed, low)) for low, high, _ in LONG_BUCKETS]
  packer = Packer(buckets, [share for *_, share in LONG_BUCKETS], (seed,))
  return packer.plan(packer.start).rows.tokens.mean() / LONG_WINDOW


def resuming(corpus: PreparedCorpus, seed: int) -> float:
  """Seconds from a saved state, 2000 epochs in, to the next batch."""
  batches = train_batches({"web": (corpus, 1.0)}, sequence_length=WINDOW, batch_size=ROWS, seed=seed)
  next(batches)
  state = json.loads(json.dumps(batches.get_state()))
  state["position"]["web"]["start"][0][0] = 2000
  start = time.perf_counter()
  batches.set_state(state)
  next(batches)
  seconds = time.perf_counter() - start
  batches.close()
  return seconds


def measure(corpus: PreparedCorpus, repeats: int, batches: int) -> list[dict[str, Any]]:
  rates: dict[str, list[tuple[float, float]]] = {name: [] for name in PIPELINES}
  waits: dict[str, list[float]] = {name: [] for name in PIPELINES}
  plans, long_fills, resumes = [], [], []
  for repeat in range(repeats):
    for name in PIPELINES:
      rates[name].append(throughput(name, corpus, batches, repeat))
      waits[name].append(waiting(name, corpus, min(batches, 40), repeat))
    plans.append(planning(repeat))
    long_fills.append(long_context_fill(repeat))
    resumes.append(resuming(corpus, repeat))
  median = statistics.median
  rate = {name: median(r[0] for r in found) for name, found in rates.items()}
  fill = {name: median(r[1] for r in found) for name, found in rates.items()}
  wait = {name: median(found) for name, found in waits.items()}
  return [
    row("tokens delivered", "tokens/s", rate["ours"], rate["grain"], rate["ours"] / rate["grain"], 1.0),
    row("fill of the rows", "", fill["ours"], fill["grain"], fill["ours"], BARS["fill"]),
    row("fill of the rows, long context", "", median(long_fills), None, median(long_fills), BARS["long fill"]),
    row(
      f"wait in a step of {STEP_SECONDS * 1e3:.0f} ms",
      "ms",
      wait["ours"],
      wait["grain"],
      wait["ours"],
      BARS["wait"],
      -1,
    ),
    row("documents packed", "documents/s", median(plans), None, median(plans), BARS["documents"]),
    row("from a saved state to its next batch", "s", median(resumes), None, median(resumes), BARS["resume"], -1),
  ]


def row(
  name: str, unit: str, ours: float, peer: float | None, judged: float, bar: float, better: int = 1
) -> dict[str, Any]:
  """One result. `judged` must be at least `bar`, or at most where `better` is -1."""
  figures = {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": None if peer is None else "grain"}
  return figures | {"ratio": ours / peer if peer else None, "bar": bar, "holds": better * judged >= better * bar}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--batches", type=int, default=100, help="batches of a throughput run")
  parser.add_argument("--json", type=Path)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    rows = measure(write_corpus(Path(folder)), options.repeats, options.batches)
  print(f"{'':40s} {'ours':>12s} {'grain':>12s} {'ratio':>6s} {'bar':>10s}")
  for r in rows:
    peer, ratio = (
      f"{r[key]:{form}}" if r[key] is not None else "" for key, form in (("peer", ",.3f"), ("ratio", ".2f"))
    )
    label = f"{r['name']} {r['unit']}"
    print(
      f"{label:40s} {r['ours']:>12,.3f} {peer:>12s} {ratio:>6s} {r['bar']:>10,.2f} {'holds' if r['holds'] else 'FAILS'}"
    )
  if options.json:
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    options.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")
  return 0 if all(r["holds"] for r in rows) else 1


if __name__ == "__main__":
  sys.exit(main())
