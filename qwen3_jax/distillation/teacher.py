"""Teacher: a frozen model on devices, and its hidden states for a student's batches."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from qwen3_jax.batch import Batch
from qwen3_jax.convert import described
from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.distillation.teacher_program import TeacherProgram, fields_of
from qwen3_jax.loading import load_parameters
from qwen3_jax.models.cached import decoding_layout
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import from_parameters
from qwen3_jax.safetensors_io import WeightsError
from qwen3_jax.sharding import array_spec, batch_sharding, parameter_shardings


def check_teacher(key: str, path: Path, tokenizer: Tokenizer) -> ModelConfig:
  """The teacher's model. Raises DataError that names `key` where the folder is missing or its vocabulary another."""
  try:
    config, folder = described(path)
    theirs = Tokenizer.from_pretrained(folder)
  except FileNotFoundError as error:
    raise DataError(f"{key}={str(path)!r}: a teacher without its tokenizer ({error}): are the ids the same?") from error
  except (OSError, ValueError, WeightsError) as error:
    raise DataError(f"{key}={str(path)!r}: {error}") from error
  if theirs.fingerprint != tokenizer.fingerprint:
    raise DataError(
      f"{key}={str(path)!r}: the teacher's tokenizer, {theirs.vocab_size} ids, fingerprint {theirs.fingerprint}, is not"
      f" the student's, {tokenizer.vocab_size} ids, fingerprint {tokenizer.fingerprint}: predictions cannot be compared"
    )
  return config


class Teacher:
  """Parameters in `dtype` on a mesh of its own over the student's devices; nothing of it is trained or saved.

  Args:
    path: a checkpoint folder, see `load_pretrained`.
    number: in `Batch.teachers.choice`.
    dtype: of parameters and computation.
    mesh: of the teacher.
    offload: whether the parameters wait in the host's memory while the student trains.
    student_mesh, vocab_size: of the student; its step takes `head` [D', V] there, with as many columns.
    batch_shape, micro_batches: of the student's step.
  """

  def __init__(
    self,
    path: Path,
    number: int,
    *,
    dtype: str,
    mesh: Mesh,
    offload: bool,
    student_mesh: Mesh,
    vocab_size: int,
    batch_shape: tuple[int, int],
    micro_batches: int,
  ):
    config, params = load_parameters(path, dtype, mesh)
    self.config = config
    self._number, self._mesh, self._student_mesh = number, mesh, student_mesh
    self.head = _head(config, params, vocab_size, mesh, student_mesh)
    self._shardings = parameter_shardings(config, mesh)
    params = jax.jit(functools.partial(decoding_layout, config, stacked=True), out_shardings=self._shardings)(params)
    self._offload = offload
    if offload:
      on_host = jax.tree.map(lambda sharding: sharding.with_memory_kind("pinned_host"), self._shardings)
      params = jax.device_put(params, on_host)
    self._params = params
    program = TeacherProgram(config, batch_shape, micro_batches)
    self._hidden = program.lower(mesh).compile()

  def hidden(self, batch: Batch) -> jax.Array:
    """[B, T, D'] on the student's mesh, of a batch there."""
    fields = {name: jax.device_put(x, batch_sharding(self._mesh)) for name, x in fields_of(batch).items()}
    params = jax.device_put(self._params, self._shardings) if self._offload else self._params
    found = self._hidden(params, fields, jnp.int32(self._number))
    return jax.device_put(found, batch_sharding(self._student_mesh))


def with_hidden(teachers: list[Teacher], batch: Batch) -> Batch:
  """A batch on the student's mesh, with what its teachers make of it."""
  assert batch.teachers is not None
  hidden = tuple(teacher.hidden(batch) for teacher in teachers)
  return dataclasses.replace(batch, teachers=dataclasses.replace(batch.teachers, hidden=hidden))


def _head(config: ModelConfig, params, vocab_size: int, mesh: Mesh, student_mesh: Mesh) -> jax.Array:
  """The head with `vocab_size` columns on the student's mesh: rows for no token are cut off, or added as zeros."""

  def resized(params):
    head = from_parameters(config, params).head_kernel.astype(config.dtype)[:, :vocab_size]
    return jnp.pad(head, ((0, 0), (0, vocab_size - head.shape[1])))

  shape = (config.hidden_size, vocab_size)
  names = ("embed", "vocab")
  head = jax.jit(resized, out_shardings=NamedSharding(mesh, array_spec(names, shape, mesh)))(params)
  return jax.device_put(head, NamedSharding(student_mesh, array_spec(names, shape, student_mesh)))
