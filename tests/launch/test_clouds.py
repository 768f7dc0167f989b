"""Scripts of clouds and clusters: with stand-ins for their commands, and with the real ones where they are installed.

What none of this shows is a cloud: that needs an account.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
ROOT = LAUNCH.parent
SCRIPTS = sorted(LAUNCH.glob("*/run.sh"))
CLUSTER = {"PROJECT": "p", "ZONE": "us-east5-a", "CLUSTER": "pods", "STORAGE": "qwen3", "IMAGE": "registry/qwen3:1"}
FLAGS = ["--config=experiments/moe_30b_a3b.py:corpora=/mnt/c", "--config.pipeline=('s1', 's2')"]


def stand_in(folder, name, script):
  """A command `name` that notes its arguments in NAME.log, and then runs `script`."""
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  note = f"printf '%s\\0' \"$@\" END >> {path}.log"
  path.write_text(f"#!/usr/bin/env bash\n{note}\n{script}\n")
  path.chmod(0o755)


def calls(folder, name):
  """The arguments of every call of a stand-in."""
  found = (folder / f"{name}.log").read_text().split("END\0")
  return [call.rstrip("\0").split("\0") for call in found[:-1]]


def start(folder, script, *arguments, **environment):
  variables = os.environ | environment | {"PATH": f"{folder}:{os.environ['PATH']}"}
  return subprocess.run([str(script), *arguments], env=variables, capture_output=True, text=True, timeout=60)


def main_flags(command):
  """The flags that a shell command gives to qwen3_jax.main."""
  words = shlex.split(command)
  assert words[words.index("-m") + 1] == "qwen3_jax.main"
  return words[words.index("-m") + 2 :]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_scripts_are_sound_bash(script):
  assert subprocess.run(["bash", "-n", script]).returncode == 0
  usage = subprocess.run([script], capture_output=True, text=True)
  assert usage.returncode == 2 and f"launch/{script.parent.name}/run.sh" in usage.stderr
  if shellcheck := shutil.which("shellcheck"):
    found = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_gke_arguments(tmp_path):
  stand_in(tmp_path, "xpk", "exit 0")
  ended = start(tmp_path, LAUNCH / "gke" / "run.sh", "qwen3-30b", "v5p-128", "/mnt/runs/30b", *FLAGS, **CLUSTER)
  assert ended.returncode == 0, ended.stderr
  (call,) = calls(tmp_path, "xpk")
  assert call[:2] == ["workload", "create"] and "--dry-run" not in call
  given = dict(argument.removeprefix("--").split("=", 1) for argument in call[2:])
  assert given["tpu-type"] == "v5p-128" and given["workload"] == "qwen3-30b" and given["cluster"] == "pods"
  assert given["restart-on-exit-codes"] == "75"  # what the command ends with when it was stopped:
  assert main_flags(given["command"]) == ["--workdir=/mnt/runs/30b", "--stopped_exit_status=75", *FLAGS]
  missing = start(tmp_path, LAUNCH / "gke" / "run.sh", "a", "b", "c", "--config=d", **CLUSTER | {"IMAGE": ""})
  assert missing.returncode != 0 and "IMAGE" in missing.stderr


@pytest.mark.skipif(not shutil.which("xpk"), reason="xpk is not on PATH: it wants an environment of its own")
def test_gke_workload_by_xpk_itself(tmp_path):
  yaml = pytest.importorskip("yaml")
  script = LAUNCH / "gke" / "run.sh"
  environment = CLUSTER | {"HOME": str(tmp_path), "DRY_RUN": "1", "MAX_RESTARTS": "7", "SLICES": "2"}
  ended = start(tmp_path, script, "qwen3-30b", "v5p-128", "/mnt/runs/30b", *FLAGS, **environment)
  assert ended.returncode == 0, ended.stdout + ended.stderr
  text = re.search(r"content: \n(apiVersion: jobset.*?)\n\[XPK\]", ended.stdout, re.DOTALL)[1]
  job = yaml.safe_load(text)
  assert job["kind"] == "JobSet" and job["metadata"]["name"] == "qwen3-30b"
  assert job["spec"]["failurePolicy"]["maxRestarts"] == 7
  (slices,) = job["spec"]["replicatedJobs"]
  assert slices["replicas"] == 2 and slices["template"]["spec"]["parallelism"] == 16  # hosts of 64 chips
  (rule,) = slices["template"]["spec"]["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and 75 in rule["onExitCodes"]["values"] and 1 not in rule["onExitCodes"]["values"]
  pod = slices["template"]["spec"]["template"]["spec"]
  assert pod["terminationGracePeriodSeconds"] == 120
  (container,) = pod["containers"]
  line = next(line for line in container["command"][2].splitlines() if "qwen3_jax.main" in line)
  assert main_flags(line[line.index("(") + 1 : line.rindex(")")])[2:] == FLAGS


def test_the_image_has_what_the_run_needs():
  lines = (LAUNCH / "gke" / "Dockerfile").read_text().splitlines()
  copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
  assert all((ROOT / name).exists() for name in copied)
  assert {"qwen3_jax", "kernels", "experiments", "launch", "pyproject.toml"} <= set(copied)


# A gcloud whose slice is there after the first look, is preempted during the first run, and then lives.
GCLOUD = """
case "$*" in
  *" describe "*) cat {0}/state 2>/dev/null || exit 1 ;;
  *" create "*) echo ACTIVE > {0}/state ;;
  *" delete "*) rm {0}/state ;;
  *qwen3_jax.main*stopped_exit_status*)
    [ -e {0}/ran ] && exit {1}
    touch {0}/ran; echo {2} > {0}/state; exit 1 ;;
