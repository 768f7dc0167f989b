"""Configuration: typed arguments, overrides, and errors that name every problem at once."""

import ast
import inspect

import pytest
from absl import flags
from hypothesis import given, strategies
from ml_collections import ConfigDict

from qwen3_jax import config as config_module
from qwen3_jax import config_loading
from qwen3_jax.config import (
  base_config,
  corpus,
  distill_stage,
  make_model_config,
  pretrain_stage,
  rl_stage,
  sft_stage,
  teacher,
)
from qwen3_jax.config_checks import ConfigError, did_you_mean, validate
from qwen3_jax.config_loading import load, parse_arg

EXPERIMENT = """
from qwen3_jax.config import base_config, corpus, pretrain_stage
from qwen3_jax.config_loading import parse_arg

def get_config(arg=""):
  arguments = parse_arg(arg, size=("small", "large"), layers=2, tiny=False)
  config = base_config()
  config.model.update(num_layers=arguments.layers)
  config.tokenizer.path = "tokenizer"
  config.data.corpora.web = corpus("jsonl:web/*.jsonl")
  config.data.corpora.code = corpus("text:code")
  config.pipeline = ("s1", "s2")
  for name in config.pipeline:
    config.stages[name] = pretrain_stage(tokens=10**9, mixture=dict(web=0.7, code=0.3))
  return config
"""


@pytest.fixture
def experiment(tmp_path):
  path = tmp_path / "experiment.py"
  path.write_text(EXPERIMENT)
  return str(path)


def problems_of(config: ConfigDict, **arguments) -> str:
  with pytest.raises(ConfigError) as error:
    validate(config, **arguments)
  return "\n".join(error.value.problems)


def valid_config(**stage) -> ConfigDict:
  config = base_config()
  config.tokenizer.path = "tokenizer"
  config.data.corpora.web = corpus("jsonl:web/*.jsonl")
  config.pipeline = ("s1",)
  config.stages.s1 = pretrain_stage(**{"tokens": 10**9, "mixture": {"web": 1.0}, **stage})
  return config


# Arguments of experiments.


def test_parse_arg_defaults_and_types():
  arguments = {"stage": "", "tiny": False, "layers": 2, "lr": 0.1, "model": ("dense", "moe")}
  parsed = parse_arg("", **arguments)
  assert vars(parsed) == {"stage": "", "tiny": False, "layers": 2, "lr": 0.1, "model": "dense"}
  parsed = parse_arg("stage=s2, tiny,layers=1e3,lr=3,model=moe", **arguments)
  assert vars(parsed) == {"stage": "s2", "tiny": True, "layers": 1000, "lr": 3.0, "model": "moe"}
  assert isinstance(parsed.lr, float) and isinstance(parsed.layers, int)


def test_parse_arg_reports_all_problems():
  with pytest.raises(ConfigError) as error:
    parse_arg("tiyn,stage,layers=many,model=mo,tiny=yes,tiny", stage="", tiny=False, layers=2, model=("dense", "moe"))
  found = error.value.problems
  assert len(found) == 6
  assert "'tiyn': unknown. Did you mean 'tiny'?" in found[0]
  assert "'stage': needs a value" in found[1]
  assert "layers='many': expected an integer" in found[2]
  assert "must be one of dense, moe. Did you mean 'moe'?" in found[3]
  assert "tiny='yes': expected true or false" in found[4]
  assert "given twice" in found[5]


@given(
  layers=strategies.integers(-(10**12), 10**12),
  lr=strategies.floats(allow_nan=False, allow_infinity=False),
  tiny=strategies.booleans(),
  name=strategies.text("abcxyz019_-./ :=", max_size=12).map(str.strip),
)
def test_parse_arg_round_trip(layers, lr, tiny, name):
  arg = f"layers={layers},lr={lr!r},tiny={str(tiny).lower()},name={name}"
  parsed = parse_arg(arg, layers=0, lr=0.0, tiny=False, name="default")
  assert vars(parsed) == {"layers": layers, "lr": lr, "tiny": tiny, "name": name}


@given(strategies.text(max_size=30))
def test_parse_arg_never_guesses(arg):
  """Any text gives arguments of the declared types or a ConfigError, nothing else."""
  try:
    parsed = parse_arg(arg, layers=1, tiny=False)
  except ConfigError:
    return
  assert type(parsed.layers) is int and type(parsed.tiny) is bool


# Overrides.


