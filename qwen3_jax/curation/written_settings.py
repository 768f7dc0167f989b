"""Checks of what a run is to write."""

from __future__ import annotations

from collections.abc import Iterator

from ml_collections import ConfigDict

from qwen3_jax import nearest
from qwen3_jax.config import WRITTEN, WRITTEN_KINDS
from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.problems.sources import check_spec


def written_problems(config: ConfigDict) -> Iterator[str]:
  """One line for each reason why what `config.data.written` describes cannot be written."""
  for name, settings in config.data.written.items():
    key = f"data.written.{name}."
    if settings.stage not in config.stages:
      near = nearest.sentence(settings.stage, config.stages)
      yield f"{key}stage={settings.stage!r}: no such stage.{near} Known: {', '.join(config.stages)}"
    for of in ("problems", "direct_answers"):
      if settings.get(of) and (problem := check_spec(settings[of])) is not None:
        yield f"{key}{of}={problem}"
    if not settings.problems:
      yield f"{key}problems='': names no problems"
    for of in ("max_length", "max_new_tokens", "slots", "samples"):
      if settings.get(of, 1) < 1:
        yield f"{key}{of}={settings[of]}: must be at least 1"
    for of in ("thinking_share", "plain_share", "top_p"):
      if not 0 <= settings.get(of, 0) <= 1:
        yield f"{key}{of}={settings[of]}: must lie in [0, 1]"
    if settings.kind not in WRITTEN_KINDS:
      near = nearest.sentence(settings.kind, WRITTEN_KINDS)
      yield f"{key}kind={settings.kind!r}: unknown.{near} Known: {', '.join(WRITTEN_KINDS)}"
    if "fusion" not in settings:
      continue
    try:
      FusionSettings(**settings.fusion.to_dict())
    except ValueError as error:
      yield f"{key}fusion: {error}"
  for stage in config.pipeline:
    for corpus in config.stages.get(stage, ConfigDict()).get("mixture", {}):
      source = config.data.corpora.get(corpus, ConfigDict({"source": ""})).source
      if not source.startswith(WRITTEN):
        continue
      name = source.removeprefix(WRITTEN)
      before = config.pipeline[: config.pipeline.index(stage)]
      if name not in config.data.written:
        known = ", ".join(config.data.written) or "nothing"
        yield f"data.corpora.{corpus}.source={source!r}: data.written has {known}"
      elif config.data.written[name].stage not in before:
        written_by = config.data.written[name].stage
        yield f"data.written.{name}.stage={written_by!r}: no stage before {stage!r}, which reads it"
