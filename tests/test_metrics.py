"""Metrics: JSON lines that survive kills and resumes, TensorBoard files that say the same, peak speeds."""

import json
import math
import pathlib
import resource
import struct
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from qwen3_jax.metrics import MetricWriter, device_peak_flops, read_metrics, read_samples
from qwen3_jax.workdir import Workdir


@pytest.fixture
def workdir(tmp_path):
  return Workdir(tmp_path)


def _write(workdir: Workdir, steps: range, offset: float = 0.0) -> None:
  writer = MetricWriter(workdir, "s1")
  for step in steps:
    writer.write(step, {"loss": 10.0 - step + offset, "skipped_steps": 0})
    writer.write_sample(step, "Once", f" step {step} {offset}")
  writer.close()


def _without_time(lines: list[dict]) -> list[dict]:
  return [{name: value for name, value in line.items() if name != "time"} for line in lines]


def test_lines_hold_step_time_and_scalars(workdir):
  before = time.time()
  writer = MetricWriter(workdir, "s1")
  writer.write(3, {"loss": np.float32(2.5), "data_checksum": 4_000_000_001, "learning_rate": jax.numpy.float32(0.25)})
  # Read before the writer is closed: the line is already with the operating system.
  (line,) = [json.loads(text) for text in workdir.metrics("s1").read_text().splitlines()]
  writer.close()
  assert before - 0.01 <= line.pop("time") <= time.time() + 0.01
  assert line == {"step": 3, "loss": 2.5, "data_checksum": 4_000_000_001, "learning_rate": 0.25}
  assert isinstance(line["data_checksum"], int)


