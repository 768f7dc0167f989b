"""Converts a checkpoint: Hugging Face safetensors to our own folder, or back. Holds a few pieces of it at a time.

  python -m qwen3_jax.convert --input=DIR --output=DIR [--dtype=bfloat16]

The direction follows from what is found in the input. The output appears complete or not at all.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from qwen3_jax.atomic_folder import atomic_folder
from qwen3_jax.huggingface import (
  BOX_BYTES,
  Box,
  HuggingFaceSink,
  HuggingFaceSource,
  copy_companions,
  weights,
  write_config,
)
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.parameter_folder import ParameterSink, ParameterSource, chunk_shape, find_checkpoint
from qwen3_jax.safetensors_io import DTYPES, WeightsError

MAX_SHARD_BYTES = 5_000_000_000
_SLACK_BYTES = 64 << 20  # headers, indices and tokenizer files


def open_source(folder: Path) -> HuggingFaceSource | ParameterSource:
  """The parameters of a Hugging Face folder, a checkpoint folder of ours, or a stage's newest one, whichever it is."""
  if not folder.is_dir():
    raise WeightsError(f"{folder}: no such folder")
  checkpoint = find_checkpoint(folder)
  return ParameterSource(checkpoint) if checkpoint else HuggingFaceSource(folder)


def described(folder: Path) -> tuple[ModelConfig, Path]:
  """What `open_source` finds: the model, and the folder where its tokenizer would be. Raises as that does."""
  source = open_source(folder)
  source.close()
  return source.config, source.tokenizer_folder


def parse_dtype(name: str) -> np.dtype:
  known = {dtype.name: dtype for dtype in DTYPES.values()}
  if name not in known:
    raise WeightsError(f"dtype {name!r} is not known; expected one of {', '.join(known)}")
  return known[name]


def convert(
  source_folder: Path,
  target_folder: Path,
  dtype: str | None = None,
  max_shard_bytes: int = MAX_SHARD_BYTES,
  progress: Callable[[int, int], None] = lambda done, total: None,
) -> str:
  """Converts between a Hugging Face folder and our own; host memory stays bounded whatever the size of the model.

  Args:
    dtype: of the result; None keeps what is stored.
    max_shard_bytes: of one safetensors file.
    progress: called with (bytes written, bytes in all).

  Returns:
    What was written: "checkpoint" or "safetensors".

  Raises:
    WeightsError: in one line, for a bad input, an output that is not empty, or too little disk space.
  """
  source = open_source(source_folder)
  to_ours = isinstance(source, HuggingFaceSource)
  every = weights(source.config)
  dtypes = {weight.path: parse_dtype(dtype) if dtype else source.dtype(weight) for weight in every}
  total = sum(math.prod(weight.shape) * dtypes[weight.path].itemsize for weight in every)
  done = 0
  try:
    with atomic_folder(target_folder, total + _SLACK_BYTES) as folder:
      sink: ParameterSink | HuggingFaceSink
      if to_ours:
        sink = ParameterSink(folder, source.config, dtypes)
      else:
        sink = HuggingFaceSink(folder, source.config, dtypes, max_shard_bytes)
      for weight in every:
        target = dtypes[weight.path]
        wide = max(target.itemsize, source.dtype(weight).itemsize)
        multiples = chunk_shape(weight, target.itemsize) if to_ours else source.multiples(weight)
        read = functools.partial(source.read, weight, dtype=target)
        for box, array in _read_ahead(read, weight.boxes(wide, BOX_BYTES, multiples)):
          sink.write(weight, box, array)
          done += array.nbytes
          progress(done, total)
      sink.close()
      copy_companions(source.tokenizer_folder, folder)
      write_config(folder, source.config, dtypes["embed.embedding"], source.written_config)
  finally:
    source.close()
  return "checkpoint" if to_ours else "safetensors"


def _read_ahead(read: Callable[[Box], np.ndarray], boxes: Iterable[Box]) -> Iterator[tuple[Box, np.ndarray]]:
  """Reads each box in a thread while the one before it is being written."""
  with ThreadPoolExecutor(max_workers=1) as reader:
    waiting: tuple[Box, Future[np.ndarray]] | None = None
    for box in boxes:
      following = (box, reader.submit(read, box))
      if waiting:
        yield waiting[0], waiting[1].result()
      waiting = following
    if waiting:
      yield waiting[0], waiting[1].result()


def main(arguments: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(prog="python -m qwen3_jax.convert", description=__doc__.split("\n")[0])
  parser.add_argument("--input", required=True, type=Path, help="Hugging Face folder, our own, or a stage of a run")
  parser.add_argument("--output", required=True, type=Path, help="new folder for the other kind")
  parser.add_argument("--dtype", choices=[d.name for d in DTYPES.values()], help="default: as stored")
  options = parser.parse_args(arguments)
  bytes_columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
  try:
    with Progress(TextColumn("{task.description}"), BarColumn(), *bytes_columns) as bar:
      task = bar.add_task("converting", total=None)

      def show(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)

      kind = convert(options.input, options.output, options.dtype, progress=show)
  except (WeightsError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 1
  print(f"wrote {options.output} ({kind})")
  return 0


if __name__ == "__main__":
  sys.exit(main())