def test_overrides_are_typed_and_the_last_wins(experiment):
  config = load(
    f"{experiment}:layers=4",
    [
      "stages.s1.optimizer.peak_lr=1e-4",
      "stages.s1.optimizer.peak_lr=3e-4",
      "stages.s1.tokens=2e9",
      "model.num_layers=6",
      "model.tie_word_embeddings=false",
      "stages.s1.rope_theta=20000",
      "stages.s2.mixture.web=0.5",
      "stages.s2.length_buckets=[(0, 1024, 0.5), (1024, 4096, 0.5)]",
      "pipeline=('s2',)",
      "name=a=b c",
    ],
  )
  assert config.stages.s1.optimizer.peak_lr == 3e-4
  assert config.stages.s1.tokens == 2_000_000_000 and type(config.stages.s1.tokens) is int
  assert config.model.num_layers == 6  # over the experiment's argument
  assert config.model.tie_word_embeddings is False
  assert config.stages.s1.rope_theta == 20_000.0 and type(config.stages.s1.rope_theta) is float
  assert config.stages.s2.mixture.to_dict() == {"web": 0.5, "code": 0.3}
  assert config.stages.s2.length_buckets == ((0, 1024, 0.5), (1024, 4096, 0.5))
  assert config.pipeline == ("s2",)
  assert config.name == "a=b c"
  assert load(experiment).model.num_layers == 2


def test_loaded_config_is_locked(experiment):
  config = load(experiment)
  with pytest.raises((KeyError, AttributeError)):
    config.stages.s1.optimizer.peek_lr = 1.0


def test_all_problems_of_a_command_line_at_once(experiment):
  with pytest.raises(ConfigError) as error:
    load(
      f"{experiment}:layerz=3",
      [
        "stages.s1.peak_lr=3e-4",
        "modle.dtype=float32",
        "stages.s1.tokens=1.5",
        "model.num_layers=three",
        "mesh=4",
        "seed",
        "stages.s2.length_buckets=(1,",
        "stages.s2.optimizer.schedule=cosin",
        "pipeline=('s1','s3')",
        "mesh.tensor=3",
      ],
      device_count=8,
    )
  found = "\n".join(error.value.problems)
  for expected in (
    "'layerz': unknown. Did you mean 'layers'?",
    "--config.stages.s1.peak_lr=3e-4: unknown key. Did you mean 'stages.s1.optimizer.peak_lr'?",
    "--config.modle.dtype=float32: unknown key. Did you mean 'model.dtype'?",
    "--config.stages.s1.tokens=1.5: expected an integer",
    "--config.model.num_layers=three: expected an integer",
    "--config.mesh=4: a group of keys",
    "--config.seed: needs a value",
    "--config.stages.s2.length_buckets=(1,: expected a tuple",
    "stages.s2.optimizer.schedule='cosin': must be one of wsd, cosine, constant. Did you mean 'cosine'?",
    "pipeline: unknown stage 's3'. Known: s1, s2",
    "8 devices cannot be divided by 3",
    "model.num_heads=16: cannot be divided over mesh.tensor=3",
  ):
    assert expected in found
  assert str(error.value).startswith(f"{len(error.value.problems)} configuration problems:\n")
  assert all("\n" not in line for line in error.value.problems)


@pytest.mark.parametrize("text", ["nan", "inf", "1e400", "", "1,5", "0x10"])
def test_numbers_that_are_none(experiment, text):
  for key in ("stages.s1.tokens", "stages.s1.optimizer.peak_lr"):
    with pytest.raises(ConfigError, match="expected a"):
      load(experiment, [f"{key}={text}"])


def test_experiments_are_found_from_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load("experiments/dense_0_6b.py:tiny", []).name == "qwen3-0.6b-tiny"
  with pytest.raises(ConfigError, match=r"no such file\. Did you mean 'experiments/dense_0_6b\.py'\?"):
    load("experiments/dense_0_6.py", [])
  (tmp_path / "experiments").mkdir()  # a file here goes first
  (tmp_path / "experiments" / "dense_0_6b.py").write_text("")
  with pytest.raises(ConfigError, match="has no get_config"):
    load("experiments/dense_0_6b.py", [])


def test_missing_file_and_missing_function(tmp_path, experiment):
  with pytest.raises(ConfigError, match=r"no such file\. Did you mean '.*/experiment\.py'\?"):
    load(experiment.replace("experiment.py", "experimnt.py"))
  (tmp_path / "empty.py").write_text("")
  with pytest.raises(ConfigError, match=r"has no get_config"):
    load(str(tmp_path / "empty.py"))


