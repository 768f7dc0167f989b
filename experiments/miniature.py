"""The demo: the whole Qwen3 recipe on a laptop, from raw text to a chat model that thinks when it is asked to.

S1 -> S2 -> S3 on text that a Python installation holds; then, on tracking a ball under cups (`problems/cups.py`), cold
start, reasoning RL and thinking-mode fusion; then a smaller student, pre-trained on S1's text, which learns from the
fused model's answers (off-policy) and from its predictions (on-policy), beside one that goes on by RL. `model=dense`
(the default) or `model=moe`; `quick` runs all of it in few steps, with a student as large as its teacher, so that few
programs are compiled: it shows that everything works, not what it is good for; `post=none` ends after S3.
Nothing is downloaded: the tokenizer is trained on the same text. What trades quality against time on two cores is a
constant below.
"""

import copy
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import recipes
from experiments.miniature_distillation import off_policy_stage, on_policy_stage
from experiments.miniature_fusion import BOTH_MODES, add_fusion
from experiments.miniature_reasoning import SMALL, TASKS, add_reasoning, grpo_stage
from qwen3_jax.config import base_config, corpus, evaluation, pretrain_stage, written_answers
from qwen3_jax.config_loading import parse_arg

VOCABULARY = 1024
# Qwen3's proportions: two heads to a key/value head, untied when MoE. So small that two cores train it in minutes.
DENSE = SMALL
MOE = {**DENSE, "intermediate_size": 96, "num_experts": 8, "num_experts_per_token": 2, "tie_word_embeddings": False}
STUDENT = {**SMALL, "hidden_size": 80, "intermediate_size": 240, "head_dim": 20, "initializer_range": 0.09}


class Size(NamedTuple):
  """Steps of the stages, and how much is read, written and measured."""

  s1: int
  s2: int
  s3: int
  cold_start: int
  reasoning_rl: int
  fusion: int
  student_off_policy: int
  student_on_policy: int
  student_rl: int
  problems: int  # of each mode in fusion
  answered: int  # by the student's teacher
  layers: int = 4
  megabytes: int = 2  # of each domain's text
  measured: int = 128  # problems of an evaluation
  compared: int = 512  # those on which distillation and GRPO are compared
  dialogs: int = 100


# A token costs about three times as much in the MoE (all its experts are small matrices): fewer steps.
SIZES = {
  "dense": Size(250, 80, 50, 500, 30, 350, 240, 32, 30, 3000, 4000),
  "moe": Size(200, 60, 40, 400, 30, 150, 300, 32, 20, 2000, 3000),
}
QUICK = Size(60, 20, 10, 150, 8, 50, 80, 8, 8, 500, 800, layers=2, megabytes=1, measured=24, compared=24, dialogs=20)
TOKENS_PER_STEP = 2048  # small: in so short a run more steps are worth more than smoother gradients
PEAK_LR = 3e-3
SEQUENCE = 128  # S1 and S2
LONG_SEQUENCE = 512  # S3: four times S1's
LENGTH_BUCKETS = ((256, 512, 0.75), (64, 256, 0.25))  # S3's of the report, 64 times shorter
# Shares of the tokens: S1 is general, S2 raises code as the report does for reasoning, S3 prefers what is long.
MIXTURES = {
  "s1": {"code": 0.35, "documentation": 0.30, "multilingual": 0.35},
  "s2": {"code": 0.60, "documentation": 0.25, "multilingual": 0.15},
  "s3": {"code": 0.55, "documentation": 0.25, "multilingual": 0.20},
}
PROMPTS = ("def __init__(self", "The following example shows", "Diese Seite")
# Few rows a step and a late decay: whether it learns to reason must not depend on the seed.
TASK = TASKS["mixed_cups"]._replace(
  problems="cups:{count}:{seed}:2-6:numbered", sequence=66, answer=32, hasty=0.4, sft_rows=16
)
DIALOG = 232  # tokens of fusion's
BUDGETS = ",".join(map(str, range(0, 17, 4)))  # tokens: two, and three for each of up to six swaps
# As the report samples (section 4.6), but for its penalty, which is for long answers.
SAMPLING = ("--presence_penalty=0.0", "--slots=256")


def get_config(arg: str = "") -> ConfigDict:
  arguments = parse_arg(arg, **recipes.ARGUMENTS, model=("dense", "moe"), quick=False, post=("all", "none"))
  config = base_config()
  config.name = f"miniature-{arguments.model}"
  size = QUICK if arguments.quick else SIZES[arguments.model]
  dense = STUDENT if arguments.quick else DENSE
  config.model.update(dense if arguments.model == "dense" else MOE)
  _fit(config.model, config.name, size)
  config.tokenizer.update(train_vocab_size=VOCABULARY, train_megabytes=2 * size.megabytes)
  # One virtual device a core costs the least CPU time a token; each holds a whole copy of so small a model.
  config.cpu_devices = 2
  config.mesh.update(data=-1, fsdp=1)
  config.checkpoint.every = 100
  _add_pretraining(config, size)
  if arguments.post == "all":
    _add_post_training(config, size)
    _add_student(config, size)
  return recipes.finish(config, arguments)


