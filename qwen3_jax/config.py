"""The base configuration: every key an experiment can set, documented once."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.models.config import ModelConfig, model_config
from qwen3_jax.objectives.distillation_settings import Distillation
from qwen3_jax.objectives.grpo_settings import GRPO


def base_config(model: str = "qwen3-0.6b") -> ConfigDict:
  """Every key with its default. Experiments start from this and add stages."""
  config = ConfigDict()
  config.name = ""  # shown in logs and in the report
  config.seed = 0  # the only source of randomness: initialisation, data order, sampling

  # Any field of ModelConfig (qwen3_jax/models/config.py documents them).
  config.model = ConfigDict(dataclasses.asdict(model_config(model)))
  # Folder whose parameters the first stage of `model` starts from: Hugging Face's, one of ours, or a stage of another
  # run; "" initialises them. Its model and its tokenizer must be those of this config.
  config.start = ""
  config.models = ConfigDict()  # name -> further models of the run, e.g. a student: likewise all of the fields

  config.tokenizer = ConfigDict()
  config.tokenizer.path = ""  # folder or file: tokenizer.json, qwen.tiktoken or a SentencePiece .model; "" trains one
  config.tokenizer.train_vocab_size = 4096  # pieces of the SentencePiece BPE trained when path is ""
  config.tokenizer.train_megabytes = 8  # how much of the corpus the trainer reads

  config.mesh = ConfigDict()  # devices along each axis; one axis may be -1 (all that are left)
  config.mesh.data = 1  # replicas of the parameters
  config.mesh.fsdp = -1  # parameters, gradients and optimizer state sharded with the batch
  config.mesh.expert = 1  # experts
  config.mesh.context = 1  # sequence
  config.mesh.tensor = 1  # heads, feed-forward, vocabulary
  config.cpu_devices = 1  # virtual devices when JAX runs on the CPU

  config.data = ConfigDict()
  config.data.cache = ""  # where raw corpora are tokenised to; "" is <workdir>/data
  config.data.corpora = ConfigDict()  # corpus name -> corpus(...): everything a stage's mixture may name
  config.data.written = ConfigDict()  # name -> written_fusion(...) or written_answers(...): by the run's own models
  config.data.prepare_workers = 0  # processes that tokenise; 0 is one per core

  config.pipeline = ()  # names of the stages, in order
  config.stage = ""  # run only this stage of the pipeline, from where the one before it ended; "" runs all
  config.stages = ConfigDict()  # stage name -> pretrain_stage(...)

  config.evaluations = ConfigDict()  # name -> evaluation(...): what is measured when a stage has ended

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1000  # steps between checkpoints
  config.checkpoint.keep = 2  # newest checkpoints kept in each stage
  config.log_every = 10  # steps between lines of metrics
  config.stall_seconds = 120  # warn when no step has finished for so long, and write the stacks of all threads
  config.abort_after_seconds = 0  # end with exit status 75 when neither a step nor e.g. compilation has; 0 waits on
  config.trackers = ()  # of metrics besides the work directory's: "wandb", "mlflow"
  return config


def corpus(source: str, **changes: Any) -> ConfigDict:
  """One corpus. `source` is `kind:location`; qwen3_jax/data/sources.py lists the kinds."""
  config = ConfigDict()
  # e.g. "jsonl:/data/web/*.jsonl.zst", "python:" (this installation's own text), "prepared:/data/tokens".
  config.source = source
  config.text_field = "text"  # field that holds the text, for records
  config.domain = ""  # label for records that carry none; "" is the corpus's name
  config.language = ""  # likewise
  config.validation_fraction = 0.02  # share of documents (by hash) kept for validation
  config.limit_megabytes = 0  # raw text read from the source, in MB; 0 reads all
  config.update(changes)
  return config


def written_fusion(stage: str = "", **changes: Any) -> ConfigDict:
  """The data of thinking-mode fusion (report, section 4.3), written when a stage needs it.

  The corpus source `written:NAME` reads it. Several processes cannot write it yet; `fusion_data` is the command.
  """
  config = _written("fusion", stage)
  config.temperature = 0.6  # of thinking samples
  config.direct_answers = ""  # kind:location; their references are samples without thinking
  config.non_thinking = ()  # "category:file" of further samples without thinking, see fusion_data
  # The proportions; qwen3_jax/curation/fusion_settings.py documents them.
  config.fusion = ConfigDict(dataclasses.asdict(FusionSettings()))
  config.update(changes)
  return config


def written_answers(stage: str = "", **changes: Any) -> ConfigDict:
  """A teacher's right answers in both modes, for distillation off-policy (report, section 4.5); read likewise.

  `distillation_data` is the command, which also stores the teacher's predictions.
  """
  config = _written("answers", stage)
  config.samples = 1  # answers to each problem
  config.thinking_share = 0.5  # of the answers that think
  config.plain_share = 0.2  # of these: asked without a flag
  config.temperature = 1.0  # of sampling, in both modes
  config.top_p = 1.0
  config.update(changes)
  return config


def _written(kind: str, stage: str) -> ConfigDict:
  """What all kinds of written conversations have."""
  config = ConfigDict()
  config.kind = kind  # fixed by the function that makes it
  config.stage = stage  # an earlier stage of the pipeline, whose model writes
  config.problems = ""  # kind:location; its right answers, with their thinking, are kept
  config.max_length = 4096  # tokens of a prompt and its answer
  config.max_new_tokens = 2048  # of an answer
  config.slots = 64  # answers that are written at a time
  return config


def evaluation(stage: str = "", tasks: tuple[str, ...] = (), options: tuple[str, ...] = ()) -> ConfigDict:
  """Tasks of `qwen3_jax.evaluate` that run on the end of a stage, for the report."""
  config = ConfigDict()
  config.stage = stage  # of the pipeline
  config.tasks = tasks  # as in its --tasks, e.g. ("modes:cups:64",)
  config.options = options  # further flags, e.g. "--samples=4"
  return config


def _stage(kind: str) -> ConfigDict:
  """What all kinds of stages have."""
  config = ConfigDict()
  config.kind = kind  # what kind of stage this is; fixed by the function that makes it
  config.model = ""  # a name of config.models; "" is config.model
  # The stage whose parameters it starts from; "" is the last one before it of the same model, and where there is none
  # a stage initialises them.
  config.after = ""
  config.sequence_length = 4096  # T
  config.batch_size = 256  # B: sequences per optimizer step over all devices and micro-batches
  config.micro_batches = 1  # gradient accumulation: the step's batch is cut into so many
  config.rope_theta = 1e6  # RoPE base in this stage (QWEN3: 1e4 in S1 and S2, 1e6 from S3 on)

  # How the stage runs where that differs from the rest of the config; parameters move between stages as between runs.
  config.mesh = ConfigDict(dict.fromkeys(base_config().mesh, 0))  # devices along an axis; 0 is config.mesh's number
  config.remat = ""  # "" is config.model.remat

  config.optimizer = ConfigDict()
  config.optimizer.peak_lr = 3e-4  # learning rate after the warm-up
  config.optimizer.final_lr = 3e-5  # reached at the end of the stage when the schedule decays
  config.optimizer.schedule = "wsd"  # wsd (warm up, stay, decay), cosine or constant
  config.optimizer.warmup_steps = 0  # linear from 0; 0 starts at peak_lr
  config.optimizer.decay_fraction = 0.0  # wsd: last share of the stage that decays; 1.0 decays throughout
  config.optimizer.beta1 = 0.9  # Adam's mean of gradients
  config.optimizer.beta2 = 0.95  # Adam's mean of squared gradients
  config.optimizer.epsilon = 1e-8  # added to the root of the latter
  config.optimizer.weight_decay = 0.1  # decoupled; matrices only
  config.optimizer.clip_norm = 1.0  # global gradient norm; 0 does not clip
  config.optimizer.moment_dtype = "float32"  # of Adam's two means between steps
  config.optimizer.gradient_dtype = "float32"  # of gradients, from the backward pass and over micro-batches
  config.optimizer.offload = False  # the moments wait in the host's memory between steps

  # Expert counts of the balance loss with micro_batches > 1: exact (the whole batch's, a third more work), running
  # (of the micro-batches so far in the step) or micro (a micro-batch's own: what global counts improve on).
  config.balance_counts = "exact"
  config.max_skipped_steps = 10  # non-finite steps in a row that are skipped before the run stops
  config.evaluate_every = 1000  # steps between evaluations (one always follows the last step)
  return config


def pretrain_stage(**changes: Any) -> ConfigDict:
  """One pre-training stage. A stage continues from the one before it in the pipeline, optimizer state included."""
  config = _packed_stage("pretrain")
  config.rope_theta = 10_000.0  # S1's and S2's
  config.update(changes)
  return config


def sft_stage(**changes: Any) -> ConfigDict:
  """Supervised fine-tuning on the assistant's tokens of `chat:` corpora; starts with a fresh optimizer state.

  With `teacher_top_k`, distillation off-policy: corpora hold a teacher's predictions of its answers (report, 4.5).
  """
  config = _packed_stage("sft")
  config.teacher_top_k = 0  # predictions that the corpora store for each token (see distillation_data); 0 reads none
  config.teacher_weight = 1.0  # of the divergence from them, beside the cross-entropy
  _judged(config)
  config.update(changes)
  return config


def _packed_stage(kind: str) -> ConfigDict:
  """A stage that reads packed documents."""
  config = _stage(kind)
  config.tokens = 0  # token budget; the stage runs tokens // (batch_size * sequence_length) steps
  config.mixture = ConfigDict()  # corpus name -> share of the tokens
  # ((min_length, max_length, share of the tokens), ...) on the lengths of pieces, which are documents cut at
  # sequence_length; () takes them as they come.
  config.length_buckets = ()
  config.z_loss = 0.0  # weight of log(Z)^2, keeps logits from drifting
  config.evaluate_batches = 8  # batches per validation domain
  config.sample_prompts = ()  # continued greedily at each evaluation, shown in the report
  config.sample_tokens = 48  # tokens of each continuation
  return config


def rl_stage(**changes: Any) -> ConfigDict:
  """Reinforcement learning with GRPO on problems that a verifier judges (report, section 4.2).

  A batch of rollouts is `minibatches` steps of `batch_size` sequences: batch_size * minibatches / samples problems.
  """
  config = _rollout_stage("rl")
  config.samples = 16  # answers to each problem: GRPO's group
  config.epochs = 1  # times that each of them is trained on
  config.waves = 3  # of rollouts, at most, to replace groups of equal rewards; 1 keeps what comes first
  config.normalize_std = True  # whether advantages are divided by their group's standard deviation
  config.overlong = "keep"  # answers that were cut short: keep, mask (not trained on) or penalize
  config.overlong_tokens = 0  # penalize: over the last so many of max_new_tokens a penalty grows from 0 to 1
  config.format_reward = 0.0  # of an answer that ended by itself, right or wrong
  config.routing_replay = True  # MoE: updates keep to the experts of the rollout
  config.relearn = True  # leaves out, for an epoch, problems that were always or never solved when last asked

  config.grpo = ConfigDict()  # the objective; qwen3_jax/objectives/grpo_settings.py says more
  config.grpo.clip_low = GRPO.clip_low  # a ratio counts from 1 - clip_low
  config.grpo.clip_high = GRPO.clip_high  # to 1 + clip_high
  config.grpo.dual_clip = GRPO.dual_clip  # bound of the loss where the advantage is negative; 0: none
  config.grpo.ratio = GRPO.ratio  # token or sequence (GSPO)
  config.grpo.aggregation = GRPO.aggregation  # token, sequence or constant
  config.grpo.constant_length = GRPO.constant_length  # tokens that constant divides by
  config.grpo.kl_coefficient = GRPO.kl_coefficient  # 0: no reference model
  config.grpo.importance_cap = GRPO.importance_cap  # of the weight for what sampler and learner differ in; 0: none

  config.entropy = ConfigDict()  # the coefficient of an entropy bonus is adapted to hold a target
  config.entropy.target = 0.0  # nats a token; 0: the entropy of the first rollouts
  config.entropy.rise = 0.0  # of the target, from the first step to the last
  config.entropy.gain = 0.0  # change of the coefficient for each nat below the target; 0: it stays
  config.entropy.coefficient = 0.0  # at the start
  config.entropy.minimum = 0.0  # of the coefficient
  config.entropy.maximum = 0.05  # likewise
  config.update(changes)
  return config


def distill_stage(**changes: Any) -> ConfigDict:
  """Distillation on-policy (report, section 4.5): the student's own answers, with the teachers' predictions of them.

  A batch of rollouts is `minibatches` steps of `batch_size` sequences: batch_size * minibatches / samples problems.
  """
  config = _rollout_stage("distill")
  config.samples = 1  # answers to each problem
  config.teachers = ConfigDict()  # name -> teacher(...); the first teaches what no route names
  # ((what, name), ...): the teacher of a mode (think, no_think), domain or sub-domain of problems; the first that fits.
  config.routes = ()
  config.distillation = ConfigDict()  # the objective; qwen3_jax/objectives/distillation_settings.py says more
  config.distillation.divergence = Distillation.divergence  # reverse, forward or jsd
  config.distillation.mix = Distillation.mix  # jsd: the teacher's share of the mixture
  config.distillation.temperature = Distillation.temperature  # of both models' predictions
  config.update(changes)
  return config


def teacher(path: str = "", **changes: Any) -> ConfigDict:
  """A frozen model that a student learns from."""
  config = ConfigDict()
  config.path = path  # its checkpoint; stage:NAME is an earlier stage of the run
  config.model = ""  # name of its size, where no checkpoint is read: `compile`; "" is its stage's, or the student's
  config.dtype = "bfloat16"  # of its parameters and computation
  config.mesh = ConfigDict(dict.fromkeys(base_config().mesh, 0))  # devices along an axis; 0 is the stage's number
  config.offload = False  # its parameters wait in the host's memory while the student trains
  config.update(changes)
  return config


def _rollout_stage(kind: str) -> ConfigDict:
  """A stage that trains on what the model writes."""
  config = _stage(kind)
  config.problems = ""  # kind:location, see qwen3_jax/problems/sources.py
  config.steps = 0  # optimizer steps of the stage
  config.minibatches = 1  # optimizer steps on one batch of rollouts
  _judged(config)
  config.rollout.staleness = 0  # 1: the next rollouts are made during training, by the policy it started from
  return config


def _judged(config: ConfigDict) -> None:
  """Adds the keys of judging by answers to problems, and of what writes them."""
  config.validation_problems = ""  # kind:location, as `problems` and held out of them; "" judges none
  config.evaluate_problems = 64  # so many of them are answered at each evaluation
  config.evaluate_samples = 4  # times each, at the rollouts' temperature

  config.rollout = ConfigDict()
  config.rollout.slots = 256  # sequences that are decoded at a time
  config.rollout.max_new_tokens = 2048  # of an answer; with a thinking budget, after the thinking
  config.rollout.thinking_budget = -1  # tokens; -1: any number
  config.rollout.temperature = 1.0  # of sampling; nothing is filtered
  config.rollout.enable_thinking = True  # False: answers start after an empty think block
  config.rollout.modes = ConfigDict()  # shares of the problems that are asked
  config.rollout.modes.plain = 1.0  # as they are
  config.rollout.modes.think = 0.0  # followed by /think
  config.rollout.modes.no_think = 0.0  # followed by /no_think
  config.rollout.cache_bytes = 0  # of each device that the cache may take; 0: sequence_length in every slot


def stage_names(config: ConfigDict) -> list[str]:
  """The stages that a run with this config works on, in order."""
  return [config.stage] if config.stage else list(config.pipeline)


def stage_mesh(config: ConfigDict, stage: str) -> dict[str, int]:
  """Devices along each axis in a stage, as in `config.mesh`."""
  own = config.stages[stage].mesh
  return {axis: own[axis] or size for axis, size in config.mesh.items()}


def model_settings(config: ConfigDict, stage: str) -> ConfigDict:
  """The model that a stage names, with the fields of ModelConfig."""
  name = config.stages[stage].model
  return config.models[name] if name else config.model


def stage_model(config: ConfigDict, stage: str) -> ModelConfig:
  """The model as a stage trains it."""
  settings, model = config.stages[stage], model_settings(config, stage)
  return make_model_config(model, rope_theta=settings.rope_theta, remat=settings.remat or model.remat)


def stages_before(config: ConfigDict, stage: str) -> list[str]:
  """The stages that a stage builds on, in order: the last is the one whose parameters it starts from."""
  settings = config.stages[stage]
  earlier = config.pipeline[: config.pipeline.index(stage)]
  same = [name for name in earlier if config.stages[name].model == settings.model]
  start = settings.after or (same[-1] if same else "")
  return [*stages_before(config, start), start] if start else []


def teacher_mesh(config: ConfigDict, stage: str, name: str) -> dict[str, int]:
  """Devices along each axis for a teacher of a stage, as in `config.mesh`."""
  own = config.stages[stage].teachers[name].mesh
  return {axis: own[axis] or size for axis, size in stage_mesh(config, stage).items()}


def teacher_model(config: ConfigDict, stage: str, name: str) -> ModelConfig:
  """A teacher's model as the config describes it, in the dtype it computes in."""
  settings = config.stages[stage].teachers[name]
  if settings.path.startswith(OF_STAGE):
    model = stage_model(config, settings.path.removeprefix(OF_STAGE))
  else:
    model = model_config(settings.model) if settings.model else stage_model(config, stage)
  return model.replace(dtype=settings.dtype, param_dtype=settings.dtype)


TRACKERS = ("wandb", "mlflow")  # what `trackers` may name
BALANCE_COUNTS = ("exact", "running", "micro")  # values of a stage's `balance_counts`
# Value of a stage's `kind` -> the function that documents its keys.
STAGE_KINDS = {"pretrain": pretrain_stage, "sft": sft_stage, "rl": rl_stage, "distill": distill_stage}
# Likewise of written conversations.
WRITTEN_KINDS = {"fusion": written_fusion, "answers": written_answers}
OF_STAGE = "stage:"  # before the name of an earlier stage of the run, in the place of a teacher's folder
WRITTEN = "written:"  # before a name of `data.written`, as a corpus's source
ROLLOUT_KINDS = ("rl", "distill")  # of stages whose batches the model writes


def make_model_config(model: ConfigDict, **changes: Any) -> ModelConfig:
  """The ModelConfig that `config.model` or one of `config.models` describes, with `changes` (e.g. a rope_theta)."""
  return ModelConfig(**{**model.to_dict(), **changes})