def test_command_line(experiment):
  values = flags.FlagValues()
  flags.DEFINE_string("workdir", "", "", flag_values=values)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(config_loading.flags, "FLAGS", values)
    patch.setattr(config_loading.app, "FLAGS", values)
    config_loading.define_config_flag(values)
    rest = config_loading.parse_flags(
      ["main", f"--config={experiment}:layers=3", "--config.seed=7", "--workdir=w", "--config.name=x"]
    )
    config = config_loading.config_from_flags()
    assert (config.seed, config.name, config.model.num_layers, values.workdir, rest) == (7, "x", 3, "w", ["main"])
    config_loading.parse_flags(["main", f"--config={experiment}", "--config.sed=7"])
    with pytest.raises(SystemExit, match="Did you mean 'seed'"):
      config_loading.config_from_flags()
    with pytest.raises(SystemExit):  # a usage message, not a traceback
      config_loading.parse_flags(["main", "--confg=x"])


# Values.


def test_valid_config_passes():
  validate(valid_config())
  validate(valid_config(), device_count=8)


def test_misspelt_keys_of_an_experiment_are_found():
  config = valid_config(peak_lr=1e-3)
  config.optimiser = 3
  config.stages.s1.optimizer.beta = 0.9
  config.data.corpora.web.txt_field = "body"
  found = problems_of(config)
  assert "stages.s1.peak_lr: unknown key. Did you mean 'stages.s1.optimizer.peak_lr'?" in found
  assert "optimiser: unknown key" in found
  assert "stages.s1.optimizer.beta: unknown key. Did you mean 'stages.s1.optimizer.beta" in found
  assert "data.corpora.web.txt_field: unknown key. Did you mean 'data.corpora.web.text_field'?" in found


def test_missing_and_mistyped_values_do_not_hide_the_rest():
  config = valid_config(batch_size=0)
  del config.stages.s1.rope_theta
  del config.mesh
  with config.ignore_type():
    config.seed = "seven"
  found = problems_of(config)
  assert "stages.s1.rope_theta: missing" in found
  assert "mesh.data: missing" in found
  assert "seed='seven': expected an integer" in found
  assert "stages.s1.batch_size=0: must be at least 1" in found


@pytest.mark.parametrize(
  "stage, expected",
  [
    ({"batch_size": 10, "micro_batches": 4}, "batch_size=10: must be a multiple of micro_batches=4"),
    ({"tokens": 1000}, "less than one step"),
    ({"sequence_length": 65_536, "batch_size": 8}, "longer than the model's max_position_embeddings"),
    ({"mixture": {"wbe": 1.0}}, "mixture.wbe: unknown corpus. Did you mean 'web'? Known: web"),
    ({"mixture": {"web": 0.0}}, "mixture.web=0.0: a share must be positive"),
    ({"mixture": {}}, "mixture: names no corpus"),
    ({"kind": "sfft"}, "kind='sfft': unknown kind of stage"),
    ({"rope_theta": -1.0}, "rope_theta=-1.0"),
    ({"sample_prompts": (1,)}, "must hold strings"),
    ({"z_loss": -0.1}, "z_loss=-0.1: must be at least 0"),
    ({"length_buckets": ((0, 8192, 1.0),)}, "max_length is above sequence_length=4096"),
    ({"length_buckets": ((0, 2048, 0.5), (2048, 4096, 0.4))}, "add up to 0.9, not 1"),
    ({"length_buckets": ((2048, 1024, 1.0),)}, "min_length must be below max_length"),
    ({"length_buckets": ((0, 1024),)}, "is not (min_length, max_length, share)"),
    ({"length_buckets": ((0, 1024, -1.0), (1024, 4096, 2.0))}, "a share must be positive"),
    ({"optimizer": {"peak_lr": -1.0}}, "peak_lr=-1.0: must be positive"),
    ({"optimizer": {"final_lr": 1.0}}, "final_lr=1.0: must lie in"),
    ({"optimizer": {"decay_fraction": 1.5}}, "decay_fraction=1.5: must lie in [0, 1]"),
    ({"optimizer": {"beta2": 1.0}}, "beta2=1.0: must lie in [0, 1)"),
    ({"optimizer": {"epsilon": 0.0}}, "epsilon=0.0: must be positive"),
    ({"optimizer": {"warmup_steps": -1}}, "warmup_steps=-1: must be at least 0"),
    ({"optimizer": {"moment_dtype": "bf16"}}, "moment_dtype='bf16': must be one of float32, bfloat16"),
  ],
)
def test_impossible_stage(stage, expected):
  assert expected in problems_of(valid_config(**stage))


RL = {"steps": 4, "batch_size": 8, "samples": 4, "problems": "cups:10"}


