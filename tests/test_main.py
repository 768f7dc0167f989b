"""Experiments from the command line to the report: kills, stops, damage, bad input. Every run is a real process."""

import errno
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import run_helpers
from run_helpers import STEPS, curves, finish, series, wait_until

import qwen3_jax
from qwen3_jax.loading import load_parameters
from qwen3_jax.observability.goodput import goodput
from qwen3_jax.workdir import Workdir

EXPERIMENTS = {"dense": "dense_0_6b", "moe": "moe_235b"}
OPTIONS = {"dense": {}, "moe": {"model__num_experts": 4, "stages__s3__sample_prompts": ("def",)}}
BOTH = pytest.mark.parametrize("kind", EXPERIMENTS)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return run_helpers.make_material(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="module")
def uninterrupted(material, tmp_path_factory):
  """Kind of model -> the work directory of a run that nothing disturbed, and what it printed; not to be changed."""
  made = {}

  def of(kind):
    if kind not in made:
      workdir = tmp_path_factory.mktemp(kind) / "run"
      made[kind] = workdir, material.run(EXPERIMENTS[kind], workdir, **OPTIONS[kind]).check()
    return made[kind]

  return of


@pytest.fixture(scope="module")
def dense(uninterrupted):
  return uninterrupted("dense")[0]


@pytest.fixture
def stopped(dense, tmp_path):
  """The work directory of a run that was stopped in S2, with step 3 saved."""
  workdir = shutil.copytree(dense, tmp_path / "run")
  stages = workdir / "stages"
  shutil.rmtree(stages / "s3")
  (stages / "s2" / "DONE").unlink()
  shutil.rmtree(stages / "s2" / "checkpoints" / "5")
  return workdir


def assert_whole(workdir, reference):
  """The run's numbers are bit for bit those of the run that nothing disturbed, each step once and in order."""
  for stage, steps in STEPS.items():
    assert list(series(workdir, stage, "loss")) == list(range(1, steps + 1))
    assert series(workdir, stage, "data_checksum") == series(reference, stage, "data_checksum")
  assert curves(workdir) == curves(reference)
  for stage in STEPS:
    assert (workdir / "stages" / stage / "samples.jsonl").read_text() == (
      reference / "stages" / stage / "samples.jsonl"
    ).read_text()
    assert Workdir(workdir).done(stage) == {"step": STEPS[stage]}


