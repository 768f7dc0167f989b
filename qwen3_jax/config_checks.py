"""Checks of a configuration: every problem is found and reported at once, one line each."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from qwen3_jax import nearest
from qwen3_jax.config import (
  BALANCE_COUNTS,
  ROLLOUT_KINDS,
  STAGE_KINDS,
  TRACKERS,
  WRITTEN_KINDS,
  base_config,
  corpus,
  evaluation,
  make_model_config,
  model_settings,
  stage_mesh,
  teacher,
  teacher_mesh,
)
from qwen3_jax.curation.written_settings import written_problems
from qwen3_jax.distillation.settings import teacher_problems
from qwen3_jax.models.config import DTYPES, REMAT_POLICIES
from qwen3_jax.optimizer import SCHEDULES
from qwen3_jax.rl.settings import rl_problems, rollout_problems
from qwen3_jax.sharding import BATCH_AXES, MESH_AXES

SOURCE_KINDS = (
  "text",
  "jsonl",
  "chat",
  "traces",
  "written",
  "parquet",
  "arrayrecord",
  "tfds",
  "hf",
  "python",
  "debian-docs",
  "prepared",
)
_SOURCES_WITHOUT_LOCATION = ("python", "debian-docs")


class ConfigError(ValueError):
  """A configuration that cannot run; `problems` holds one line for each reason."""

  def __init__(self, problems: Iterable[str]):
    self.problems = list(problems)
    count = len(self.problems)
    super().__init__(f"{count} configuration problem{'s' if count > 1 else ''}:\n  " + "\n  ".join(self.problems))


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """` Did you mean 'X'?` for the known name nearest to `word`, or nothing.

  A dotted key is nearest to one that has the same last part.
  """
  names = list(known)
  leaf = word.rpartition(".")[2]
  same_leaf = [name for name in names if "." in name and name.rpartition(".")[2] == leaf]
  return nearest.sentence(word, same_leaf, cutoff=0.0) if same_leaf else nearest.sentence(word, names)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Dotted key -> value, of every leaf."""
  flat: dict[str, Any] = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      flat.update(flatten(value, f"{prefix}{key}."))
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def type_problem(key: str, value: Any, expected: Any) -> str | None:
  """Why `value` is not of the type of `expected`, or None."""
  same = type(value) is type(expected) or (type(expected) is float and type(value) is int)
  if same and not (isinstance(value, float) and not math.isfinite(value)):
    return None
  return f"{key}={value!r}: expected {type_name(expected)}"


def type_name(value: Any) -> str:
  """What to write for a key whose default is `value`."""
  names = {int: "an integer", float: "a number", bool: "true or false", str: "a string", tuple: "a tuple"}
  return names[type(value)]


def expected_config(config: ConfigDict) -> ConfigDict:
  """The documented keys, with defaults, for the corpora and stages that `config` names."""
  expected = base_config()
  for name in config.get("models", ConfigDict()):
    expected.models[name] = base_config().model
  for name in config.get("data", ConfigDict()).get("corpora", ConfigDict()):
    expected.data.corpora[name] = corpus("")
  for name, settings in config.get("data", ConfigDict()).get("written", ConfigDict()).items():
    expected.data.written[name] = WRITTEN_KINDS.get(settings.get("kind", ""), WRITTEN_KINDS["fusion"])()
    if "fusion" in expected.data.written[name]:
      shares = settings.get("fusion", ConfigDict()).get("category_shares", ConfigDict())
      expected.data.written[name].fusion.category_shares.update(dict.fromkeys(shares, 1.0))
  for name in config.get("evaluations", ConfigDict()):
    expected.evaluations[name] = evaluation()
  for name, stage in config.get("stages", ConfigDict()).items():
    make_stage = STAGE_KINDS.get(stage.get("kind", ""), STAGE_KINDS["pretrain"])
    expected.stages[name] = make_stage()
    if "mixture" in expected.stages[name]:
      expected.stages[name].mixture.update(dict.fromkeys(stage.get("mixture", {}), 1.0))
    for of in stage.get("teachers", ConfigDict()) if "teachers" in expected.stages[name] else ():
      expected.stages[name].teachers[of] = teacher()
  return expected


