"""One GRPO step on a CPU beside Tunix's learner: rollouts, rewards, advantages and the update.

  python benchmarks/grpo_cpu.py [--shapes=small,larger] [--repeats=9] [--devices=N] [--tunix-python=PATH] [--json=FILE]

A step answers 8 prompts of 32 tokens 4 times each, and takes one optimizer step on the 32 answers; the next step
samples from what that gave. Tunix runs in its own interpreter, one step at a time between ours; medians of the times
that a step takes until its parameters are there. Nothing may be compiled after the first step.

Equal on both sides: the model's sizes, float32, untied embeddings; prompts that no step before had; temperature 1, no
filter, answers that end at their length; a reward in Python, from the decoded text, of the same task (how many
characters are ASCII), so that hardly any group is without variance; advantages over their group's standard deviation;
the mean over sequences of the mean over tokens, clipping at 0.2, on-policy (one update for each rollout), no KL and no
reference model; Adam without weight decay and without clipping of gradients.

Not equal: the initial weights and the randomness. Tunix divides by the standard deviation with n - 1 below, we with n:
a constant factor of the gradient, which Adam takes out. Its padding is a token that is sampled as well and then does
not count. It takes one device with XLA's own threads, its faster choice here, we one virtual device a core. Ours
returns the sampler's log-probabilities, draws each answer with a seed of its own and gathers the statistics of its
stage; it uses the stage's own collector, batches and compiled program.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rollout_cpu import MODEL
from train_cpu import Compilations, last_line, print_table, row

from qwen3_jax.allocator import keep_freed_memory
from qwen3_jax.config import rl_stage
from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.tokenizer_backends import TiktokenBackend
from qwen3_jax.models.config import ModelConfig
from qwen3_jax.models.transformer import Parameters
from qwen3_jax.objectives.grpo import grpo
from qwen3_jax.objectives.grpo_settings import GRPO
from qwen3_jax.optimizer import make_optimizer
from qwen3_jax.placement import local_rows, to_devices
from qwen3_jax.problems.problem import Problem
from qwen3_jax.rl.asking import Asker
from qwen3_jax.rl.collector import Collector
from qwen3_jax.rl.entropy_control import EntropyControl
from qwen3_jax.rl.policy_terms import PolicyTerms
from qwen3_jax.rl.problem_order import ProblemOrder
from qwen3_jax.rl.rollout_batches import RolloutBatches
from qwen3_jax.rollout.engine import Engine
from qwen3_jax.rollout.engine_settings import EngineSettings
from qwen3_jax.rollout.environment import Action, Observation, StepResult
from qwen3_jax.rollout.request import Request
from qwen3_jax.rollout.sampling import SamplingParams
from qwen3_jax.sharding import batch_sharding, make_mesh
from qwen3_jax.stages.rl import log_probabilities
from qwen3_jax.train_program import RolloutFields, TrainProgram

PROMPTS, SAMPLES, PROMPT_TOKENS = 8, 4, 32
LEARNING_RATE, CLIP = 1e-3, 0.2
END = MODEL.vocab_size  # id of the document's end, the first control token
WARM_UP = 2  # steps until the heap has its size
# Raw text, and one character before an answer: a prompt has as many tokens as characters.
TEMPLATE = (
  "{% for m in messages %}{% if m.role == 'assistant' %}={{ m.content }}<|im_end|>{% else %}{{ m.content }}{% endif %}"
  "{% endfor %}{% if add_generation_prompt %}={% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Shape:
  model: ModelConfig
  new_tokens: int
  bar: float  # of Tunix's time over ours

  @property
  def length(self) -> int:
    return PROMPT_TOKENS + self.new_tokens


SMALL = MODEL.replace(
  name="2 layers", num_layers=2, hidden_size=64, intermediate_size=192, num_heads=4, num_kv_heads=2, head_dim=16
)
SHAPES = {"small": Shape(SMALL, 32, bar=1.5), "larger": Shape(MODEL, 128, bar=2.0)}


def bytes_tokenizer() -> Tokenizer:
  """Token i is the byte i; its control tokens are beyond the model's vocabulary, so that no answer ends early."""
  ranks = "\n".join(f"{b64encode(bytes([i])).decode()} {i}" for i in range(END))
  return Tokenizer(TiktokenBackend(ranks.encode(), "bytes"), {"chat_template": TEMPLATE})


class CountAscii:
  """Rewards an answer with the number of its ASCII characters."""

  immediate = True

  def __init__(self, problem: Problem):
    self._problem = problem

  def reset(self) -> Observation:
    return Observation([{"role": "user", "content": self._problem.prompt}])

  def step(self, action: Action) -> StepResult:
    return StepResult(reward=float(sum(character < "\x80" for character in action.response)), done=True)


