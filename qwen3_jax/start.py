"""The checkpoint that a run starts from in the place of fresh parameters: `config.start`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict

from qwen3_jax.config import stage_model, stages_before
from qwen3_jax.convert import described
from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.safetensors_io import WeightsError
from qwen3_jax.train_program import TrainProgram
from qwen3_jax.train_state import TrainState, initial_state
from qwen3_jax.workdir import Workdir

# Fields of ModelConfig in which a stage may differ from the checkpoint: names, what is only read when a model is
# initialised or trained, how it is computed; and the context's, of which a difference is warned.
_OF_CONTEXT = ("rope_theta", "yarn_factor")
_FREE = {"name", "initializer_range", "router_aux_loss_coef", "yarn_original_length", "max_position_embeddings"}
_FREE |= {"dtype", "param_dtype", "remat", "offload_layer_inputs", "unroll_layers"}
_FREE |= {"expert_dispatch_tokens", "expert_buffer", *_OF_CONTEXT}
_OF_EXPERTS = {"num_experts_per_token", "norm_topk_prob"}


def takes_start(config: ConfigDict, name: str, previous: str | None) -> bool:
  """Whether stage `name`, which follows `previous` if anything, begins with the parameters of `config.start`."""
  return bool(config.start) and previous is None and not config.stages[name].model


def check_start(
  config: ConfigDict, left: Sequence[str], done: Sequence[str], tokenizer: Tokenizer, workdir: Workdir
) -> None:
  """Looks at `config.start` before anything is trained, if one of the stages that are `left` begins with it.

  Raises DataError where the folder is missing or damaged, or has another model or tokenizer than the run.
  """
  run = {*left, *done}
  for name in left:
    follows = any(stage in run for stage in stages_before(config, name))
    begun = any(folder.name.isdigit() for folder in workdir.checkpoints(name).glob("*"))
    if takes_start(config, name, "before" if follows else None) and not begun:
      _check_folder(config, name, tokenizer)


def start_state(config: ConfigDict, name: str, program: TrainProgram, mesh: Mesh) -> TrainState:
  """Step 0 of stage `name` with the parameters of `config.start`, read straight into their shardings."""
  _, params = load_parameters(config.start, program.model.param_dtype, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, program.abstract_state(mesh))
  make = lambda params: initial_state(params, program.optimizer, config.seed)
  return jax.jit(make, out_shardings=shardings, donate_argnums=0)(params)


def _check_folder(config: ConfigDict, name: str, tokenizer: Tokenizer) -> None:
  key = f"start={config.start!r}"
  try:
    found, folder = described(Path(config.start))
  except (OSError, ValueError, WeightsError) as error:
    raise DataError(f"{key}: {error}") from error
  differences = _differences(found, stage_model(config, name))
  wrong = [f"{field}={theirs!r} instead of {ours!r}" for field, theirs, ours in differences if field not in _FREE]
  if wrong:
    raise DataError(f"{key}: another model than the config's: {', '.join(wrong)}")
  for field, theirs, ours in differences:
    if field in _OF_CONTEXT:
      logging.warning("%s has %s=%g, stage %r begins with %g", key, field, theirs, name, ours)
  try:
    its_tokenizer = Tokenizer.from_pretrained(folder)
  except FileNotFoundError:
    logging.warning("%s has no tokenizer: whether its ids are those of %r is not known", key, config.tokenizer.path)
    return
  except ValueError as error:
    raise DataError(f"{key}: {error}") from error
  if its_tokenizer.fingerprint != tokenizer.fingerprint:
    raise DataError(
      f"{key}: its tokenizer, {its_tokenizer.vocab_size} ids, is not the run's, {tokenizer.vocab_size} ids; set"
      f" tokenizer.path={str(folder)!r}"
    )


def _differences(found: ModelConfig, expected: ModelConfig) -> list[tuple[str, Any, Any]]:
  """(field, of the checkpoint, of the config) for each field in which they differ."""
  dense = not found.is_moe and not expected.is_moe
  fields = [field.name for field in dataclasses.fields(found) if not (dense and field.name in _OF_EXPERTS)]
  pairs = [(field, getattr(found, field), getattr(expected, field)) for field in fields]
  return [(field, theirs, ours) for field, theirs, ours in pairs if theirs != ours]
