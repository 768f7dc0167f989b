"""Problems on disk, and problems made of the records of other data sets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen3_jax import nearest
from qwen3_jax.data.sources import HuggingFaceDatasets, SourceError, TensorflowDatasets, find_files
from qwen3_jax.evaluation.records import field, read_records
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rewards.registry import check_problem
from qwen3_jax.workdir import replace_file

_FIELDS = tuple(field.name for field in dataclasses.fields(Problem))
_SOURCES = ("jsonl", "hf", "tfds")


def write_problems(path: Path, problems: Iterable[Problem]) -> None:
  """One JSON object a line; `path` is replaced in one step.

  Raises ValueError for an id that occurs twice or a verifier that is no JSON, OSError if it cannot be written.
  """
  problems = list(problems)
  _check_unique((problem.id, f"problem {number}") for number, problem in enumerate(problems, 1))
  lines = []
  for problem in problems:
    try:
      lines.append(json.dumps(dataclasses.asdict(problem), allow_nan=False) + "\n")
    except (TypeError, ValueError) as error:
      raise ValueError(f"problem {problem.id!r} cannot be written as JSON: {error}") from None
  path.parent.mkdir(parents=True, exist_ok=True)
  replace_file(path, "".join(lines))


def read_problems(path: Path, limit: int = 0) -> list[Problem]:
  """What `write_problems` wrote, each checked with `check_problem`. At most `limit`, 0: all.

  Raises ValueError naming file and line for a malformed problem or an id that occurs twice, OSError if the file cannot
  be read.
  """
  found = read_records(path, _of_record, limit)
  _check_unique((problem.id, str(line)) for line, problem in found)
  return [problem for _, problem in found]


def problems_of(
  source: str,
  fields: Mapping[str, str],
  *,
  verifier: Mapping[str, Any],
  domain: str = "",
  sub_domain: str = "",
  answer_after: str = "",
  limit: int = 0,
) -> list[Problem]:
  """Problems of a data set of questions and answers.

  Args:
    source: `jsonl:FILES`, `hf:NAME_OR_FOLDER[:SPLIT]` or `tfds:NAME[:SPLIT][@DATA_DIR]`, as in `data.sources`.
    fields: of a problem -> of a record, e.g. {"prompt": "question", "reference": "answer"}; `prompt` must be one.
      Without `id`, ids are made from the contents, and problems that repeat are left out.
    verifier: of all problems; kinds take `reference` as the answer, e.g. {"kind": "mathematics"}.
    domain, sub_domain: where `fields` has none.
    answer_after: the reference is what follows the last occurrence of this, e.g. "####" in GSM8K.
    limit: problems, 0: all.

  Raises ValueError naming the record for what is malformed or cannot be verified, SourceError for a source that cannot
  be opened, ImportError naming the extra to install.
  """
  for name in fields:
    if name not in _FIELDS or name == "verifier":
      raise ValueError(
        f"fields.{name}: a problem has no such field.{nearest.or_all(name, set(_FIELDS) - {'verifier'})}"
      )
  if "prompt" not in fields:
    raise ValueError("fields.prompt: missing; it names the field of a record that holds the question")
  found: dict[str, Problem] = {}
  for place, record in _records(source):
    values = {"domain": domain, "sub_domain": sub_domain, "reference": ""}
    try:
      values |= {name: _text(record, key) for name, key in fields.items()}
      if answer_after:
        _, mark, reference = values["reference"].rpartition(answer_after)
        if not mark:
          raise ValueError(f"{fields.get('reference')}: no {answer_after!r} in it")
        values["reference"] = reference.strip()
      values.setdefault("id", content_id(source, values["prompt"], values["reference"]))
      problem = Problem(**values, verifier=verifier)
      check_problem(problem)
    except ValueError as error:
      raise ValueError(f"{place}: {error}") from None
    if problem.id in found and "id" in fields:
      raise ValueError(f"{place}: id {problem.id!r} occurs twice")
    found.setdefault(problem.id, problem)
    if len(found) == limit:
      break
  return list(found.values())


def content_id(prefix: str, *parts: str) -> str:
  """An id that is the same whenever the same problem is made."""
  digest = hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
  return f"{prefix}/{digest[:16]}"


class _HuggingFaceRecords(HuggingFaceDatasets):
  """Whole rows instead of their text."""

  def records(self) -> Iterator[Mapping[str, Any]]:
    return iter(self._open())


class _TensorflowRecords(TensorflowDatasets):
  """Whole examples instead of their text."""

  def records(self) -> Iterator[Mapping[str, Any]]:
    data = self._open()
    return (data[number] for number in range(len(data)))


def _records(source: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """(place for messages, record)."""
  kind, separator, location = source.partition(":")
  if not separator or kind not in _SOURCES:
    raise SourceError(f"source={source!r}: expected kind:location.{nearest.or_all(kind, _SOURCES)}")
  if kind == "jsonl":
    for path in find_files(location, (".jsonl",)):
      for line, row in read_records(path, dict):
        yield str(line), row
    return
  opened = _HuggingFaceRecords(location) if kind == "hf" else _TensorflowRecords(location)
  for number, record in enumerate(opened.records()):
    yield f"{source}, record {number}", record


def _text(record: Mapping[str, Any], name: str) -> str:
  if name not in record:
    raise ValueError(f"no field {name!r}.{nearest.or_all(name, map(str, record))}")
  value = record[name]
  if hasattr(value, "item") and getattr(value, "shape", None) == ():  # of NumPy
    value = value.item()
  if isinstance(value, bytes):
    value = value.decode(errors="replace")
  if not isinstance(value, str | int | float) or isinstance(value, bool):
    raise ValueError(f"{name}: expected text or a number, found {type(value).__name__}")
  return str(value)


def _of_record(record: dict[str, Any]) -> Problem:
  for name in record:
    if name not in _FIELDS:
      raise ValueError(f"{name}: a problem has no such field.{nearest.or_all(name, _FIELDS)}")
  texts = {name: field(record, name, str) for name in _FIELDS if name not in ("verifier", "reference")}
  reference = field(record, "reference", str) if "reference" in record else ""
  problem = Problem(**texts, reference=reference, verifier=field(record, "verifier", dict))
  if not problem.id:
    raise ValueError("id: empty")
  check_problem(problem)
  return problem


def _check_unique(ids: Iterable[tuple[str, str]]) -> None:
  places: dict[str, str] = {}
  for id, place in ids:
    if id in places:
      raise ValueError(f"{place}: id {id!r} is that of {places[id]}, too")
    places[id] = place