def validate(config: ConfigDict, device_count: int | None = None) -> None:
  """Raises ConfigError with every problem of `config`.

  Without `device_count` the mesh is checked only as far as that does not need the number of devices.
  Nothing is opened or read: whether files exist shows when the run reads them.
  """
  found = list(_structure_problems(config))
  sound = _with_defaults(config)
  found += _general_problems(sound)
  found += _data_problems(sound)
  found += written_problems(sound)
  found += _model_problems(sound)
  for name, settings in sound.evaluations.items():
    if settings.stage not in sound.stages:
      near = did_you_mean(settings.stage, sound.stages)
      found.append(f"evaluations.{name}.stage={settings.stage!r}: no such stage.{near}")
  sizes, problems = _mesh_sizes("mesh", sound.mesh, device_count)
  found += problems
  for key, model in _models(sound):
    found += _divisions("mesh", sizes, key, model)
  for name, stage in sound.stages.items():
    if problem := _lineage_problem(name, stage, sound):
      found.append(problem)
      continue
    stage_sizes = sizes
    if any(stage.mesh.values()):
      prefix = f"stages.{name}.mesh"
      stage_sizes, problems = _mesh_sizes(prefix, stage_mesh(sound, name), device_count)
      key = f"models.{stage.model}" if stage.model else "model"
      found += [*problems, *_divisions(prefix, stage_sizes, key, model_settings(sound, name))]
    found += _stage_problems(f"stages.{name}", stage, sound, stage_sizes)
    if stage.kind == "distill":
      found += teacher_problems(sound, name)
      for of in stage.teachers:
        found += _mesh_sizes(f"stages.{name}.teachers.{of}.mesh", teacher_mesh(sound, name, of), device_count)[1]
  if found:
    raise ConfigError(found)


def _structure_problems(config: ConfigDict) -> Iterator[str]:
  given, expected = flatten(config), flatten(expected_config(config))
  for key, value in given.items():
    if key not in expected:
      yield f"{key}: unknown key.{did_you_mean(key, expected)}"
    elif problem := type_problem(key, value, expected[key]):
      yield problem
  for key in expected:
    if key not in given:
      yield f"{key}: missing; start from base_config(), corpus() and pretrain_stage()"


def _with_defaults(config: ConfigDict) -> ConfigDict:
  """`config` with defaults in the place of what is missing or of the wrong type, so that the rest can be checked."""
  sound = expected_config(config)
  given = flatten(config)
  with sound.ignore_type():
    for key, default in flatten(sound).items():
      if key in given and not type_problem(key, given[key], default):
        _set(sound, key, given[key])
  return sound


def _set(config: ConfigDict, key: str, value: Any) -> None:
  *groups, leaf = key.split(".")
  for group in groups:
    config = config[group]
  config[leaf] = value


def _at_least(prefix: str, config: ConfigDict, minimum: int, keys: str) -> Iterator[str]:
  for key in keys.split():
    if config[key] < minimum:
      yield f"{prefix}{key}={config[key]}: must be at least {minimum}"


