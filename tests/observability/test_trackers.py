"""Weights & Biases and MLflow, the real ones without a network: what arrives there, resumed runs, failures."""

import importlib.util
import json
import math
import os
import shutil

import pytest

from qwen3_jax.config import base_config
from qwen3_jax.config_checks import ConfigError, validate
from qwen3_jax.metrics import MetricWriter, read_metrics
from qwen3_jax.observability import trackers
from qwen3_jax.observability.trackers import check_installed, open_trackers
from qwen3_jax.workdir import Workdir


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
    monkeypatch.delenv(name)
  monkeypatch.setenv("WANDB_MODE", "offline")
  monkeypatch.chdir(tmp_path)
  return Workdir(tmp_path / "run")


@pytest.fixture(scope="module")
def database(tmp_path_factory):
  """An empty database of MLflow, which takes seconds to be made."""
  from mlflow.tracking import MlflowClient

  path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
  MlflowClient(f"sqlite:///{path}").search_experiments()
  return path


def _config(*names, name="an experiment"):
  config = base_config()
  config.name, config.trackers = name, names
  return config


def _write(config, workdir, stage, steps, offset=0.0):
  """As the train loop does; the trackers' ids of the run."""
  opened = open_trackers(config, workdir, stage)
  writer = MetricWriter(workdir, stage, opened)
  writer.truncate_after(steps.start - 1)
  for step in steps:
    writer.write(step, {"loss": step + offset, "validation/code: c++/loss": math.inf})
  writer.close()
  return [tracker.run for tracker in opened]


def test_mlflow_has_one_run_of_all_stages_and_starts(workdir, database):
  from mlflow.tracking import MlflowClient

  workdir.path.mkdir()
  shutil.copy(database, workdir.path / "mlflow.db")
  config = _config("mlflow")
  runs = _write(config, workdir, "s1", range(1, 4))
  config.seed = 7  # changed between two starts
  runs += _write(config, workdir, "s1", range(3, 5), offset=0.5)
  runs += _write(config, workdir, "s2", range(1, 3))
  assert len(runs) == 3 and len(set(runs)) == 1
  assert [line["loss"] for line in read_metrics(workdir.metrics("s1"))] == [1, 2, 3.5, 4.5]

  client = MlflowClient(f"sqlite:///{workdir.path}/mlflow.db")
  experiment = client.get_experiment_by_name("qwen3_jax")
  (run,) = client.search_runs([experiment.experiment_id])
  assert (run.info.run_id, run.info.run_name, run.info.status) == (runs[0], "an experiment", "FINISHED")
  assert (run.data.params["seed"], run.data.params["model.num_layers"]) == ("0", "28")
  history = [(metric.step, metric.value) for metric in client.get_metric_history(runs[0], "s1/loss")]
  assert sorted(history) == [(1, 1), (2, 2), (3, 3), (3, 3.5), (4, 4.5)]
  assert [metric.step for metric in client.get_metric_history(runs[0], "s2/loss")] == [1, 2]
  assert "s1/validation/code_ c__/loss" in run.data.metrics
  assert {path.name for path in workdir.path.parent.iterdir()} == {"run"}  # nothing beside the work directory


def test_mlflow_at_another_address_is_another_run(workdir, database, monkeypatch, tmp_path):
  runs = []
  for number in (1, 2):
    shutil.copy(database, tmp_path / f"{number}.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/{number}.db")
    runs += _write(_config("mlflow"), workdir, "s1", range(number, number + 1))
  first, second = runs
  assert first != second
  assert json.loads((workdir.path / "trackers.json").read_text()) == {"mlflow": second}


def test_wandb_offline_has_one_run_of_all_stages_and_starts(workdir):
  from wandb.proto.wandb_internal_pb2 import Record

  config = _config("wandb")
  runs = _write(config, workdir, "s1", range(1, 4))
  runs += _write(config, workdir, "s1", range(3, 5), offset=0.5)
  runs += _write(config, workdir, "s2", range(1, 2))
  assert len(runs) == 3 and len(set(runs)) == 1
  history, names, ids = [], set(), set()
  files = sorted(workdir.path.glob(f"wandb/offline-run-*-{runs[0]}/*.wandb"))
  for file in files:
    for record in map(Record.FromString, _leveldb_records(file.read_bytes())):
      if record.HasField("history"):
        values = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        history.append({key: value for key, value in values.items() if not key.startswith("_")})
      elif record.HasField("run"):
        names.add(record.run.display_name)
        ids.add(record.run.run_id)
        assert record.run.project == "qwen3_jax"
  assert (names, ids) == ({"an experiment"}, {runs[0]})
  losses = [(line["s1/step"], line["s1/loss"]) for line in history if "s1/loss" in line]
  assert losses == [(1, 1), (2, 2), (3, 3), (3, 3.5), (4, 4.5)]
  assert [line["s2/step"] for line in history if "s2/loss" in line] == [1]


def _leveldb_records(data: bytes):
  """Of a W&B file: 7 bytes, then LevelDB's log format (blocks of 32 KiB; crc, length and type before each part)."""
  assert data[:4] == b":W&B"
  position, parts = 7, b""
  while position + 7 <= len(data):
    left = 32768 - position % 32768
    if left < 7:
      position += left
      continue
    length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
    parts += data[position + 7 : position + 7 + length]
    position += 7 + length
    if kind in (1, 4):  # whole, or the last part
      yield parts
      parts = b""


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_to_install(name, workdir, monkeypatch):
  found = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else found(module))
  with pytest.raises(ConfigError, match=rf"trackers=.*'{name}' is not installed; pip install 'qwen3_jax\[{name}\]'"):
    check_installed(_config("wandb", "mlflow"))


def test_a_tracker_that_does_not_start_says_why(workdir, monkeypatch):
  monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://else")
  with pytest.raises(ConfigError, match=r"trackers=\('mlflow',\): 'mlflow' does not start: .*nowhere"):
    open_trackers(_config("mlflow"), workdir, "s1")


def test_a_tracker_that_fails_later_does_not_end_the_run(workdir, monkeypatch, caplog):
  class Fails:
    run = "1"

    def __init__(self, *arguments):
      pass

    def write(self, step, scalars):
      raise ConnectionError("the network is gone")

    def close(self):
      pytest.fail("is not asked again")

  monkeypatch.setattr(trackers, "_WandB", Fails)
  _write(_config("wandb"), workdir, "s1", range(1, 4))
  assert len(read_metrics(workdir.metrics("s1"))) == 3
  warnings = [record.getMessage() for record in caplog.records if "tracker" in record.getMessage()]
  assert warnings == ["tracker wandb: the network is gone; this stage goes on without it"]


def test_only_the_first_process_opens_any(workdir, monkeypatch):
  monkeypatch.setattr(trackers.jax, "process_index", lambda: 1)
  assert open_trackers(_config("wandb", "mlflow"), workdir, "s1") == []


def test_names_and_times_are_checked():
  config = _config("wandbb")
  config.abort_after_seconds = 60
  with pytest.raises(ConfigError) as error:
    validate(config)
  assert "trackers: unknown tracker 'wandbb'. Did you mean 'wandb'? Known: wandb, mlflow" in error.value.problems
  assert "abort_after_seconds=60: must be above stall_seconds=120, or 0" in error.value.problems
