"""The train loop inside one process: what is logged, what is compiled, what the next stage begins with."""

import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import pytest
import run_helpers
from clock import Clock
from run_helpers import LENGTHS, STEPS, TOKENS_PER_STEP, series

from qwen3_jax import train_loop
from qwen3_jax.checkpoint import CheckpointError, restore_parameters
from qwen3_jax.config import make_model_config
from qwen3_jax.config_loading import load
from qwen3_jax.data.corpora import prepare_corpora
from qwen3_jax.fingerprint import fingerprints
from qwen3_jax.metrics import read_metrics
from qwen3_jax.models.transformer import abstract_parameters
from qwen3_jax.observability import time_record
from qwen3_jax.observability.goodput import goodput
from qwen3_jax.preemption import Preempted, PreemptionNotice
from qwen3_jax.sharding import make_mesh
from qwen3_jax.stages import kinds, pretrain
from qwen3_jax.train_loop import run_stage
from qwen3_jax.workdir import Workdir

EXPERIMENT = f"{run_helpers.ROOT / 'experiments' / 'dense_0_6b.py'}:tiny"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return run_helpers.make_material(tmp_path_factory.mktemp("material"))


class Pipeline:
  """Stages of one run on the first device, called by hand."""

  def __init__(self, material, folder, **changes):
    self.config = load(EXPERIMENT, material.overrides(**changes))
    self.workdir = Workdir(folder)
    self.mesh = make_mesh({"fsdp": 1}, jax.devices()[:1])
    self.tokenizer, self.corpora = prepare_corpora(self.config, folder)

  def stage(self, name):
    return pretrain.make_stage(self.config, name, self.corpora, self.tokenizer, self.mesh)

  def run(self, name, previous=None, tokens_before=0, notice=None):
    stage = self.stage(name)
    run_stage(stage, self.config, self.workdir, self.mesh, previous, tokens_before, notice or PreemptionNotice())

  def parameters(self, stage):
    return restore_parameters(self.workdir.checkpoints(stage), self.abstract())

  def abstract(self):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = abstract_parameters(make_model_config(self.config.model))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


@pytest.fixture(scope="module")
def compilations():
  """Names of the functions that XLA was asked to compile, or to load from its cache, since the test session began."""
  names = []

  def listen(event, duration, **details):
    if event == "/jax/core/compile/backend_compile_duration":
      names.append(details.get("fun_name"))

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield names
  jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def trained(material, tmp_path_factory, compilations):
  """All three stages, and what each of them compiled."""
  pipeline = Pipeline(material, tmp_path_factory.mktemp("run") / "run")
  compiled, tokens, previous = {}, 0, None
  for name, steps in STEPS.items():
    before = len(compilations)
    pipeline.run(name, previous, tokens)
    compiled[name] = compilations[before:]
    tokens, previous = tokens + steps * TOKENS_PER_STEP, name
  return pipeline, compiled


def test_train_step_is_compiled_once_in_a_stage(trained):
  _, compiled = trained
  for name, functions in compiled.items():
    assert sum("train_step" in str(function) for function in functions) == 1, (name, functions)


def test_nothing_is_compiled_between_steps(material, tmp_path, compilations):
  """Twice the steps, not one program more. The first run compiles what later ones in this process share."""
  counts = []
  for run, steps in enumerate((4, 4, 8)):
    changes = {"stages__s1__tokens": steps * TOKENS_PER_STEP, "stages__s1__evaluate_every": 99, "checkpoint__every": 99}
    pipeline = Pipeline(material, tmp_path / str(run), **changes)
    before = len(compilations)
    pipeline.run("s1")
    counts.append(len(compilations) - before)
  assert 0 < counts[1] == counts[2]