def _general_problems(config: ConfigDict) -> Iterator[str]:
  yield from _at_least("", config, 0, "seed")
  yield from _at_least("", config, 1, "cpu_devices log_every stall_seconds")
  yield from _at_least("", config, 0, "abort_after_seconds")
  if 0 < config.abort_after_seconds <= config.stall_seconds:
    yield f"abort_after_seconds={config.abort_after_seconds}: must be above stall_seconds={config.stall_seconds}, or 0"
  for name in config.trackers:
    if name not in TRACKERS:
      yield f"trackers: unknown tracker {name!r}.{did_you_mean(str(name), TRACKERS)} Known: {', '.join(TRACKERS)}"
  yield from _at_least("checkpoint.", config.checkpoint, 1, "every keep")
  yield from _at_least("tokenizer.", config.tokenizer, 1, "train_megabytes")
  if not config.pipeline:
    yield "pipeline=(): names no stage"
  for name in config.pipeline:
    if not isinstance(name, str):
      yield f"pipeline: {name!r} is not the name of a stage"
    elif name not in config.stages:
      yield f"pipeline: unknown stage {name!r}.{did_you_mean(name, config.stages)} Known: {', '.join(config.stages)}"
  if config.stage and config.stage not in config.pipeline:
    near = did_you_mean(config.stage, config.pipeline)
    yield f"stage={config.stage!r}: not in the pipeline.{near} Known: {', '.join(map(str, config.pipeline))}"
  if config.start and all(config.stages[name].model for name in config.pipeline if name in config.stages):
    yield f"start={config.start!r}: no stage of the pipeline trains config.model, which it is for"
  if len(set(config.pipeline)) < len(config.pipeline):
    yield f"pipeline={config.pipeline!r}: names a stage twice"
  if not config.tokenizer.path:
    vocabulary = config.tokenizer.train_vocab_size
    if vocabulary < 1:
      yield f"tokenizer.train_vocab_size={vocabulary}: must be at least 1"
    for key, model in _models(config):
      if vocabulary > model.vocab_size:
        yield (
          f"tokenizer.train_vocab_size={vocabulary}: larger than the embedding, {key}.vocab_size={model.vocab_size}"
        )


def _data_problems(config: ConfigDict) -> Iterator[str]:
  yield from _at_least("data.", config.data, 0, "prepare_workers")
  for name in (*config.data.corpora, *config.stages):
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
      yield f"{name!r}: names of corpora and stages hold only letters, digits, '_' and '-'"
  for name, settings in config.data.corpora.items():
    prefix = f"data.corpora.{name}."
    kind, colon, location = settings.source.partition(":")
    if not colon:
      yield f"{prefix}source={settings.source!r}: expected kind:location, kind one of {', '.join(SOURCE_KINDS)}"
    elif kind not in SOURCE_KINDS:
      hint = did_you_mean(kind, SOURCE_KINDS)
      yield f"{prefix}source={settings.source!r}: unknown kind {kind!r}.{hint} Known: {', '.join(SOURCE_KINDS)}"
    elif not location and kind not in _SOURCES_WITHOUT_LOCATION:
      yield f"{prefix}source={settings.source!r}: no location after {kind!r}"
    if not 0 <= settings.validation_fraction < 1:
      yield f"{prefix}validation_fraction={settings.validation_fraction}: must lie in [0, 1)"
    yield from _at_least(prefix, settings, 0, "limit_megabytes")


def _mesh_sizes(prefix: str, mesh: Mapping[str, int], device_count: int | None) -> tuple[dict[str, int], list[str]]:
  """Devices along each axis, then problems. An axis whose size is not known, or is impossible, counts as 1."""
  sizes = {axis: mesh[axis] for axis in MESH_AXES}
  wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
  problems = [f"{prefix}.{axis}={sizes[axis]}: must be at least 1, or -1" for axis in wrong]
  open_axes = [axis for axis, size in sizes.items() if size == -1]
  if len(open_axes) > 1:
    problems.append(f"{prefix}: {' and '.join(open_axes)} are -1; at most one axis can be")
  known = {axis: size if size >= 1 else 1 for axis, size in sizes.items()}
  if problems or device_count is None:
    return known, problems
  product = math.prod(known.values())
  shape = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
  if not open_axes and product != device_count:
    problems.append(f"{prefix}: {shape} needs {product} devices, there are {device_count}")
  elif open_axes and device_count % product:
    problems.append(f"{prefix}: {shape}: {device_count} devices cannot be divided by {product}")
  elif open_axes:
    known[open_axes[0]] = device_count // product
  return known, problems


def _model_problems(config: ConfigDict) -> Iterator[str]:
  for name, model in _models(config):
    try:
      make_model_config(model)
    except ValueError as error:
      yield f"{name}: {error}"
    for key in ("dtype", "param_dtype"):
      if model[key] not in DTYPES:
        yield f"{name}.{key}={model[key]!r}: must be one of {', '.join(DTYPES)}.{did_you_mean(model[key], DTYPES)}"