def test_numbers_that_are_not_finite_are_strict_json_and_come_back(workdir):
  writer = MetricWriter(workdir, "s1")
  writer.write(1, {"loss": math.nan, "gradient_norm": math.inf, "low": -math.inf})
  writer.close()
  text = workdir.metrics("s1").read_text()
  json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
  (line,) = read_metrics(workdir.metrics("s1"))
  assert math.isnan(line["loss"])
  assert (line["gradient_norm"], line["low"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("resumed_from", [0, 4, 7])
def test_a_resumed_run_forgets_what_came_after_its_checkpoint(workdir, resumed_from):
  _write(workdir, range(8))
  writer = MetricWriter(workdir, "s1")
  writer.truncate_after(resumed_from)
  kept = range(resumed_from + 1) if resumed_from else range(0)
  assert [line["step"] for line in read_metrics(workdir.metrics("s1"))] == list(kept)
  writer.close()
  _write(workdir, range(kept.stop, 10), offset=0.5)
  lines = read_metrics(workdir.metrics("s1"))
  assert [line["step"] for line in lines] == list(range(10))
  assert [line["loss"] for line in lines] == [10.0 - s + (0.5 if s >= kept.stop else 0) for s in range(10)]
  texts = [sample["text"] for sample in read_samples(workdir.samples("s1"))]
  assert texts == [f" step {s} {0.5 if s >= kept.stop else 0.0}" for s in range(10)]


@pytest.mark.parametrize("name", ["metrics", "samples"])
@pytest.mark.parametrize("half", [b'{"step": 4, "loss": 5', '{"step": 4, "text": "长'.encode()[:-1], b"\x00\x00\x00"])
def test_a_half_written_last_line_is_dropped(workdir, name, half):
  _write(workdir, range(1, 4))
  path = getattr(workdir, name)("s1")
  whole = path.read_bytes()
  path.write_bytes(whole + half)
  writer = MetricWriter(workdir, "s1")
  assert path.read_bytes() == whole
  writer.write(4, {"loss": 6.0})
  writer.write_sample(4, "Once", " more")
  writer.close()
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_samples_keep_any_text(workdir):
  texts = ["tab\tnew\nline\r\n", "\u2028\u2029\u0085\x0b\x0c\x1c", "\x00\x1b[31m", "长城😀", '"quoted" \\ <script>']
  writer = MetricWriter(workdir, "s1")
  for step, text in enumerate(texts):
    writer.write_sample(step, text, text)
  writer.close()
  MetricWriter(workdir, "s1").truncate_after(len(texts))  # rewrites the file
  assert [(s["prompt"], s["text"]) for s in read_samples(workdir.samples("s1"))] == [(t, t) for t in texts]


def test_damaged_values_are_left_out(workdir):
  path = workdir.metrics("s1")
  path.parent.mkdir(parents=True)
  path.write_text('{"step": 1, "loss": null, "a": [1], "b": {}, "c": "x", "d": 2}\n{"loss": 1}\n{"step": "2"}\n')
  assert read_metrics(path) == [{"step": 1, "d": 2}]


def test_a_full_disk_names_the_file(workdir):
  writer = MetricWriter(workdir, "s1")
  writer.write(1, {"loss": 2.0})
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (workdir.metrics("s1").stat().st_size + 8, hard))
  try:
    with pytest.raises(OSError) as error:
      writer.write(2, {"loss": 1.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert error.value.filename == str(workdir.metrics("s1"))
  assert [line["step"] for line in read_metrics(workdir.metrics("s1"))] == [1]


def test_the_first_error_is_the_one_that_is_raised(workdir):
  """What is left in a buffer when the disk is full fails again when the file is closed."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  try:
    with pytest.raises(OSError) as error, MetricWriter(workdir, "s1") as writer:
      resource.setrlimit(resource.RLIMIT_FSIZE, (8, hard))
      writer.write(1, {"loss": 2.0})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert error.value.filename == str(workdir.metrics("s1"))


# TensorBoard.


def test_tensorboard_files_hold_the_same_scalars(workdir):
  _write(workdir, range(1, 6))
  writer = MetricWriter(workdir, "s1")
  writer.truncate_after(3)
  for step in (4, 5, 6):
    writer.write(step, {"loss": 0.5 * step, "validation/python/loss": 1.25})
  writer.close()
  files = sorted(workdir.tensorboard("s1").iterdir(), key=lambda path: path.stat().st_mtime)
  assert len(files) == 2
  assert all(".tfevents." in path.name for path in files)
  expected = {
    (name, line["step"]): value
    for line in _without_time(read_metrics(workdir.metrics("s1")))
    for name, value in line.items()
    if name != "step"
  }
  assert _as_tensorboard_shows(files) == expected
  assert expected["loss", 5] == 2.5
  assert expected["loss", 3] == 7.0


def _as_tensorboard_shows(files: list[pathlib.Path]) -> dict[tuple[str, int], float]:
  """Scalars by tag and step; a session that starts drops what an earlier one wrote from its step on."""
  shown: dict[tuple[str, int], float] = {}
  for path in files:
    events = list(_events(path.read_bytes()))
    assert events[0].file_version == "brain.Event:2"
    for event in events[1:]:
      if event.HasField("session_log") and event.session_log.status == SessionLog.START:
        shown = {key: value for key, value in shown.items() if key[1] < event.step}
      for value in event.summary.value:
        shown[value.tag, event.step] = value.simple_value
  return shown


def _events(data: bytes):
  """The records of a TFRecord file: length, its checksum, the event, its checksum."""
  while data:
    (length, length_crc), body = struct.unpack("<QI", data[:12]), data[12:]
    assert length_crc == _masked_crc32c(data[:8])
    assert struct.unpack("<I", body[length : length + 4]) == (_masked_crc32c(body[:length]),)
    yield Event.FromString(body[:length])
    data = body[length + 4 :]


def _masked_crc32c(data: bytes) -> int:
  """CRC-32C (RFC 3720), bit by bit, rotated and offset as TFRecord has it."""
  crc = 0xFFFFFFFF
  for byte in data:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# Peak speeds.


@pytest.mark.parametrize(
  ("kind", "teraflops"),
  [
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5e", 197),
    ("TPU v5p", 459),
    ("TPU v5", 459),
    ("TPU v6 lite", 918),
    ("TPU7x", 2307 / 2),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA H100 80GB HBM3", 989.4),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H200", 989.4),
    ("NVIDIA B200", 2250),
    ("NVIDIA GeForce RTX 2060", None),
    ("TPU v99", None),
  ],
)
def test_peak_of_an_accelerator(kind, teraflops):
  peak = device_peak_flops(SimpleNamespace(platform=kind.split()[0].lower(), device_kind=kind))
  assert peak == (None if teraflops is None else pytest.approx(teraflops * 1e12, rel=1e-3))


def test_peak_of_a_cpu_is_near_what_numpy_reaches():
  a = np.ones((768, 768), np.float32)
  best = math.inf
  for _ in range(6):
    started = time.perf_counter()
    a @ a
    best = min(best, time.perf_counter() - started)
  reached = 2 * 768**3 / best
  assert 0.1 * reached < device_peak_flops(jax.devices("cpu")[0]) < 10 * reached
