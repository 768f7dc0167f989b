"""Fusion: dialogs with flags as they are encoded, their proportions, and the corpus that reads them."""

import collections
import json

import pytest

from qwen3_jax.curation.fusion import fuse
from qwen3_jax.curation.fusion_samples import CATEGORIES, Sample, Turn
from qwen3_jax.curation.fusion_settings import FusionSettings
from qwen3_jax.data.conversation import encode_conversation
from qwen3_jax.data.prepare import prepare
from qwen3_jax.data.prepared import PreparedCorpus
from qwen3_jax.data.sources import SourceError
from tests.data.conftest import qwen, qwen_path  # noqa: F401

FLAGS = {"/think": True, "/no_think": False}


def thinking(count: int) -> list[Sample]:
  return [
    Sample(f"t{i}", "mathematics", (Turn(f"Question t{i}?", f"Answer t{i}.", f"Thoughts\n\non t{i}"),))
    for i in range(count)
  ]


def without(count: int) -> list[Sample]:
  """Of all categories; some have a system prompt, some several turns."""
  made = []
  for i in range(count):
    turns = [Turn(f"Question n{i}.{k}?", f"Answer n{i}.{k}.") for k in range(1 + (i % 11 == 0) + (i % 22 == 0))]
    made.append(Sample(f"n{i}", CATEGORIES[i % 7], tuple(turns), "Be a pirate." if i % 13 == 0 else ""))
  return made


def single(count: int) -> list[Sample]:
  return [Sample(f"n{i}", CATEGORIES[i % 7], (Turn(f"Question n{i}.0?", f"Answer n{i}.0."),)) for i in range(count)]


def flags_of(text: str) -> list[bool]:
  return [FLAGS[word] for word in text.split() if word in FLAGS]


def turns_of(text: str) -> list[tuple[str, str]]:
  """(role, content with its end) of a text in ChatML."""
  return [tuple(part.split("\n", 1)) for part in text.split("<|im_start|>")[1:]]


# Dialogs


@pytest.mark.parametrize("turns", ["every", "last"])
def test_encoded_dialogs_obey_the_last_flag(qwen, turns):  # noqa: F811
  settings = FusionSettings(multi_turn_share=0.6, turns=turns, later_flag_share=0.5)
  samples = [*thinking(250), *without(250)]
  answers = {turn.prompt: (turn.thinking, turn.response) for sample in samples for turn in sample.turns}
  found = fuse(samples[:250], samples[250:], settings, seed=3).conversations
  lengths, rules = collections.Counter(), collections.Counter()
  for one in found:
    assert one["loss"] == "last"
    ids, mask = encode_conversation(qwen, one["messages"], loss=one["loss"])
    text = qwen.decode(ids)
    rule, place, modes = True, "none", []
    *before, (role, last) = turns_of(text)
    assert role == "assistant"
    for number, (role, content) in enumerate(before):
      if role == "assistant":
        assert "think>" not in content and content.startswith("Answer")
        continue
      content = content.removesuffix("<|im_end|>\n")
      assert len(flags_of(content)) <= 1 and (role == "user" or number == 0)
      if flag := flags_of(content):
        rule, place = flag[0], role
      if role == "user":
        modes.append("think" if rule else "no_think")
        prompt = content.replace("/think", "").replace("/no_think", "").strip()
    block, response = answers[prompt]
    assert bool(block) == rule  # the sample is of the mode that rules
    assert last == f"<think>\n{block}\n</think>\n\n{response}<|im_end|>\n"
    assert one["modes"] == modes and one["category"] == one["domain"]
    trained = [i for i, in_loss in enumerate(mask) if in_loss]
    assert trained == list(range(trained[0], trained[-1] + 1))
    assert qwen.decode(ids[i] for i in trained) == last.removesuffix("\n")
    assert qwen.decode(ids[: trained[0]]).endswith("<|im_start|>assistant\n")
    assert ids[trained[0]] == qwen.think_start_id
    lengths[len(modes)] += 1
    rules[place, rule] += 1
  assert set(rules) == {("none", True), ("user", True), ("user", False), ("system", True), ("system", False)}
  assert min(rules.values()) >= 5 and set(lengths) == {1, 2, 3, 4}
  answered = [one["messages"][-1]["content"] for one in found]
  if turns == "every":  # each turn of each sample is the last of one conversation
    assert sorted(answered) == sorted(turn.response for sample in samples for turn in sample.turns)
    prefixes = {json.dumps(one["messages"][:-1]) for one in found}
    for one in found:
      if len(one["modes"]) > 1:
        assert json.dumps(one["messages"][:-3]) in prefixes
  else:
    assert sorted(id for one in found for id in one["samples"]) == sorted(sample.id for sample in samples)
    assert len(set(answered)) == len(found)
  assert len({one["id"] for one in found}) == len(found)


