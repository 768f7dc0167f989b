"""From the corpora and tokenizer that a config names to ones that stages can read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from qwen3_jax.atomic_folder import atomic_folder
from qwen3_jax.config import WRITTEN, model_settings
from qwen3_jax.data.prepare import fingerprint, is_prepared, prepare
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.records import DataError, read_manifest
from qwen3_jax.data.shared_storage import write_for_all
from qwen3_jax.data.sources import documents, open_source
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.train_tokenizer import train_sentencepiece

_PREPARED = "prepared:"


def prepare_corpora(config: ConfigDict, workdir: Path) -> tuple[Tokenizer, dict[str, Path]]:
  """The tokenizer, and the prepared folder of every corpus that a stage of the pipeline reads, but for written ones.

  A raw corpus is tokenised once into `config.data.cache`, or `workdir`/data. `workdir`/tokenizer holds the tokenizer:
  that of `config.tokenizer.path`, or one trained on the raw corpora. Process 0 does the work, the others wait.

  Raises DataError when a corpus or the tokenizer cannot be used with the model, or when a process does not see what
  process 0 wrote.
  """
  names = sorted({name for stage in config.pipeline for name in config.stages[stage].get("mixture", {})})
  tokenizer = _tokenizer(config, names, workdir)
  rows = min(model_settings(config, stage).vocab_size for stage in config.pipeline)
  if tokenizer.vocab_size > rows:
    raise DataError(f"the tokenizer has {tokenizer.vocab_size} ids, more than the model's vocab_size={rows} rows")
  ready = [name for name in names if not config.data.corpora[name].source.startswith(WRITTEN)]
  return tokenizer, {name: _prepared(config, name, _cache(config, workdir), tokenizer) for name in ready}


def prepare_written(config: ConfigDict, name: str, conversations: Path, workdir: Path, tokenizer: Tokenizer) -> Path:
  """The prepared folder of a corpus `written:...`, once the run has written the conversations."""
  config = config.copy_and_resolve_references()
  config.data.corpora[name].source = f"chat:{conversations.absolute()}"
  return _prepared(config, name, _cache(config, workdir), tokenizer)


def _cache(config: ConfigDict, workdir: Path) -> Path:
  return Path(config.data.cache) if config.data.cache else workdir / "data"


def _tokenizer(config: ConfigDict, corpora: list[str], workdir: Path) -> Tokenizer:
  kept = workdir / "tokenizer"  # what whoever loads a checkpoint of the run looks for
  if config.tokenizer.path:
    tokenizer = _given_tokenizer(config.tokenizer.path)
    write_for_all(kept, lambda: _keep(tokenizer, kept, config.tokenizer.path))
    return tokenizer
  write_for_all(kept, lambda: _train_tokenizer(config, corpora, kept))
  return Tokenizer.from_pretrained(kept)


def _train_tokenizer(config: ConfigDict, corpora: list[str], kept: Path) -> None:
  if kept.exists():
    return
  print(f"Training a tokenizer of {config.tokenizer.train_vocab_size} pieces in {kept}", flush=True)
  size = int(config.tokenizer.train_megabytes * 1e6)
  with atomic_folder(kept) as folder:
    model, texts = folder / "tokenizer.model", _sample(config, corpora, size)
    try:
      train_sentencepiece(texts, model, config.tokenizer.train_vocab_size, max_bytes=size)
    except DataError:
      raise
    except ValueError as error:
      raise DataError(f"tokenizer.train_vocab_size={config.tokenizer.train_vocab_size}: {error}") from error


def _given_tokenizer(path: str) -> Tokenizer:
  try:
    return Tokenizer.from_pretrained(path)
  except (FileNotFoundError, ValueError) as error:
    raise DataError(f"tokenizer.path={path!r}: {error}") from error


def _keep(tokenizer: Tokenizer, kept: Path, path: str) -> None:
  if not kept.exists():
    with atomic_folder(kept) as folder:
      tokenizer.save(folder)
  elif Tokenizer.from_pretrained(kept).fingerprint != tokenizer.fingerprint:
    raise DataError(f"tokenizer.path={path!r}: another tokenizer than this run began with, which is in {kept}")


def _sample(config: ConfigDict, corpora: list[str], size: int) -> Iterator[str]:
  """About `size` bytes of text, in equal parts of the raw corpora."""
  raw = {config.data.corpora[name].source: name for name in corpora}
  raw = {spec: name for spec, name in raw.items() if not spec.startswith((_PREPARED, WRITTEN))}
  if not raw:
    raise DataError("tokenizer.path='': there is no raw corpus to train a tokenizer on; name the corpora's tokenizer")
  for spec, name in raw.items():
    left = size // len(raw)
    with _naming(config, name):
      for document in documents(open_source(spec, text_field=config.data.corpora[name].text_field)):
        if left <= 0:
          break
        left -= len(document.text.encode(errors="replace"))
        yield document.text


def _prepared(config: ConfigDict, name: str, cache: Path, tokenizer: Tokenizer) -> Path:
  settings = config.data.corpora[name]
  if settings.source.startswith(_PREPARED):
    folder = Path(settings.source.removeprefix(_PREPARED))
    if not is_prepared(folder):
      raise DataError(f"data.corpora.{name}: {folder} is no prepared corpus (no manifest.json); see prepare_data")
    made_with, ours = read_manifest(folder)["tokenizer"], tokenizer.fingerprint
    if made_with != ours:
      raise DataError(f"data.corpora.{name}: {folder} was prepared with tokenizer {made_with}, the config's is {ours}")
    return folder
  options = {
    "text_field": settings.text_field,
    "domain": settings.domain or name,
    "language": settings.language,
    "validation_fraction": settings.validation_fraction,
    "limit_megabytes": settings.limit_megabytes,
  }
  kind = settings.source.partition(":")[0]
  folder = cache / f"{kind}-{fingerprint(settings.source, tokenizer, **options)}"  # corpora alike in all of it share it

  def make() -> None:
    with _naming(config, name):
      prepare(settings.source, folder, tokenizer, workers=config.data.prepare_workers, **options)

  write_for_all(folder / "manifest.json", make)
  return folder


@contextlib.contextmanager
def _naming(config: ConfigDict, corpus: str) -> Iterator[None]:
  """Errors of a source say which key of the config names it."""
  try:
    yield
  except (DataError, ImportError) as error:
    raise DataError(f"data.corpora.{corpus}.source={config.data.corpora[corpus].source!r}: {error}") from error


def open_mixture(shares: ConfigDict, corpora: dict[str, Path]) -> dict[str, tuple[PreparedCorpus, float]]:
  """The training split of every corpus of a stage's mixture, with its share of the tokens."""
  return {name: (PreparedCorpus.open(corpora[name], "train"), share) for name, share in shares.items()}