def test_stages_of_fine_tuning_and_rl_are_valid():
  config = valid_config()
  config.stages.cold_start = sft_stage(tokens=10**9, mixture={"web": 1.0})
  config.stages.rl = rl_stage(**RL)
  config.pipeline = ("s1", "cold_start", "rl")
  validate(config, device_count=8)


@pytest.mark.parametrize(
  "stage, expected",
  [
    ({"steps": 0}, "rl.steps=0: must be at least 1"),
    ({"samples": 1}, "rl.samples=1: must be at least 2"),
    ({"samples": 3, "minibatches": 2}, "rl.samples=3: must divide batch_size * minibatches = 16"),
    ({"problems": ""}, "rl.problems='': names no problems"),
    ({"problems": "cup:10"}, "rl.problems='cup:10': expected kind:..., kind one of jsonl, reasoning-gym, cups."),
    ({"validation_problems": "cups:x"}, "rl.validation_problems='cups:x': expected cups:COUNT"),
    ({"grpo": {"ratio": "tokens"}}, "rl.grpo: GRPO: ratio='tokens', expected one of token, sequence"),
    ({"overlong": "drop"}, "rl.overlong='drop': must be one of keep, mask, penalize"),
    ({"overlong": "penalize"}, "rl.overlong_tokens=0: must lie in 1 .. rollout.max_new_tokens = 2048"),
    ({"rollout": {"staleness": 2}}, "rl.rollout.staleness=2: must be 0 or 1"),
    ({"rollout": {"temperature": 0.0}}, "rl.rollout.temperature=0.0: must be positive"),
    ({"rollout": {"max_new_tokens": 4096}}, "leaves no room for a prompt in sequence_length=4096"),
    ({"entropy": {"gain": -1.0}}, "rl.entropy: gain=-1.0"),
    ({"entropy": {"coefficient": 0.5}}, "rl.entropy.coefficient=0.5: must lie in minimum=0.0 .. maximum=0.05"),
    ({"optimizer": {"peak_lr": -1.0}}, "rl.optimizer.peak_lr=-1.0: must be positive"),
    ({"batch_size": 10, "micro_batches": 4}, "rl.batch_size=10: must be a multiple of micro_batches=4"),
  ],
)
def test_impossible_rl_stage(stage, expected):
  config = valid_config()
  config.stages.rl = rl_stage(**RL | stage)
  assert expected in problems_of(config)


DISTILL = {"steps": 4, "batch_size": 8, "problems": "cups:10"}


def distilling(teachers=None, **stage):
  config = valid_config()
  teachers = {"large": teacher("/teacher")} if teachers is None else teachers
  config.stages.on_policy = distill_stage(**DISTILL | stage, teachers=teachers)
  config.pipeline = ("s1", "on_policy")
  return config


def test_a_stage_of_distillation_is_valid():
  teachers = {"large": teacher("/teacher", model="qwen3-32b"), "itself": teacher("stage:s1")}
  routes = (("no_think", "itself"), ("mathematics", "large"))
  validate(distilling(teachers, routes=routes), device_count=8)


@pytest.mark.parametrize(
  "stage, expected",
  [
    ({"steps": 0}, "on_policy.steps=0: must be at least 1"),
    ({"teachers": {}}, "on_policy.teachers: names none"),
    ({"teachers": {"large": teacher()}}, "on_policy.teachers.large.path='': names no checkpoint"),
    ({"teachers": {"large": teacher("stage:s2")}}, "large.path='stage:s2': no stage before 'on_policy'; there are s1"),
    ({"teachers": {"large": teacher("/t", dtype="int8")}}, "large.dtype='int8': must be one of float32, bfloat16"),
    ({"teachers": {"large": teacher("/t", model="qwen3-33b")}}, "large.model: Unknown model 'qwen3-33b'. Did you mean"),
    ({"teachers": {"large": teacher("/t", mesh={"data": -2})}}, "large.mesh.data=-2: must be at least 1, or -1"),
    ({"teachers": {"large": teacher("/t", pth=1)}}, "on_policy.teachers.large.pth: unknown key"),
    (
      {"routes": (("think", "small"),)},
      "on_policy.routes: ('think', 'small'): expected (mode or domain, one of large)",
    ),
    ({"distillation": {"divergence": "revers"}}, "on_policy.distillation: Distillation: divergence='revers'"),
    ({"rollout": {"modes": {"think": 0.5}}}, "shares must be at least 0 and add up to 1"),
    ({"samples": 3}, "on_policy.samples=3: must divide batch_size * minibatches = 8"),
  ],
)
def test_impossible_stage_of_distillation(stage, expected):
  assert expected in problems_of(distilling(**stage))