def test_flags_are_tokens_of_their_own(qwen):  # noqa: F811
  """After a space or a line break a flag has the ids that it has at a user's keyboard, whatever stands beside it."""
  spellings = {f"{gap}{flag}": qwen.encode(f"{gap}{flag}") for gap in (" ", "\n", "") for flag in FLAGS}
  settings = FusionSettings(before_share=0.5, line_break_share=0.5, unflagged_share=0)
  for one in fuse(thinking(60), without(60), settings, seed=0).conversations:
    for message in one["messages"]:
      for flag in FLAGS:
        if flag in message["content"].split():
          before, _, after = message["content"].partition(flag)
          assert (before or after)[-1:] != "" or message["role"] == "system"
          assert before[-1:] in ("", " ", "\n") and after[:1] in ("", " ", "\n")
          gap = before[-1:]
          ids = qwen.encode(message["content"])
          flag_ids = spellings[f"{gap}{flag}"] if gap != "\n" else spellings[flag]
          assert any(ids[i : i + len(flag_ids)] == flag_ids for i in range(len(ids))), message


def measured(conversations) -> dict[str, float]:
  """Shares as one reads them off the longest conversation of each dialog."""
  dialogs = {one["id"].rpartition("/")[0]: one for one in conversations}  # the last one is the longest
  count = collections.Counter()
  for one in dialogs.values():
    count["dialogs"] += 1
    count["joined"] += len(one["samples"]) > 1
    rule, seen, user = True, False, 0
    for message in one["messages"]:
      if message["role"] == "assistant":
        continue
      flags = flags_of(message["content"])
      seen = seen or bool(flags)
      rule = flags[0] if flags else rule
      count[f"flags/{message['role']}"] += len(flags)
      alone = message["content"] in FLAGS
      count["with text"] += bool(flags) and not alone
      words = message["content"].split()
      count["line breaks"] += not alone and any(line in FLAGS for line in message["content"].split("\n"))
      if message["role"] == "system":
        system = flags
        continue
      user += 1
      count["before"] += words[0] in FLAGS
      count["turns"] += 1
      count["thinking"] += rule
      count["unflagged"] += rule and not seen
      if user > 1:
        count["later"] += 1
        count["later flagged"] += bool(flags)
      elif one["messages"][0]["role"] == "system" and flags and system:
        count["overridden"] += 1
        assert system[0] != flags[0]
  flags = count["flags/user"] + count["flags/system"]
  share = lambda part, whole: part / whole if whole else None
  return {
    "thinking_share": share(count["thinking"], count["turns"]),
    "multi_turn_share": share(count["joined"], count["dialogs"]),
    "unflagged_share": share(count["unflagged"], count["thinking"]),
    "later_flag_share": share(count["later flagged"], count["later"]),
    "system_share": share(count["flags/system"], flags),
    "overridden_share": share(count["overridden"], count["flags/system"]),
    "before_share": share(count["before"], count["flags/user"]),
    "line_break_share": share(count["line breaks"], count["with text"]),
  }


@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"thinking_share": 0.7, "unflagged_share": 0.1, "system_share": 0.3, "multi_turn_share": 0.6, "most_turns": 6},
    {"before_share": 0.6, "line_break_share": 0.7, "overridden_share": 0.6, "later_flag_share": 0.3},
    {"turns": "last", "multi_turn_share": 1.0, "system_share": 0.0},
    {"unflagged_share": 0.0, "multi_turn_share": 0.0, "system_share": 1.0, "overridden_share": 0.0},
    {"thinking_share": 0.2, "unflagged_share": 0.5, "line_break_share": 0.0, "later_flag_share": 1.0},
  ],
)
def test_proportions(changes):
  settings = FusionSettings(**changes)
  fused = fuse(thinking(3000), single(3000), settings, seed=1)
  found, reported = measured(fused.conversations), fused.facts["shares"]
  exact = ("thinking_share", "unflagged_share", "system_share", "overridden_share")
  for name, value in found.items():
    if value is None:  # nothing to have a share of
      assert reported[name] is None
      continue
    assert reported[name] == pytest.approx(value, abs=1e-4), name  # what the report says is so
    assert value == pytest.approx(getattr(settings, name), abs=0.003 if name in exact else 0.04), name
  uses = fused.facts["samples"]
  assert max(uses[mode]["used"] / uses[mode]["given"] for mode in uses) == 1  # as many as there can be
  if settings.turns == "every":
    assert uses["think"]["used"] + uses["no_think"]["used"] == len(fused.conversations)