def test_a_step_s_seconds_are_those_until_the_next(material, tmp_path):
  """Also where batches wait for the parameters, as rollouts do: then several steps are done before one is logged."""
  pause = 0.1
  pipeline = Pipeline(material, tmp_path / "run", stages__s1__evaluate_every=3, checkpoint__every=100)
  stage = pipeline.stage("s1")
  source = stage.batches.next_batch

  def next_batch(state):
    jax.block_until_ready(state)
    time.sleep(pause)
    return source(state)

  stage.batches.next_batch = next_batch
  run_stage(stage, pipeline.config, pipeline.workdir, pipeline.mesh, None, 0, PreemptionNotice())
  lines = [line for line in read_metrics(pipeline.workdir.metrics("s1")) if "step_seconds" in line]
  assert [line["step"] for line in lines] == list(range(1, STEPS["s1"] + 1))
  for line in lines:
    assert line["step_seconds"] >= line["data_wait_seconds"] >= pause


class Device:
  """Takes `seconds` for each step, one after another, by a clock moved by hand."""

  def __init__(self, clock, seconds):
    self.clock, self.seconds, self.free, self.ends = clock, seconds, 0.0, {}

  def start(self, step):
    self.free = max(self.free, self.clock.now) + self.seconds
    self.ends[step] = self.free

  def is_done(self, step):
    return self.ends[step] <= self.clock.now

  def wait_for(self, step):
    self.clock.now = max(self.clock.now, self.ends[step])


def test_parts_of_a_step_s_seconds(material, tmp_path, monkeypatch):
  """Slow input, host and device; the device works while the host prepares the next step, which hides that much."""
  slow_input, slow_host, slow_device = 0.05, 0.1, 0.5
  clock = Clock()
  device = Device(clock, slow_device)
  pipeline = Pipeline(material, tmp_path / "run", stages__s1__evaluate_every=100, checkpoint__every=100)
  stage = pipeline.stage("s1")
  source = stage.batches.next_batch

  def next_batch(state):
    clock.sleep(slow_input)
    return source(state)

  def complete(batch):
    clock.sleep(slow_host)
    return batch

  class Pending(train_loop._Pending):
    def __init__(self, *arguments):
      super().__init__(*arguments)
      device.start(self.step)

    def is_done(self):
      return device.is_done(self.step)

  finish = train_loop._Run._finish

  def wait_and_finish(run, pending, in_flight):
    with run.record.spend("device"):
      device.wait_for(pending.step)
    finish(run, pending, in_flight)

  monkeypatch.setattr(time_record, "time", clock)
  monkeypatch.setattr(train_loop, "_Pending", Pending)
  monkeypatch.setattr(train_loop._Run, "_finish", wait_and_finish)
  stage.batches.next_batch = next_batch
  started = clock.now
  run_stage(
    dataclasses.replace(stage, complete=complete),
    pipeline.config,
    pipeline.workdir,
    pipeline.mesh,
    None,
    0,
    PreemptionNotice(),
  )
  lines = [line for line in read_metrics(pipeline.workdir.metrics("s1")) if "step_seconds" in line]
  assert [line["step"] for line in lines] == list(range(1, STEPS["s1"] + 1))
  for line in lines:
    parts = line["data_wait_seconds"], line["host_seconds"], line["device_seconds"]
    assert sum(parts) == pytest.approx(line["step_seconds"], abs=1e-6)
  for line in lines[1 : -train_loop.STEPS_IN_FLIGHT]:  # between those that fill the queue and those that empty it
    assert line["data_wait_seconds"] == pytest.approx(slow_input)
    assert line["host_seconds"] == pytest.approx(slow_host)
    assert line["device_seconds"] == pytest.approx(slow_device - slow_host - slow_input)
  steps = STEPS["s1"]
  found = goodput(pipeline.workdir)
  assert found.total == pytest.approx(clock.now - started)
  assert found.total == pytest.approx(slow_input + slow_host + steps * slow_device)
  assert found.seconds["input"] == pytest.approx(steps * slow_input)
  assert found.productive == pytest.approx(found.total - steps * slow_input)