class TimedEngine(Engine):
  """Adds up the seconds that it takes."""

  seconds = 0.0

  def check(self, request: Request) -> None:
    """Rollouts ask whether a prompt of the document's end can run; here it is beyond the vocabulary on purpose."""
    if list(request.prompt) != [END]:
      super().check(request)

  def update(self, params: Parameters) -> None:
    start = time.perf_counter()
    super().update(params)
    self.seconds += time.perf_counter() - start

  def step(self) -> list[int]:
    start = time.perf_counter()
    ended = super().step()
    self.seconds += time.perf_counter() - start
    return ended


class Ours:
  """Our step: the parts of the stage `rl` as `stages.rl` and the train loop put them together."""

  def __init__(self, shape: Shape, devices: int, steps: int):
    self._mesh = make_mesh({"data": devices})
    rows = PROMPTS * SAMPLES
    options = rl_stage().optimizer
    options.weight_decay = 0.0
    self._program = TrainProgram(
      model=shape.model,
      objective=grpo(GRPO(clip_low=CLIP, clip_high=CLIP, dual_clip=0.0, aggregation="sequence", importance_cap=0.0)),
      optimizer=make_optimizer(options),
      batch_shape=(rows, shape.length),
      micro_batches=1,
      clip_norm=0.0,
      rollout=RolloutFields(),
    )
    self._state = self._program.create_state(self._mesh, seed=0)
    self._engine = TimedEngine(
      shape.model,
      EngineSettings(slots=rows, max_length=shape.length, steps=16, adjustments=False, prefill_rows=32),
      mesh=self._mesh if devices > 1 else None,
    )
    self._rows = local_rows(batch_sharding(self._mesh), self._program.batch_shape)
    self._batches = self._make_batches(shape, steps)
    self._compiled = self._program.lower(self._mesh).compile()
    self.parts: list[tuple[float, float, float]] = []  # of each step: seconds in the engine, of the host, of training
    self.rewards: list[float] = []  # mean of each step

  def _make_batches(self, shape: Shape, steps: int) -> RolloutBatches:
    asker = Asker(
      engine=self._engine,
      tokenizer=bytes_tokenizer(),
      environment=CountAscii,
      sampling=SamplingParams(),
      max_new_tokens=shape.new_tokens,
      thinking_budget=None,
      enable_thinking=True,
    )
    collector = Collector(
      asker=asker,
      order=ProblemOrder(problems(PROMPTS * steps), seed=0, relearn=False),
      groups=PROMPTS,
      samples=SAMPLES,
      length=shape.length,
      waves=1,
      normalize_std=True,
      overlong="keep",
      overlong_tokens=0,
      experts=None,
      modes={"plain": 1.0},
      seed=0,
    )
    terms = PolicyTerms(
      EntropyControl(target=0.0, rise=0.0, gain=0.0, minimum=0.0, maximum=0.0, coefficient=0.0),
      log_probabilities(self._program, 1.0, self._mesh),
      old=False,
      reference=None,
      batch_size=PROMPTS * SAMPLES,
    )
    return RolloutBatches(
      collector,
      terms,
      steps=steps,
      batch_size=PROMPTS * SAMPLES,
      micro_batches=1,
      epochs=1,
      staleness=0,
      rows=self._rows,
      folder=Path(tempfile.gettempdir()),  # nothing is saved
      keep=1,
      seed=0,
    )

  def __call__(self) -> None:
    start, self._engine.seconds = time.perf_counter(), 0.0
    local = self._batches.next_batch(self._state)
    collected = time.perf_counter()
    batch = to_devices(local, self._rows, batch_sharding(self._mesh), self._program.batch_shape)
    with jax.set_mesh(self._mesh):
      self._state, metrics = self._compiled(self._state, batch, np.float32(LEARNING_RATE))
    jax.block_until_ready((self._state, metrics))
    end, engine = time.perf_counter(), self._engine.seconds
    if not np.isfinite(float(metrics["loss"])) or int(metrics["skipped_steps"]):
      raise RuntimeError(f"a step was not finite: {jax.device_get(metrics)}")
    self.parts.append((engine, collected - start - engine, end - collected))
    self.rewards.append(self._batches.metrics()["rollout/reward"])


def problems(count: int) -> list[Problem]:
  choice = random.Random(0)
  write = lambda: "".join(choice.choices(string.ascii_letters, k=PROMPT_TOKENS - 1))
  return [Problem(f"{i}", "letters", "letters", write(), {}) for i in range(count)]