def test_a_share_of_first_turns_that_dialogs_are_too_long_for():
  settings = FusionSettings(multi_turn_share=1.0, most_turns=6, system_share=0.9, overridden_share=0.0)
  found = fuse(thinking(600), single(600), settings, seed=0)
  flagged = [one for one in found.conversations if len(one["modes"]) == 1 and flags_of(json.dumps(one["messages"]))]
  assert all(one["messages"][0]["role"] == "system" for one in flagged)  # all that can be
  assert 0.1 < found.facts["shares"]["system_share"] < 0.5


def test_shares_of_categories():
  shares = {"code": 0.5, "role_play": 0.3, "multilingual": 0.2}
  fused = fuse(thinking(500), single(700), FusionSettings(category_shares=shares, multi_turn_share=0), seed=0)
  assert fused.facts["by_category"]["no_think"] == {"code": 100, "multilingual": 40, "role_play": 60}
  assert fused.facts["samples"]["think"] == {"used": 200, "given": 500}
  assert fused.facts["conversations"]["by_category"] == {
    "code": 100, "mathematics": 200, "multilingual": 40, "role_play": 60,
  }  # fmt: skip
  for one in fused.conversations:
    assert one["category"] == (
      "mathematics" if one["samples"][0][0] == "t" else CATEGORIES[int(one["samples"][0][1:]) % 7]
    )
  with pytest.raises(ValueError, match=r"category_shares\.code=0\.5: no samples of this category"):
    fuse(thinking(5), single(70)[1::7], FusionSettings(category_shares={"code": 0.5, "mathematics": 0.5}), seed=0)


def test_one_mode_alone():
  only = fuse(thinking(20), [], FusionSettings(thinking_share=1.0), seed=0)
  assert {one["modes"][-1] for one in only.conversations} == {"think"}
  none = fuse([], without(20), FusionSettings(thinking_share=0.0), seed=0)
  assert {one["modes"][-1] for one in none.conversations} == {"no_think"}


def test_the_seed_decides():
  runs = [fuse(thinking(50), without(50), FusionSettings(), seed).conversations for seed in (0, 0, 1)]
  assert runs[0] == runs[1] != runs[2]


def test_what_cannot_be_fused():
  for few, many, message in [
    ([], without(5), "thinking: no samples, but thinking_share=0.5"),
    (thinking(5), [], "non_thinking: no samples"),
    (without(5), without(5), "thinking: sample 'n0' has no thinking"),
    (thinking(5), thinking(5), "non_thinking: sample 't0' has thinking"),
  ]:
    with pytest.raises(ValueError, match=message):
      fuse(few, many, FusionSettings(), seed=0)


def test_settings_name_all_that_is_wrong():
  with pytest.raises(ValueError) as error:
    FusionSettings(
      thinking_share=1.2, most_turns=1, samples=0, system_share="much", turns="all",
      category_shares={"coding": 0.5, "code": 0.4}, system_prompts=("Think /think",),
    )  # fmt: skip
  for part in (
    "thinking_share=1.2, expected a number from 0 to 1",
    "most_turns=1, expected a whole number, at least 2",
    "samples=0, expected a whole number, at least 1",
    "system_share='much'",
    "turns='all', expected one of every, last",
    "category_shares.coding: no such category. Did you mean 'code'?",
    "category_shares: the sum is 0.9, expected 1",
    "system_prompts: 'Think /think' holds a flag itself",
  ):
    assert part in str(error.value)
  with pytest.raises(ValueError, match="system_prompts=''"):
    FusionSettings(system_prompts="")


# The corpus


def test_chat_lines_with_the_loss_on_the_last_turn(qwen, tmp_path):  # noqa: F811
  messages = [
    {"role": "user", "content": "a /think"},
    {"role": "assistant", "content": "first"},
    {"role": "user", "content": "b /no_think"},
    {"role": "assistant", "content": "second", "reasoning_content": ""},
  ]
  losses = {
    "last": "<think>\n\n</think>\n\nsecond<|im_end|>",
    "all": "first<|im_end|><think>\n\n</think>\n\nsecond<|im_end|>",
  }
  for loss, trained in [*losses.items(), (None, losses["all"])]:
    file, folder = tmp_path / "chat.jsonl", tmp_path / f"{loss}"
    file.write_text(json.dumps({"messages": messages, **({"loss": loss} if loss else {})}) + "\n")
    prepare(f"chat:{file}", folder, qwen, validation_fraction=0.0, workers=1, progress=False)
    tokens, mask = PreparedCorpus.open(folder).read(0)
    assert qwen.decode(tokens[mask].tolist()) == trained
  file.write_text(json.dumps({"messages": messages, "loss": "lst"}) + "\n")
  with pytest.raises(SourceError, match=r"chat\.jsonl, line at byte 0: loss='lst': expected 'all' or 'last'"):
    prepare(f"chat:{file}", tmp_path / "bad", qwen, workers=1, progress=False)