def _models(config: ConfigDict) -> list[tuple[str, ConfigDict]]:
  """All models of the run with their keys."""
  return [("model", config.model), *((f"models.{name}", model) for name, model in config.models.items())]


def _lineage_problem(name: str, stage: ConfigDict, config: ConfigDict) -> str | None:
  """Why it is not known of which model a stage is, or where it starts."""
  if stage.model and stage.model not in config.models:
    known = ", ".join(config.models) or "none"
    near = did_you_mean(stage.model, config.models)
    return f"stages.{name}.model={stage.model!r}: no such model.{near} Known: {known}"
  if not stage.after:
    return None
  before = config.pipeline[: config.pipeline.index(name)] if name in config.pipeline else config.pipeline
  if stage.after not in before:
    known = ", ".join(map(str, before)) or "none"
    return f"stages.{name}.after={stage.after!r}: no stage before it.{did_you_mean(stage.after, before)} Known: {known}"
  if config.stages[stage.after].model != stage.model:
    return f"stages.{name}.after={stage.after!r}: a stage of another model"
  return None


def _divisions(prefix: str, sizes: dict[str, int], key: str, model: ConfigDict) -> Iterator[str]:
  """What of the model `key` a mesh cannot divide."""
  if model.num_experts == 0 and sizes["expert"] > 1:
    yield f"{prefix}.expert={sizes['expert']}: the model is dense"
  for field, axis in (("num_heads", "tensor"), ("num_experts", "expert")):
    if model[field] % sizes[axis]:
      yield f"{key}.{field}={model[field]}: cannot be divided over {prefix}.{axis}={sizes[axis]}"


def _stage_problems(prefix: str, stage: ConfigDict, config: ConfigDict, sizes: dict[str, int]) -> Iterator[str]:
  if stage.kind not in STAGE_KINDS:
    yield (
      f"{prefix}.kind={stage.kind!r}: unknown kind of stage.{did_you_mean(stage.kind, STAGE_KINDS)}"
      f" Known: {', '.join(STAGE_KINDS)}"
    )
  prefix += "."
  not_counts = list(_at_least(prefix, stage, 1, "sequence_length batch_size micro_batches evaluate_every"))
  yield from not_counts
  yield from _at_least(prefix, stage, 0, "max_skipped_steps")
  if not not_counts:
    yield from _batch_problems(prefix, stage, config, sizes)
  if stage.remat and stage.remat not in REMAT_POLICIES:
    hint = did_you_mean(stage.remat, REMAT_POLICIES)
    yield f"{prefix}remat={stage.remat!r}: must be one of {', '.join(REMAT_POLICIES)}.{hint}"
  if stage.balance_counts not in BALANCE_COUNTS:
    yield f"{prefix}balance_counts={stage.balance_counts!r}: must be one of {', '.join(BALANCE_COUNTS)}"
  if stage.rope_theta <= 1:
    yield f"{prefix}rope_theta={stage.rope_theta}: must be greater than 1"
  yield from _optimizer_problems(f"{prefix}optimizer.", stage.optimizer)
  if stage.kind not in ROLLOUT_KINDS:
    yield from _packed_problems(prefix, stage, config)
  if "rollout" in stage:
    yield from rollout_problems(prefix, stage)
  if stage.kind == "rl":
    yield from rl_problems(prefix, stage)


def _packed_problems(prefix: str, stage: ConfigDict, config: ConfigDict) -> Iterator[str]:
  yield from _at_least(prefix, stage, 1, "evaluate_batches")
  yield from _at_least(prefix, stage, 0, "sample_tokens z_loss")
  per_step = stage.batch_size * stage.sequence_length
  if 0 < per_step > stage.tokens:
    yield f"{prefix}tokens={stage.tokens}: less than one step of batch_size * sequence_length = {per_step} tokens"
  yield from _mixture_problems(prefix, stage, config)
  yield from _length_bucket_problems(prefix, stage)
  if not all(isinstance(prompt, str) for prompt in stage.sample_prompts):
    yield f"{prefix}sample_prompts={stage.sample_prompts!r}: must hold strings"