def _fit(model: ConfigDict, name: str, size: Size) -> None:
  model.update(name=name, num_layers=size.layers, vocab_size=VOCABULARY)
  model.unroll_layers = True  # faster on a CPU


def _add_pretraining(config: ConfigDict, size: Size) -> None:
  # Enough for all stages, so that tokens are read once; documents of 5% are kept, for the small domains' sake.
  for domain in ("code", "documentation", "multilingual"):
    config.data.corpora[domain] = corpus(f"python:{domain}", limit_megabytes=size.megabytes, validation_fraction=0.05)
  config.pipeline = ("s1", "s2", "s3")
  s1 = {"schedule": "wsd", "peak_lr": PEAK_LR, "final_lr": PEAK_LR, "warmup_steps": 20}
  s2 = {"schedule": "wsd", "peak_lr": PEAK_LR, "final_lr": PEAK_LR / 10, "decay_fraction": 1.0}
  s3 = {"schedule": "cosine", "peak_lr": PEAK_LR / 4, "final_lr": PEAK_LR / 40, "warmup_steps": 5}
  config.stages.s1 = _pretraining("s1", size.s1, SEQUENCE, 1e4, s1)
  config.stages.s2 = _pretraining("s2", size.s2, SEQUENCE, 1e4, s2)
  config.stages.s3 = _pretraining("s3", size.s3, LONG_SEQUENCE, 1e6, s3)
  config.stages.s3.length_buckets = LENGTH_BUCKETS


def _pretraining(
  name: str, steps: int, sequence_length: int, rope_theta: float, optimizer: dict[str, Any]
) -> ConfigDict:
  return pretrain_stage(
    sequence_length=sequence_length,
    batch_size=TOKENS_PER_STEP // sequence_length,
    tokens=steps * TOKENS_PER_STEP,
    rope_theta=rope_theta,
    mixture=MIXTURES[name],
    optimizer=optimizer,
    evaluate_every=100,
    evaluate_batches=8,
    sample_prompts=PROMPTS,
    sample_tokens=32,
  )


def _add_post_training(config: ConfigDict, size: Size) -> None:
  """Post-training of a flagship, but for general RL."""
  task = TASK._replace(sft_steps=size.cold_start, rl_steps=size.reasoning_rl, measured=size.measured)
  add_reasoning(config, task, PEAK_LR)
  config.stages.cold_start.optimizer.update(schedule="wsd", decay_fraction=0.3)
  add_fusion(config, task, size.fusion, size.problems, DIALOG)
  options = (*SAMPLING, "--dtype=float32", f"--max_new_tokens={task.answer}", "--samples=4")
  modes, curve = f"modes:{task.held_out}", f"budget_curve:{task.held_out}"
  # Asked plainly: flags are new to it.
  config.evaluations.reasoning = evaluation("reasoning_rl", (curve,), (*options, "--budgets=0"))
  fused = (modes, f"think_follow:{task.held_out}", curve)
  config.evaluations.fusion = evaluation(
    "fusion", fused, (*options, f"--budgets={BUDGETS}", f"--dialogs={size.dialogs}")
  )
  config.evaluations.student = evaluation("student_on_policy", (modes,), options)


def _add_student(config: ConfigDict, size: Size) -> None:
  """Strong-to-weak distillation of a smaller model, and GRPO from the same start."""
  # More problems than elsewhere: the two are compared to a point.
  task = TASK._replace(rl_steps=size.student_rl, measured=size.compared)
  config.models.student = base_config().model
  config.models.student.update(STUDENT)
  _fit(config.models.student, f"{config.name}-student", size)
  config.data.written.answers = written_answers(
    "fusion",
    problems=task.problems.format(count=size.answered, seed=9),
    max_length=task.sequence,
    max_new_tokens=task.answer,
    slots=256,
  )
  config.data.corpora.answers = corpus("written:answers", validation_fraction=0.04)
  rollout = {"slots": 256, "max_new_tokens": task.answer, "modes": BOTH_MODES}
  # Of S1 only; a model that has read no text is slow to learn to look things up.
  config.stages.student_s1 = copy.deepcopy(config.stages.s1)
  config.stages.student_s1.model = "student"
  config.stages.student_off_policy = off_policy_stage(task, size.student_off_policy, model="student")
  config.stages.student_on_policy = on_policy_stage(
    task, size.student_on_policy, "stage:fusion", model="student", rollout=rollout
  )
  config.stages.student_rl = grpo_stage(task)
  config.stages.student_rl.update(model="student", after="student_off_policy", evaluate_every=10, rollout=rollout)
  config.pipeline += ("student_s1", "student_off_policy", "student_on_policy", "student_rl")