class TestUninterrupted:
  @BOTH
  def test_report_and_losses(self, uninterrupted, kind):
    workdir, ended = uninterrupted(kind)
    assert ended.out.splitlines()[-1].endswith(f"done with s1, s2, s3. Report: {workdir / 'report.html'}")
    report = (workdir / "report.html").read_text()
    assert all(stage in report for stage in STEPS)
    first = series(workdir, "s1", "loss")[1]
    assert abs(first - np.log(run_helpers.VOCABULARY)) < 0.02 * np.log(run_helpers.VOCABULARY)
    losses = [series(workdir, stage, "validation/loss")[steps] for stage, steps in STEPS.items()]
    assert losses[-1] < losses[0] < first - 0.1
    assert series(workdir, "s1", "unigram_entropy/text")[0] < losses[0]

  @BOTH
  def test_every_step_reads_other_rows(self, uninterrupted, kind):
    workdir, _ = uninterrupted(kind)
    checksums = [value for stage in STEPS for value in series(workdir, stage, "data_checksum").values()]
    assert len(set(checksums)) == len(checksums) == sum(STEPS.values())

  def test_moe_logs_its_router_and_samples(self, uninterrupted):
    workdir, _ = uninterrupted("moe")
    for name in ("balance_loss", "expert_load_entropy", "expert_max_violation"):
      assert len(series(workdir, "s1", name)) == STEPS["s1"]
    samples = [json.loads(line) for line in (workdir / "stages/s3/samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in samples] == [(4, "def"), (5, "def")]

  def test_finished_run_needs_no_device(self, uninterrupted, material):
    """JAX would fail on this platform: nothing may ask for a device."""
    workdir, ended = uninterrupted("dense")
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    command = material.command("dense_0_6b", workdir)
    environment = material.environment | {"JAX_PLATFORMS": "tpu"}
    again = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (again.returncode, again.stdout) == (0, ended.out.splitlines()[-1] + "\n"), again.stderr
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before

  def test_report_that_a_kill_prevented_is_made_up_for(self, dense, material, tmp_path):
    workdir = shutil.copytree(dense, tmp_path / "run")
    (workdir / "report.html").unlink()
    ended = material.run("dense_0_6b", workdir, log_every=2).check()
    assert (workdir / "report.html").exists()
    assert "log_every was 1, is now 2" in ended.err

  def test_checkpoint_loads_and_converts(self, dense, tmp_path, material):
    model, tokenizer = qwen3_jax.load_pretrained(dense / "stages" / "s3")
    assert tokenizer.decode(tokenizer.encode("def f(x):")) == "def f(x):"
    assert model.config.rope_theta == 1e6
    tokens = jnp.arange(24)[None] % run_helpers.VOCABULARY
    assert np.isfinite(np.asarray(model(tokens).logits)).all()
    command = [
      sys.executable,
      "-m",
      "qwen3_jax.convert",
      f"--input={dense / 'stages/s3'}",
      f"--output={tmp_path / 'hf'}",
    ]
    subprocess.run(command, env=material.environment, check=True, capture_output=True)
    exported, its_tokenizer = qwen3_jax.load_pretrained(tmp_path / "hf")
    np.testing.assert_array_equal(np.asarray(model(tokens).logits), np.asarray(exported(tokens).logits))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["rope_theta"] == 1e6
    assert its_tokenizer.fingerprint == tokenizer.fingerprint


def moments(random_source):
  """Where to kill: a name, a condition on the work directory, and the longest further delay in seconds."""
  step = random_source.randint(1, STEPS["s1"])
  return [
    ("while it compiles", lambda workdir: (workdir / "stages/s1/config.json").exists(), 1.5),
    (f"after step {step} of s1", lambda workdir: _lines(workdir, "s1") > step, 0.05),
    ("while it saves in s1", lambda workdir: any(workdir.glob("stages/s1/checkpoints/*tmp*")), 0.02),
    ("before s1 is marked as done", lambda workdir: _lines(workdir, "s1") > STEPS["s1"], 0.3),
    ("as s1 is done", lambda workdir: (workdir / "stages/s1/DONE").exists(), 1.0),
    ("while it saves in s2", lambda workdir: any(workdir.glob("stages/s2/checkpoints/*tmp*")), 0.1),
    ("as s3 begins", lambda workdir: (workdir / "stages/s3/config.json").exists(), 2.0),
  ]


def _lines(workdir, stage):
  path = workdir / "stages" / stage / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(("kind", "chosen"), [("dense", (0, 2, 3, 4, 6)), ("moe", (1, 5))])
def test_kills_at_random_moments_change_nothing(material, uninterrupted, tmp_path, kind, chosen):
  reference, _ = uninterrupted(kind)
  random_source = random.Random(kind)
  workdir, started = tmp_path / "run", time.time()
  killed = []
  for name, condition, delay in [moments(random_source)[i] for i in chosen]:
    process = material.start(EXPERIMENTS[kind], workdir, **OPTIONS[kind])
    if wait_until(functools.partial(condition, workdir), process):
      time.sleep(random_source.uniform(0, delay))
    process.kill()
    ended = finish(process)
    assert "Traceback" not in ended.err and ended.code in (0, -signal.SIGKILL), ended.err
    if ended.code:
      killed.append(name)
  assert len(killed) >= len(chosen) - 1, killed  # the machine may be so slow to us that one comes too late
  material.run(EXPERIMENTS[kind], workdir, **OPTIONS[kind]).check()
  seconds = time.time() - started
  assert_whole(workdir, reference)
  assert not list(workdir.glob("stages/*/checkpoints/*tmp*"))
  found = goodput(Workdir(workdir))
  assert 1 < found.starts <= len(chosen) + 1
  assert 0 < found.productive < found.total < seconds < 2 * found.total
  assert found.seconds["down"] > 0  # at least until a start knows its work directory


def test_second_run_is_refused_then_sigterm_saves(material, dense, tmp_path):
  workdir = tmp_path / "run"
  process = material.start("dense_0_6b", workdir)
  assert wait_until(lambda: _lines(workdir, "s1") > 1, process)
  process.send_signal(signal.SIGSTOP)  # so that it is at work as long as we like
  second = material.run("dense_0_6b", workdir)
  assert f"workdir={workdir}: in use by process {process.pid} on " in second.error
  process.send_signal(signal.SIGTERM)
  process.send_signal(signal.SIGCONT)
  ended = finish(process).check()
  line = ended.out.splitlines()[-1]
  assert "stage 's1' " in line and line.endswith("The same command continues.")
  assert not (workdir / "stages/s2").exists()
  reached = len(series(workdir, "s1", "loss"))
  assert (workdir / "stages/s1/checkpoints" / str(reached)).is_dir()
  material.run("dense_0_6b", workdir).check()
  assert_whole(workdir, dense)


def test_damaged_newest_checkpoint(material, dense, stopped):
  newest, before = (stopped / "stages/s1/checkpoints" / step for step in ("8", "6"))
  (stopped / "stages/s1/DONE").unlink()
  shutil.rmtree(stopped / "stages/s2")
  for path in newest.rglob("d/*"):
    os.truncate(path, path.stat().st_size // 2)
  ended = material.run("dense_0_6b", stopped).check()
  warnings = [line for line in ended.err.splitlines() if "is damaged" in line]
  assert len(warnings) == 1 and f"checkpoint {newest} is damaged" in warnings[0] and "using step 6" in warnings[0]
  assert before.is_dir() and (newest.parent / "damaged-8").is_dir()
  assert_whole(stopped, dense)


class TestFullDisk:
  def test_a_checkpoint_that_does_not_fit(self, material, dense, stopped):
    ended = material.run("dense_0_6b", stopped, max_file_bytes=20_000)
    assert f"{stopped / 'stages/s2/checkpoints'}: checkpoint 5 was not saved" in ended.error
    assert "the last good one is step 3" in ended.error and "File too large" in ended.error
    material.run("dense_0_6b", stopped).check()
    assert_whole(stopped, dense)

  def test_metrics_that_do_not_fit(self, material, stopped):
    size = (stopped / "config.json").stat().st_size + 1000
    metrics = stopped / "stages/s2/metrics.jsonl"
    line = json.loads(metrics.read_text().splitlines()[1])
    # As long a file as a long run would have; what was written up to the checkpoint stays.
    with metrics.open("w") as file:
      for _ in range(size // len(json.dumps(line)) - 1):
        file.write(json.dumps(line) + "\n")
    ended = material.run("dense_0_6b", stopped, max_file_bytes=size)
    assert ended.error == (
      f"error: {metrics}: {os.strerror(errno.EFBIG)}. The same command continues from step 3 of stage 's2'."
    )

  def test_no_space_left(self, material, tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(tmp_path)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
      pytest.skip("mounting a small file system needs root")
    try:
      ended = material.run("dense_0_6b", tmp_path / "run", checkpoint__keep=100, checkpoint__every=1)
    finally:
      subprocess.run(["umount", str(tmp_path)], check=True)
    assert "No space left on device" in ended.error
    assert "the last good one is step" in ended.error or "continues from step" in ended.error


def test_losses_that_are_not_finite(material, tmp_path):
  """A learning rate that throws the parameters far out: every later loss overflows, every later step is skipped."""
  options = {"stages__s1__optimizer__peak_lr": 1e30, "stages__s1__max_skipped_steps": 3, "checkpoint__every": 2}
  ended = material.run("dense_0_6b", tmp_path / "run", **options)
  assert "stage 's1', step " in ended.error and "(max_skipped_steps=3)" in ended.error
  skipped = series(tmp_path / "run", "s1", "skipped_steps")
  assert list(skipped.values())[-4:] == [1, 2, 3, 4] and f"step {max(skipped)}:" in ended.error
  assert len(skipped) < STEPS["s1"]
  _, parameters = load_parameters(tmp_path / "run" / "stages/s1")
  assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(parameters))


class TestOneStage:
  def test_starts_from_the_stage_before(self, material, dense, tmp_path):
    workdir = shutil.copytree(dense, tmp_path / "run")
    for stage in ("s2", "s3"):
      shutil.rmtree(workdir / "stages" / stage)
    ended = material.run("dense_0_6b:stage=s2", workdir).check()
    assert "without" not in ended.err
    assert "done with s2. Report:" in ended.out
    assert curves(workdir, ["s2"]) == curves(dense, ["s2"])
    assert not (workdir / "stages/s3").exists()

  def test_says_what_it_runs_without(self, material, dense, tmp_path):
    ended = material.run("dense_0_6b:stage=s2", tmp_path / "run").check()
    assert "stage 's2' runs without s1 before it" in ended.err
    assert series(tmp_path / "run", "s2", "tokens_seen")[1] == run_helpers.TOKENS_PER_STEP
    assert series(tmp_path / "run", "s2", "loss")[1] == pytest.approx(np.log(run_helpers.VOCABULARY), rel=0.02)


class TestBadInput:
  def test_all_problems_of_the_configuration_at_once(self, material, tmp_path):
    changes = {"modle__num_layers": 1, "seed": "one", "mesh__tensor": -1, "stages__s1__batch_size": 5}
    ended = material.run("dense_0_6b", tmp_path / "run", **changes, stages__s1__micro_batches=2)
    assert ended.code == 1 and "Traceback" not in ended.err
    first, *problems = ended.err.splitlines()
    assert first == "4 configuration problems:"
    for start in (
      "  --config.modle.num_layers=1: unknown key. Did you mean 'model.num_layers'?",
      "  --config.seed=one: expected an integer",
      "  mesh: ",
      "  stages.s1.batch_size=5: must be a multiple of micro_batches=2",
    ):
      assert sum(problem.startswith(start) for problem in problems) == 1, (start, problems)
    assert not (tmp_path / "run").exists()

  def test_mesh_and_batch_that_do_not_fit_the_devices(self, material, tmp_path):
    ended = material.run("dense_0_6b", tmp_path / "run", cpu_devices=3, mesh__tensor=2)
    assert "3 devices cannot be divided by 2" in ended.err
    ended_batch = material.run("dense_0_6b", tmp_path / "run", cpu_devices=3)
    assert "stages.s1.batch_size=4: a micro-batch of 2 sequences cannot be divided over" in ended_batch.err
    for each in (ended, ended_batch):
      assert each.code == 1 and "Traceback" not in each.err

  def test_corpus_that_is_not_there(self, material, tmp_path):
    missing = tmp_path / "missing.jsonl"
    ended = material.run("dense_0_6b", tmp_path / "run", data__corpora__web__source=f"jsonl:{missing}")
    assert ended.error == f"error: data.corpora.web.source='jsonl:{missing}': no files match '{missing}'"

  def test_empty_corpus(self, material, tmp_path):
    empty = tmp_path / "empty.jsonl"
    run_helpers.write_jsonl(empty, [" ", "\n"])
    ended = material.run("dense_0_6b", tmp_path / "run", data__corpora__stem__source=f"jsonl:{empty}")
    assert ended.error.startswith("error: data.corpora.stem.source=") and "there is no text in it" in ended.error

  def test_vocabulary_larger_than_the_embedding(self, material, tmp_path):
    ended = material.run("dense_0_6b", tmp_path / "run", model__vocab_size=500)
    assert ended.error == "error: the tokenizer has 512 ids, more than the model's vocab_size=500 rows"

  def test_corpus_prepared_with_another_tokenizer(self, material, dense, tmp_path):
    (prepared,) = [path.parent for path in material.cache.glob("*/manifest.json")]
    other = tmp_path / "tokenizer" / "tokenizer.model"
    texts = [json.loads(line)["text"] for line in material.corpus.read_text().splitlines()]
    run_helpers.train_sentencepiece(texts, other, 400)
    options = {"tokenizer__path": other, "data__corpora__web__source": f"prepared:{prepared}"}
    ended = material.run("dense_0_6b", tmp_path / "run", data__cache="", **options)
    assert f"data.corpora.web: {prepared} was prepared with tokenizer " in ended.error

  def test_no_tokenizer(self, material, tmp_path):
    ended = material.run("dense_0_6b", tmp_path / "run", tokenizer__path=tmp_path)
    assert ended.error.startswith(f"error: tokenizer.path='{tmp_path}': no tokenizer in {tmp_path}")

  def test_workdir_that_cannot_be_written(self, material, tmp_path):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "run"
    ended = material.run("dense_0_6b", workdir)
    assert ended.error == f"error: workdir={workdir}: cannot be written (Not a directory)"
