"""A whole run whose later stage reads what the model of an earlier one wrote."""

import json

import pytest
import run_helpers
from run_helpers import finish, series

from qwen3_jax.config import corpus, sft_stage, written_fusion
from qwen3_jax.config_checks import ConfigError, validate
from qwen3_jax.config_loading import load

EXPERIMENT = run_helpers.ROOT / "experiments" / "miniature_fusion.py"


def test_from_cold_start_to_fusion_in_one_run(tmp_path):
  material = run_helpers.Material(tmp_path)
  changes = {
    "log_every": 1,
    "stages.cold_start.tokens": 3 * 8 * 128,
    "stages.reasoning_rl.steps": 2,
    "stages.reasoning_rl.evaluate_problems": 2,
    "stages.fusion.tokens": 3 * 8 * 320,
    "stages.fusion.evaluate_problems": 2,
    "stages.fusion.rollout.max_new_tokens": 8,
  }
  ended = finish(material.start_tiny("miniature_fusion", tmp_path / "run", changes)).check()
  assert "with the model of stage 'reasoning_rl'" in ended.out
  folder = tmp_path / "run" / "written" / "fusion"
  conversations = [json.loads(line) for line in (folder / "conversations.jsonl").read_text().splitlines()]
  assert len(conversations) > 100 and json.loads((folder / "report.json").read_text())["seed"] == 0
  losses = series(tmp_path / "run", "fusion", "loss")
  assert sorted(losses) == [1, 2, 3] and losses[3] < losses[1]
  for mode in ("think", "no_think"):
    assert 0 <= series(tmp_path / "run", "fusion", f"validation/pass@1/{mode}")[3] <= 1


@pytest.mark.parametrize(
  "changes, expected",
  [
    ({"stage": "fusion"}, "data.written.fusion.stage='fusion': no stage before 'fusion', which reads it"),
    ({"stage": "rl"}, "data.written.fusion.stage='rl': no such stage"),
    ({"problems": "cup:3"}, "data.written.fusion.problems='cup:3': expected kind:..."),
    ({"slots": 0}, "data.written.fusion.slots=0: must be at least 1"),
    ({"fusion": {"turns": "all"}}, "data.written.fusion.fusion: FusionSettings: turns='all'"),
    ({"fusion": {"turn": "all"}}, "data.written.fusion.fusion.turn: unknown key"),
  ],
)
def test_what_cannot_be_written_is_refused(changes, expected):
  config = load(f"{EXPERIMENT}:tiny", [])
  given = {"problems": "cups:5", "direct_answers": "cups:5"} | changes
  config.data.written.fusion = written_fusion(given.pop("stage", "reasoning_rl"), **given)
  with pytest.raises(ConfigError) as error:
    validate(config)
  assert expected in str(error.value)


def test_a_corpus_of_nothing_written_is_refused():
  config = load(f"{EXPERIMENT}:tiny", [])
  with config.unlocked():
    config.data.corpora.other = corpus("written:other")
    config.stages.last = sft_stage(tokens=10**6, batch_size=8, sequence_length=64, mixture={"other": 1.0})
    config.pipeline += ("last",)
  with pytest.raises(ConfigError, match=r"source='written:other': data.written has fusion"):
    validate(config)