esac
"""


def tpu_vm(folder, last, state, *, fast="0.01", **environment):
  stand_in(folder, "gcloud", GCLOUD.format(folder, last, state))
  variables = {"PROJECT": "p", "ZONE": "z", "NFS": "10.0.0.2:/q", "POLL_SECONDS": fast, **environment}
  script = LAUNCH / "tpu_vm" / "run.sh"
  ended = start(folder, script, "pod", "v5p-128", "v2-alpha-tpuv5", "/mnt/runs/30b", *FLAGS, **variables)
  return ended, calls(folder, "gcloud")


def verbs(gcloud_calls):
  """What was done with the slice, but for looking at it: the verb, or for ssh what its command is for."""
  found = []
  for call in gcloud_calls:  # compute tpus queued-resources VERB ..., or compute tpus tpu-vm ssh ...
    command = call[-1]
    for_what = "run" if "stopped_exit_status" in command else "settle" if "pkill" in command else "prepare"
    found.append(for_what if call[3] == "ssh" else call[3])
  return [verb for verb in found if verb != "describe"]


def test_tpu_vm_goes_on_after_a_preemption(tmp_path):
  ended, found = tpu_vm(tmp_path, 0, "SUSPENDED", SPOT="1")
  assert ended.returncode == 0, ended.stdout + ended.stderr
  once = ["create", "prepare", "settle", "run"]
  assert verbs(found) == [*once, "delete", *once, "delete"]
  create = next(call for call in found if "create" in call)
  assert "--spot" in create and "--accelerator-type=v5p-128" in create and "--runtime-version=v2-alpha-tpuv5" in create
  runs = [call for call in found if any("stopped_exit_status" in word for word in call)]
  assert runs[0] == runs[1] and "--worker=all" in runs[0]  # the same command, on every host
  command = next(word for word in runs[0] if word.startswith("--command=")).removeprefix("--command=")
  assert main_flags(command) == ["--workdir=/mnt/runs/30b", "--stopped_exit_status=75", *FLAGS]


def test_tpu_vm_gives_up_on_a_command_that_fails(tmp_path):
  ended, found = tpu_vm(tmp_path, 1, "ACTIVE", MAX_FAILURES="2")
  assert ended.returncode == 1 and "2 failures in a row" in ended.stderr
  assert verbs(found) == ["create", "prepare", "settle", "run", "settle", "run"]
  assert not any("--spot" in call for call in found)


@pytest.mark.parametrize("status", [0, 1, 75])
def test_slurm_requeues_only_what_was_stopped(tmp_path, status):
  stand_in(tmp_path, "srun", f"exit {status}")
  stand_in(tmp_path, "scontrol", "exit 0")
  ended = start(tmp_path, LAUNCH / "slurm" / "run.sh", "/mnt/runs/30b", *FLAGS, SLURM_JOB_ID="12")
  assert ended.returncode == status
  (call,) = calls(tmp_path, "srun")
  assert main_flags(shlex.join(call)) == ["--workdir=/mnt/runs/30b", "--stopped_exit_status=75", *FLAGS]
  assert (tmp_path / "scontrol.log").exists() == (status == 75)
  if status == 75:
    assert calls(tmp_path, "scontrol") == [["requeue", "12"]]


def test_slurm_waits_for_a_run_that_saves_its_state(tmp_path):
  """SIGTERM comes to the script as well as to the run."""
  stand_in(tmp_path, "srun", "trap 'sleep 0.5; exit 75' TERM; kill -TERM $PPID; kill -TERM $$; sleep 5")
  stand_in(tmp_path, "scontrol", "exit 0")
  ended = start(tmp_path, LAUNCH / "slurm" / "run.sh", "/mnt/runs/30b", *FLAGS, SLURM_JOB_ID="12")
  assert ended.returncode == 75 and calls(tmp_path, "scontrol") == [["requeue", "12"]]


def test_slurm_headers():
  text = (LAUNCH / "slurm" / "run.sh").read_text()
  headers = re.findall(r"^#SBATCH (--\S+)$", text, re.MULTILINE)
  assert {"--requeue", "--open-mode=append", "--signal=TERM@300"} <= set(headers)
  first = re.search(r"^[^#\n]", text, re.MULTILINE).start()
  assert text.rindex("#SBATCH") < first  # later ones would be ignored


def test_skypilot_task(tmp_path):
  yaml = pytest.importorskip("yaml")
  task = yaml.safe_load((LAUNCH / "skypilot" / "run.yaml").read_text())
  # The fields that SkyPilot's task schema has (sky/utils/schemas.py, get_task_schema and get_resources_schema).
  assert set(task) <= {"name", "resources", "workdir", "envs", "setup", "run", "num_nodes", "file_mounts"}
  resources = task["resources"]
  assert set(resources) <= {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
  assert resources["job_recovery"]["recover_on_exit_codes"] == [75] and resources["use_spot"] is True
  stand_in(tmp_path, "env/bin/python", "exit 0")
  variables = {"HOME": str(tmp_path), "WORKDIR": "/mnt/runs/4b", "FLAGS": " ".join(FLAGS[:1])}
  ended = subprocess.run(["bash", "-c", task["run"]], env=os.environ | variables, capture_output=True, text=True)
  assert ended.returncode == 0, ended.stderr
  (call,) = calls(tmp_path, "env/bin/python")
  assert main_flags(shlex.join(call)) == ["--workdir=/mnt/runs/4b", "--stopped_exit_status=75", FLAGS[0]]
  assert set(re.findall(r"\$([A-Z]+)", task["run"] + task["setup"])) == set(task["envs"])


def test_skypilot_task_by_skypilot_itself(monkeypatch, tmp_path):
  yaml = pytest.importorskip("yaml")
  sky = pytest.importorskip("sky", reason="skypilot is not installed: it wants an environment of its own")
  monkeypatch.chdir(ROOT)
  config = yaml.safe_load((LAUNCH / "skypilot" / "run.yaml").read_text())
  config["envs"] = dict.fromkeys(config["envs"], "x")
  task = sky.Task.from_yaml_config(config)  # checked with its schemas
  (resources,) = task.resources
  assert resources.use_spot and list(resources.accelerators) == ["tpu-v5p-128"]
