"""python -m qwen3_jax.compile, as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from qwen3_jax.compilation.chips import GIB
from qwen3_jax.compilation.compiler import parse_overflow

pytest.importorskip("libtpu")

ROOT = Path(__file__).parents[2]
TINY = ["--config=experiments/moe_30b_a3b.py:tiny,stage=s1", "--config.stages.s1.micro_batches=1"]


def run(*arguments):
  """Exit code and output."""
  command = [sys.executable, "-m", "qwen3_jax.compile", *arguments]
  environment = os.environ | {"PYTHONPATH": str(ROOT)}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
  return done.returncode, done.stdout + done.stderr


def test_a_stage_that_fits(tmp_path):
  code, output = run(*TINY, "--topology=v5p:2x2x1", f"--json={tmp_path / 'report.json'}")
  assert code == 0, output
  for heading in ("HBM per device", "Roofline", "Network, sent by one device", "fits:", "MFU"):
    assert heading in output
  report = json.loads((tmp_path / "report.json").read_text())
  assert report["devices"] == 4 and report["mesh"] == {"fsdp": 4} and report["fits"]
  assert report["tokens_per_step"] == 8 * 64
  assert report["parameters"] == 251_264
  hbm = report["hbm"]
  assert 0 < hbm["argument"] < hbm["peak"] < hbm["limit"] == int(95.74 * GIB)
  assert hbm["temp"] == hbm["peak"] - hbm["argument"]
  categories = report["hbm_categories"]
  assert sum(categories.values()) == hbm["peak"]
  assert categories["optimizer"] == pytest.approx(2 * categories["parameters"], rel=1e-3)
  flops = report["flops_per_step"]
  assert 0 < flops["model"] <= flops["compiled"]
  assert flops["recompute"] == flops["compiled"] - flops["model"]
  assert any(entry["per_layer"] and entry["axes"] == "fsdp" for entry in report["collectives"])
  assert report["network_bytes"]["step"] == pytest.approx(sum(entry["bytes"] for entry in report["collectives"]))
  assert 0 < report["ideal_network_bytes"]["step"]
  times = report["roofline"]
  longest = max(times["compute_s"], times["memory_s"], times["network_s"])
  assert times[f"{times['binding']}_s"] == longest == report["predicted_step_s"]["overlapped"]
  assert report["predicted_mfu"] == pytest.approx(flops["model"] / (longest * 4 * 459e12))
  assert 0 < times["waiting_s"] <= times["network_s"]
  assert longest < report["predicted_step_s"]["scheduled"] <= report["predicted_step_s"]["serial"]
  assert report["compile_seconds"] > 0 and report["lower_seconds"] > 0 and report["host_peak_bytes"] > 2**27


def test_a_stage_that_does_not_fit(tmp_path):
  """A sixteenth of the rows of a real batch on the smallest chips, nothing rematerialised."""
  code, output = run(
    "--config=experiments/dense_0_6b.py:stage=s1",
    "--topology=v5e:2x2",
    "--config.model.num_layers=2",
    "--config.model.remat=none",
    "--config.stages.s1.batch_size=128",
    "--config.stages.s1.micro_batches=1",
    f"--json={tmp_path / 'report.json'}",
  )
  assert code == 1, output
  report = json.loads((tmp_path / "report.json").read_text())
  assert not report["fits"]
  assert report["hbm"]["limit"] == int(15.75 * GIB)
  assert report["overflow_bytes"] == report["hbm"]["peak"] - report["hbm"]["limit"] > 0
  assert f"DOES NOT FIT: {report['overflow_bytes'] / GIB:.2f} GiB per device over the limit" in output
  assert any("remat" in fix["change"] or "micro_batches" in fix["change"] for fix in report["fixes"])
  assert "(estimate; " in output


def test_stages_that_are_the_same_program_are_compiled_once(tmp_path):
  code, output = run(
    "--config=experiments/dense_0_6b.py:tiny", "--topology=v5p:2x2x1", f"--json={tmp_path / 'report.json'}"
  )
  assert code == 0, output
  reports = json.loads((tmp_path / "report.json").read_text())["reports"]
  assert [report["stage"] for report in reports] == ["s1", "s2", "s3"]
  assert [report.get("same_program_as") for report in reports] == [None, "qwen3-0.6b-tiny s1", None]
  assert "qwen3-0.6b-tiny s2: the same program as qwen3-0.6b-tiny s1" in output


def test_sweep(tmp_path):
  code, output = run(*TINY, "--topology=v5p:2x2x1", "--sweep", "--sweep_limit=2", f"--json={tmp_path / 'sweep.json'}")
  assert code == 0, output
  found = json.loads((tmp_path / "sweep.json").read_text())["candidates"]
  assert len(found) == 2 and len({json.dumps(candidate["change"]) for candidate in found}) == 2
  steps = [candidate["predicted_step_s"]["scheduled"] for candidate in found if candidate["fits"]]
  assert steps == sorted(steps)
  assert "candidates; compiling the 2 most promising" in output and "bound by" in output


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["--topology=v5p:4x8x9"], "Did you mean v5p:4x8x8?"),
    (["--topology=v5p:2x2x1", "--config.mesh.fsdp=2"], "needs 2 devices, there are 4"),
    (["--topology=v5p:2x2x1", "--config.mesh.exprt=3"], "Did you mean 'mesh.expert'?"),
  ],
)
def test_mistakes_are_named(arguments, says):
  code, output = run(*TINY, *arguments)
  assert code == 1
  assert says in output and "Traceback" not in output


def test_messages_of_the_compiler():
  argument = GIB
  temporaries = parse_overflow(
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (240.00G) exceeds"
    " available HBM (95.74G).",
    argument,
  )
  assert temporaries.required == 241 * GIB and temporaries.limit == int(95.74 * GIB)
  assert temporaries.excess == temporaries.required - temporaries.limit
  used = parse_overflow(
    "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 101.50G of"
    " 95.74G hbm. Exceeded hbm capacity by 5.76G.\n\n  Largest program allocations in hbm:\n\n  1. Size: 5.80G\n"
    '     Operator: op_name="jit(train_step)/jvp()/while"\n     Shape: bf16[94,4,4096,4096]{3,2,1,0:T(8,128)(2,1)}\n'
    "     Unpadded size: 5.80G\n",
    argument,
  )
  assert used.required == int(101.5 * GIB)
  assert used.largest == (
    (int(5.8 * GIB), "jit(train_step)/jvp()/while", "bf16[94,4,4096,4096]{3,2,1,0:T(8,128)(2,1)}"),
  )
  assert parse_overflow("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", argument) is None
  assert parse_overflow("INVALID_ARGUMENT: something else", argument) is None