def test_unknown_key_of_an_rl_stage():
  config = valid_config()
  config.stages.rl = rl_stage(**RL)
  config.stages.rl.tokens = 5
  config.stages.rl.rollout.temprature = 1.0
  found = problems_of(config)
  assert "stages.rl.tokens: unknown key" in found
  assert "Did you mean 'stages.rl.rollout.temperature'?" in found


@pytest.mark.parametrize(
  "mesh, devices, expected",
  [
    ({"fsdp": 4}, 8, "needs 4 devices, there are 8"),
    ({"data": 3}, 8, "8 devices cannot be divided by 3"),
    ({"data": -1}, 8, "data and fsdp are -1; at most one"),
    ({"data": -1}, None, "data and fsdp are -1; at most one"),
    ({"tensor": 0}, None, "mesh.tensor=0: must be at least 1, or -1"),
    ({"expert": 2}, 8, "mesh.expert=2: the model is dense"),
    ({"context": 3}, None, "sequence_length=4096: cannot be divided into 2 * mesh.context = 6 chunks"),
    ({}, 512, "a micro-batch of 256 sequences cannot be divided over data * fsdp * expert = 512 devices"),
  ],
)
def test_impossible_mesh(mesh, devices, expected):
  config = valid_config()
  config.mesh.update(mesh)
  assert expected in problems_of(config, device_count=devices)


def test_experts_must_divide():
  config = valid_config()
  config.model.update(num_experts=6, num_experts_per_token=2)
  config.mesh.update(expert=4)
  assert "model.num_experts=6: cannot be divided over mesh.expert=4" in problems_of(config)


@pytest.mark.parametrize(
  "source, expected",
  [
    ("/data/web.jsonl", "expected kind:location"),
    ("json:web", "unknown kind 'json'. Did you mean 'jsonl'?"),
    ("parquet:", "no location after 'parquet'"),
  ],
)
def test_sources(source, expected):
  config = valid_config()
  config.data.corpora.web.source = source
  assert f"data.corpora.web.source={source!r}: {expected}" in problems_of(config)


def test_sources_that_need_no_location_and_files_that_need_not_exist():
  for source in ("python:", "debian-docs:", "hf:name", "tfds:name", "prepared:/nowhere"):
    config = valid_config()
    config.data.corpora.web.source = source
    validate(config)


def test_model_problems_are_reported():
  config = valid_config()
  config.model.update(num_heads=7, dtype="float16", remat="all")
  found = problems_of(config)
  assert "num_heads=7 must be a multiple" in found and "remat='all' must be one of" in found
  assert "model.dtype='float16': must be one of float32, bfloat16" in found


def test_vocabulary_larger_than_the_embedding():
  config = valid_config()
  config.tokenizer.update(path="", train_vocab_size=4096)
  config.model.vocab_size = 4000
  assert "train_vocab_size=4096: larger than the embedding" in problems_of(config)


def test_pipeline():
  config = valid_config()
  config.pipeline = ()
  assert "names no stage" in problems_of(config)
  config.pipeline = ("s1", "s1")
  assert "names a stage twice" in problems_of(config)


def test_did_you_mean_prefers_the_same_last_part():
  known = ["model.num_layers", "stages.s1.optimizer.peak_lr", "stages.s2.optimizer.peak_lr"]
  assert "stages.s2.optimizer.peak_lr" in did_you_mean("stages.s2.peak_lr", known)
  assert did_you_mean("zzz", known) == ""


# The keys.


def test_every_key_has_a_comment():
  """Each assignment of a key is documented on its own line or by a comment just above."""
  source = inspect.getsource(config_module)
  lines = source.splitlines()
  functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
  documented = {
    "base_config",
    "corpus",
    "_stage",
    "_packed_stage",
    "sft_stage",
    "rl_stage",
    "_rollout_stage",
    "_judged",
  }
  documented |= {"distill_stage", "teacher"}
  undocumented, seen = [], 0
  for function in functions:
    if function.name not in documented:
      continue
    for node in ast.walk(function):
      is_key = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute)
      if not is_key or ast.unparse(node.value) == "ConfigDict()":
        continue
      seen += 1
      if "#" not in lines[node.lineno - 1] and not lines[node.lineno - 2].strip().startswith("#"):
        undocumented.append(ast.unparse(node))
  assert seen > 85 and not undocumented


def test_make_model_config_takes_changes():
  config = valid_config()
  assert make_model_config(config.model, rope_theta=1e4).rope_theta == 1e4
  assert make_model_config(config.model).rope_theta == 1e6