def _batch_problems(prefix: str, stage: ConfigDict, config: ConfigDict, sizes: dict[str, int]) -> Iterator[str]:
  batch, micro, length = stage.batch_size, stage.micro_batches, stage.sequence_length
  shards = math.prod(sizes[axis] for axis in BATCH_AXES)
  if batch % micro:
    yield f"{prefix}batch_size={batch}: must be a multiple of micro_batches={micro}"
  elif (batch // micro) % shards:
    yield (
      f"{prefix}batch_size={batch}: a micro-batch of {batch // micro} sequences cannot be divided over"
      f" {' * '.join(BATCH_AXES)} = {shards} devices"
    )
  context = sizes["context"]
  if context > 1 and length % (2 * context):
    yield f"{prefix}sequence_length={length}: cannot be divided into 2 * mesh.context = {2 * context} chunks"
  model = config.models[stage.model] if stage.model else config.model
  if length > model.max_position_embeddings:
    yield (
      f"{prefix}sequence_length={length}: longer than the model's"
      f" max_position_embeddings={model.max_position_embeddings}"
    )


def _mixture_problems(prefix: str, stage: ConfigDict, config: ConfigDict) -> Iterator[str]:
  known = config.data.corpora
  if not stage.mixture:
    yield f"{prefix}mixture: names no corpus"
  for name, share in stage.mixture.items():
    if name not in known:
      yield f"{prefix}mixture.{name}: unknown corpus.{did_you_mean(name, known)} Known: {', '.join(known)}"
    if share <= 0:
      yield f"{prefix}mixture.{name}={share}: a share must be positive"


def _length_bucket_problems(prefix: str, stage: ConfigDict) -> Iterator[str]:
  total = 0.0
  for bucket in stage.length_buckets:
    numbers = isinstance(bucket, tuple) and len(bucket) == 3 and all(type(part) in (int, float) for part in bucket)
    if not numbers:
      yield f"{prefix}length_buckets: {bucket!r} is not (min_length, max_length, share)"
      return
    low, high, share = bucket
    if not 0 <= low < high:
      yield f"{prefix}length_buckets: {bucket!r}: min_length must be below max_length"
    if high > stage.sequence_length:
      yield f"{prefix}length_buckets: {bucket!r}: max_length is above sequence_length={stage.sequence_length}"
    if share <= 0:
      yield f"{prefix}length_buckets: {bucket!r}: a share must be positive"
    total += share
  if stage.length_buckets and not math.isclose(total, 1.0, abs_tol=1e-6):
    yield f"{prefix}length_buckets: the shares add up to {total:g}, not 1"


def _optimizer_problems(prefix: str, optimizer: ConfigDict) -> Iterator[str]:
  if optimizer.schedule not in SCHEDULES:
    hint = did_you_mean(optimizer.schedule, SCHEDULES)
    yield f"{prefix}schedule={optimizer.schedule!r}: must be one of {', '.join(SCHEDULES)}.{hint}"
  for key in ("moment_dtype", "gradient_dtype"):
    if optimizer[key] not in DTYPES:
      hint = did_you_mean(optimizer[key], DTYPES)
      yield f"{prefix}{key}={optimizer[key]!r}: must be one of {', '.join(DTYPES)}.{hint}"
  if optimizer.peak_lr <= 0:
    yield f"{prefix}peak_lr={optimizer.peak_lr}: must be positive"
  if not 0 <= optimizer.final_lr <= optimizer.peak_lr:
    yield f"{prefix}final_lr={optimizer.final_lr}: must lie in [0, peak_lr={optimizer.peak_lr}]"
  if not 0 <= optimizer.decay_fraction <= 1:
    yield f"{prefix}decay_fraction={optimizer.decay_fraction}: must lie in [0, 1]"
  for key in ("beta1", "beta2"):
    if not 0 <= optimizer[key] < 1:
      yield f"{prefix}{key}={optimizer[key]}: must lie in [0, 1)"
  if optimizer.epsilon <= 0:
    yield f"{prefix}epsilon={optimizer.epsilon}: must be positive"
  yield from _at_least(prefix, optimizer, 0, "warmup_steps weight_decay clip_norm")
