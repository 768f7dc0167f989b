"""Teachers on devices: hidden states and heads in any layout; what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.batch import Batch, Teachers
from qwen3_jax.data.records import DataError
from qwen3_jax.data.train_tokenizer import train_sentencepiece
from qwen3_jax.distillation.teacher import Teacher, check_teacher, with_hidden
from qwen3_jax.loading import load_pretrained
from qwen3_jax.sharding import batch_sharding, make_mesh

B, T = 8, 16
STUDENT_MESH = {"data": 4, "fsdp": 2}


def batch(mesh, choice=None) -> Batch:
  """Rows of two segments and some padding, as device arrays."""
  rng = np.random.default_rng(0)
  segments = np.repeat([[1] * 7 + [2] * 6 + [0] * 3], B, axis=0).astype(np.int32)
  positions = np.repeat([[*range(7), *range(6), 0, 0, 0]], B, axis=0).astype(np.int32)
  tokens = rng.integers(0, 300, (B, T)).astype(np.int32)
  choice = np.zeros((B, T), np.int32) if choice is None else choice
  made = Batch(tokens, tokens, np.ones((B, T), np.float32), positions, segments, teachers=Teachers(choice))
  return jax.device_put(made, batch_sharding(mesh))


def teacher(folder, number=0, mesh=None, student_mesh=None, **changes) -> Teacher:
  options = {"dtype": "float32", "offload": False, "vocab_size": 512, "batch_shape": (B, T), "micro_batches": 1}
  student_mesh = student_mesh or make_mesh(STUDENT_MESH)
  return Teacher(
    folder, number, mesh=make_mesh(mesh or STUDENT_MESH), student_mesh=student_mesh, **{**options, **changes}
  )


def expected(folder, given: Batch) -> np.ndarray:
  model, _ = load_pretrained(folder, "float32")
  on_one = jax.tree.map(np.asarray, given)
  return np.asarray(
    model.hidden(*(jnp.asarray(x) for x in (on_one.tokens, on_one.positions, on_one.segment_ids))).final
  )


@pytest.mark.parametrize("name, mesh", [("dense", {"fsdp": 4, "tensor": 2}), ("moe", {"expert": 4, "data": 2})])
@pytest.mark.parametrize("offload", [False, True])
def test_hidden_states_in_a_layout_of_its_own(teacher_folder, name, mesh, offload):
  folder, given = teacher_folder(name), batch(make_mesh(STUDENT_MESH))
  made = teacher(folder, mesh=mesh, offload=offload, micro_batches=2)
  found = made.hidden(given)
  assert found.sharding == batch_sharding(make_mesh(STUDENT_MESH))
  real = np.asarray(given.segment_ids) > 0
  np.testing.assert_allclose(np.asarray(found)[real], expected(folder, given)[real], atol=2e-5, rtol=2e-5)


def test_rows_of_other_teachers_cost_nothing(teacher_folder):
  """Micro-batch i holds rows i, i + 2, ...: the first learns from teacher 0, the second from teacher 1."""
  folder = teacher_folder("dense")
  choice = np.repeat(np.arange(B)[:, None] % 2, T, axis=1).astype(np.int32)
  given = batch(make_mesh(STUDENT_MESH), choice)
  teachers = [teacher(folder, number, micro_batches=2) for number in range(2)]
  both = with_hidden(teachers, given)
  real, wanted = np.asarray(given.segment_ids) > 0, expected(folder, given)
  for number, hidden in enumerate(both.teachers.hidden):
    mine = choice == number
    np.testing.assert_allclose(np.asarray(hidden)[real & mine], wanted[real & mine], atol=2e-5, rtol=2e-5)
    assert not np.any(np.asarray(hidden)[~mine])


@pytest.mark.parametrize("vocab_size", [400, 512, 600])
def test_the_head_has_the_students_columns(teacher_folder, vocab_size):
  folder = teacher_folder("dense")
  model, _ = load_pretrained(folder, "float32")
  head = np.asarray(teacher(folder, vocab_size=vocab_size, student_mesh=make_mesh({"data": 4, "tensor": 2})).head)
  assert head.shape == (model.config.hidden_size, vocab_size)
  both = min(vocab_size, 512)
  np.testing.assert_array_equal(head[:, :both], np.asarray(model.head_kernel)[:, :both])
  assert not head[:, both:].any()


def test_what_cannot_teach_is_refused(teacher_folder, tokenizer, tmp_path):
  key = "stages.x.teachers.large.path"
  check = lambda folder, of=tokenizer: check_teacher(key, folder, of)
  assert check(teacher_folder("moe")).num_experts > 0
  with pytest.raises(DataError, match=f"{key}='{tmp_path}/nowhere'.*no such folder"):
    check(tmp_path / "nowhere")
  with pytest.raises(DataError, match=f"{key}=.*without its tokenizer"):
    check(teacher_folder("dense", with_tokenizer=False))
  texts = [f"{word} and other words than those of the first, number {i}" for i, word in enumerate(dir(np))]
  train_sentencepiece(texts, tmp_path / "tokenizer.model", 305)
  other = type(tokenizer).from_pretrained(tmp_path)
  with pytest.raises(DataError, match=r"310 ids.*is not the student's, 305 ids"):
    check(teacher_folder("dense"), other)
  damaged = teacher_folder("dense")
  (damaged / "config.json").write_text("{")
  with pytest.raises(DataError, match=f"{key}=.*config.json"):
    check(damaged)


def test_nothing_of_a_teacher_is_in_the_state(teacher_folder):
  """What a checkpoint holds is the train state: student's parameters and optimizer."""
  from experiments.miniature_distillation import get_config
  from qwen3_jax.stages.kinds import make_program

  config = get_config("tiny")
  mesh = make_mesh({"data": 1}, jax.devices()[:1])
  program = make_program(config, "on_policy")
  state = program.abstract_state(mesh)
  without = dataclasses.replace(program, teachers=()).abstract_state(mesh)
  assert jax.tree.structure(state) == jax.tree.structure(without)