def test_learning_rate_follows_the_schedule_of_each_stage(trained):
  pipeline, _ = trained
  rates = {stage: np.array(list(series(pipeline.workdir.path, stage, "learning_rate").values())) for stage in STEPS}
  optimizers = {stage: pipeline.config.stages[stage].optimizer for stage in STEPS}
  peak = optimizers["s1"].peak_lr
  np.testing.assert_allclose(rates["s1"], peak * np.array([0.5, 1, 1, 1, 1, 1, 1, 1]), rtol=1e-6)
  # S2 decays throughout, from S1's rate to a tenth of it at the step that would follow its last.
  np.testing.assert_allclose(rates["s2"], peak * (1 - 0.9 * np.arange(5) / 5), rtol=1e-6)
  start, end = optimizers["s3"].peak_lr, optimizers["s3"].final_lr
  assert start == pytest.approx(optimizers["s2"].final_lr)
  np.testing.assert_allclose(rates["s3"], end + (start - end) * (1 + np.cos(np.pi * np.arange(5) / 5)) / 2, rtol=1e-6)


def test_tokens_seen_continue_over_stages(trained):
  pipeline, _ = trained
  seen = [value for stage in STEPS for value in series(pipeline.workdir.path, stage, "tokens_seen").values()]
  assert seen == [TOKENS_PER_STEP * (step + 1) for step in range(sum(STEPS.values()))]
  assert [kinds.trained_tokens(pipeline.config.stages[stage]) for stage in STEPS] == [
    steps * TOKENS_PER_STEP for steps in STEPS.values()
  ]


def test_rope_base_and_length_of_each_stage(trained):
  pipeline, _ = trained
  folders = [pipeline.workdir.stage(stage) for stage in STEPS]
  bases = [json.loads((folder / "config.json").read_text())["rope_theta"] for folder in folders]
  assert bases == [1e4, 1e4, 1e6]
  assert [pipeline.stage(stage).program.batch_shape for stage in STEPS] == [
    (128 // LENGTHS[s], LENGTHS[s]) for s in STEPS
  ]


def test_logged_checksums_are_those_of_the_data(trained):
  pipeline, _ = trained
  for name, steps in STEPS.items():
    batches = pipeline.stage(name).batches
    tokens = [batches.next_batch(None).tokens for _ in range(steps)]
    batches.close()
    expected = fingerprints([jax.device_put(rows) for rows in tokens])
    assert list(series(pipeline.workdir.path, name, "data_checksum").values()) == expected


def test_only_asked_for_steps_are_logged_and_the_last(material, tmp_path):
  pipeline = Pipeline(material, tmp_path, log_every=3)
  pipeline.run("s1")
  assert list(series(tmp_path, "s1", "loss")) == [3, 6, 8]
  validated = [line["step"] for line in read_metrics(pipeline.workdir.metrics("s1")) if "validation/loss" in line]
  assert validated == [4, 8]


def test_stop_in_the_last_step_is_not_forgotten(material, tmp_path):
  """A stage that was asked to stop in its last step is whole; the notice still stands for whoever starts the next."""
  pipeline = Pipeline(material, tmp_path)

  class AskedInTheLastStep(PreemptionNotice):
    def requested(self):
      answer = super().requested()
      if self._asked == STEPS["s1"] - 1:
        os.kill(os.getpid(), signal.SIGTERM)
      return answer

  with AskedInTheLastStep() as notice:
    pipeline.run("s1", notice=notice)
    assert notice.requested()
    with pytest.raises(Preempted, match=r"stage 's2' stopped at step 1 of 5 and saved its state"):
      pipeline.run("s2", "s1", notice=notice)
  assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
  assert list(series(tmp_path, "s1", "loss")) == list(range(1, 9))


def test_next_stage_starts_from_the_parameters_of_the_one_before(material, trained, tmp_path):
  """With a learning rate of nearly nothing the parameters after S2 are those after S1."""
  pipeline, _ = trained
  tiny = {"stages__s2__optimizer__peak_lr": 1e-30, "stages__s2__optimizer__final_lr": 0.0}
  still = Pipeline(material, tmp_path, **tiny)
  os.symlink(pipeline.workdir.path / "stages" / "s1", _parent(still.workdir.stage("s1")))
  still.run("s2", "s1")
  ends = still.parameters("s2"), pipeline.parameters("s1")
  for a, b in zip(*map(jax.tree.leaves, ends), strict=True):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def _parent(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  return path


def test_stage_before_without_checkpoints(material, tmp_path):
  with pytest.raises(CheckpointError, match=r"stage 's2' starts from 's1', which has no checkpoint in"):
    Pipeline(material, tmp_path).run("s2", "s1")