@contextlib.contextmanager
def tunix_step(python: Path, shape: Shape) -> Iterator[tuple[Callable[[], float], str]]:
  """Its step, taken by a process that waits in between -> the mean reward; and its version."""
  model, options = shape.model, rl_stage().optimizer
  sizes = dataclasses.asdict(model) | {"prompts": PROMPTS, "samples": SAMPLES, "prompt_tokens": PROMPT_TOKENS}
  sizes |= {"new_tokens": shape.new_tokens, "learning_rate": LEARNING_RATE, "clip": CLIP}
  sizes |= {"beta1": options.beta1, "beta2": options.beta2, "epsilon": options.epsilon}
  worker = Path(__file__).with_name("tunix_grpo_worker.py")
  environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"JAX_PLATFORMS": "cpu"}
  command = [str(python), str(worker), json.dumps(sizes)]
  with (
    tempfile.TemporaryFile("w+", errors="replace") as log,
    subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
    ) as process,
  ):
    assert process.stdin is not None
    assert process.stdout is not None
    requests, answers = process.stdin, process.stdout

    def answer() -> dict[str, Any]:
      for line in answers:
        if line.startswith("{"):
          return json.loads(line)
      log.seek(0)
      raise RuntimeError(f"{worker.name} under {python} ended: {last_line(log.read())}")

    def run() -> float:
      print(file=requests, flush=True)
      return answer()["reward"]

    try:
      yield run, answer()["version"]
    finally:
      process.kill()  # its learner waits for more steps


def measure(shape: Shape, repeats: int, devices: int, python: Path | None) -> tuple[dict[str, Any], str]:
  """Seconds of every step after the warm-up by name, our parts, mean rewards, compilations; Tunix's version."""
  ours = Ours(shape, devices, steps=1 + WARM_UP + repeats)
  version, their_rewards = "", []
  runs: dict[str, Callable[[], Any]] = {"ours": ours}
  with contextlib.ExitStack() as stack:
    if python is not None:
      step, version = stack.enter_context(tunix_step(python, shape))
      runs["tunix"] = lambda: their_rewards.append(step())
    for run in runs.values():
      run()
    compilations = Compilations()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(WARM_UP + repeats):
      for name, run in runs.items():
        start = time.perf_counter()
        run()
        times[name].append(time.perf_counter() - start)
  found: dict[str, Any] = {name: values[WARM_UP:] for name, values in times.items()}
  found |= {"parts": ours.parts[-repeats:], "rewards": {"ours": ours.rewards, "tunix": their_rewards}}
  return found | {"compilations": compilations.count}, version


def rows_of(name: str, shape: Shape, found: dict[str, Any], version: str) -> list[dict[str, Any]]:
  per_minute = lambda values: 60.0 / statistics.median(values)
  theirs = per_minute(found["tunix"]) if "tunix" in found else None
  rows = [row(f"{name} GRPO step", "steps/min", per_minute(found["ours"]), theirs, f"Tunix {version}", shape.bar)]
  once = row(f"{name} compilations", "count", 1.0 + found["compilations"], 1.0, "one", None)
  return [*rows, once | {"holds": found["compilations"] == 0}]


def print_details(name: str, found: dict[str, Any]) -> None:
  """Where our time goes, and that both learn."""
  parts = [1000 * statistics.median(values) for values in zip(*found["parts"])]
  engine, host, train = (f"{milliseconds:,.1f} ms" for milliseconds in parts)
  total = 1000 * statistics.median(found["ours"])
  print(f"{name}: {total:,.1f} ms a step: decoding {engine}, prompts, rewards and batch {host}, update {train}")
  if "tunix" in found:
    print(f"{name}: Tunix {1000 * statistics.median(found['tunix']):,.1f} ms a step")
  for who, rewards in found["rewards"].items():
    if rewards:
      print(
        f"{name}: mean reward of {who} {rewards[0]:.2f} in the first step, {rewards[-1]:.2f} in step {len(rewards)}"
      )


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--devices", type=int, default=len(os.sched_getaffinity(0)), help="virtual devices of ours")
  parser.add_argument("--tunix-python", type=Path, metavar="PATH", help="interpreter that has Tunix")
  parser.add_argument("--json", type=Path)
  arguments = parser.parse_args()
  names = arguments.shapes.split(",")
  if unknown := [name for name in names if name not in SHAPES]:
    parser.error(f"--shapes: unknown {', '.join(unknown)}; known: {', '.join(SHAPES)}")
  if PROMPTS * SAMPLES % arguments.devices:
    parser.error(f"--devices={arguments.devices} does not divide the batch of {PROMPTS * SAMPLES}")
  keep_freed_memory()
  jax.config.update("jax_num_cpu_devices", arguments.devices)
  rows = []
  for name in names:
    found, version = measure(SHAPES[name], arguments.repeats, arguments.devices, arguments.tunix_python)
    print_details(name, found)
    rows += rows_of(name, SHAPES[name], found, version)
  print_table(rows)
  if arguments.json:
    machine = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {arguments.devices} virtual devices"
    arguments.json.write_text(
      json.dumps({"machine": f"{machine}, jax {jax.__version__}", "rows": rows}, indent=2) + "\n"
    )
  sys.exit(any(r["holds"] is False for r in rows))


if __name__ == "__main__":
  main()
