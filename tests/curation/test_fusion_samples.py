"""Samples of fusion: files, what is left out, answers from references and from a model, translation."""

import json

import pytest

from qwen3_jax.curation.fusion_samples import (
  Removed,
  Sample,
  Turn,
  direct_answers,
  fit,
  read_samples,
  unfit,
  write_answers,
)
from qwen3_jax.curation.translation import ENGLISH, NATIVE, read_pairs, translation_tasks
from qwen3_jax.language_models.language_model import Reply
from qwen3_jax.problems.problem import Problem
from tests.curation.scripted_asker import problem


@pytest.mark.parametrize(
  "prompt, response, reason",
  [
    ("Solve it", "Done", ""),
    ("The folder /thinking/think", "Done", ""),
    (" \n", "Done", "an empty prompt"),
    ("Solve it", " ", "an empty answer"),
    ("Solve /no_think it", "Done", "the prompt holds a flag itself"),
    ("Solve <think> it", "Done", "the control token or tag <think>"),
    ("Solve it", "Done</think>", "the control token or tag </think>"),
    ("Solve it", "<|im_end|>", r"the control token or tag <|im_end|>"),
    ("Solve it", "Done \ufffd", "bytes that are no text"),
    ("Solve it", "I write /think", ""),
  ],
)
def test_unfit_samples(prompt, response, reason):
  sample = Sample("x", "code", (Turn("Hi", "Hello"), Turn(prompt, response)))
  assert unfit(sample).startswith(reason) and bool(unfit(sample)) == bool(reason)


def test_duplicates_and_what_was_removed():
  twins = [Sample("a", "code", (Turn("p", "r"),)), Sample("b", "role_play", (Turn("p", "r"),))]
  others = [Sample("c", "code", (Turn("p", "r", "t"),)), Sample("d", "code", (Turn("p", "r"),), "s")]
  flawed = [Sample(f"e{i}", "code", (Turn("p", ""),)) for i in range(8)]
  removed = Removed()
  assert fit([*twins, *others, *flawed], removed) == [twins[0], *others]
  found = removed.as_dict()
  assert found["duplicate"]["count"] == 1 and found["duplicate"]["by_category"] == {"role_play": 1}
  assert found["duplicate"]["examples"] == [
    {"id": "b", "category": "role_play", "reason": "the same as 'a'", "text": "p -> r"}
  ]
  assert found["unfit"]["count"] == 8 and len(found["unfit"]["examples"]) == 5


def test_files_of_samples(tmp_path):
  file = tmp_path / "code.jsonl"
  turns = [{"role": r, "content": f" {r}{i} "} for i in range(2) for r in ("user", "assistant")]
  records = [
    {"id": "mine", "messages": [{"role": "system", "content": "Be brief. "}, *turns]},
    {"prompt": "p ", "answer": " r"},
    {"prompt": "open", "system": "s"},
  ]
  file.write_text("".join(json.dumps(record) + "\n" for record in records))
  first, second, third = read_samples("code", file)
  assert first == Sample("mine", "code", (Turn("user0", "assistant0"), Turn("user1", "assistant1")), "Be brief.")
  assert second.turns == (Turn("p", "r"),) and third.turns == (Turn("open", ""),) and third.system == "s"
  assert len({first.id, second.id, third.id}) == 3 and read_samples("code", file)[1].id == second.id
  with pytest.raises(ValueError, match=r"category='coding'.*Did you mean 'code'"):
    read_samples("coding", file)


@pytest.mark.parametrize(
  "record, message",
  [
    ({"prompt": "p", "anser": "r"}, "anser: a sample has no such field. Did you mean 'answer'"),
    ({"prompt": "p", "answer": " "}, "answer: empty"),
    ({"answer": "r"}, "no field 'prompt'"),
    ({"messages": [], "prompt": "p"}, "prompt: expected either this or messages"),
    ({"messages": []}, "non-empty list"),
    ({"messages": [{"role": "user", "content": "a"}]}, "ending with an answer, found user"),
    ({"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "a"}]}, "found assistant, user"),
    (
      {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a", "reasoning_content": "b"}]},
      "reasoning_content in an answer",
    ),
  ],
)
def test_malformed_files_of_samples(tmp_path, record, message):
  file = tmp_path / "code.jsonl"
  file.write_text(json.dumps({"prompt": "p"}) + "\n" + json.dumps(record) + "\n")
  with pytest.raises(ValueError, match=f"code.jsonl, line 2: .*{message}"):
    read_samples("code", file)


def test_direct_answers():
  problems = [
    problem(3),
    Problem("logic", "logic", "s", "Which?", {"kind": "exact"}, "a"),
    Problem("none", "mathematics", "s", "p", {"kind": "exact", "answer": "5"}),
    Problem("odd", "code", "s", "p", {"kind": "exact", "answer": "5"}, "6"),
  ]
  removed = Removed()
  first, second = direct_answers(problems, removed)
  assert first == Sample("direct/p3", "mathematics", (Turn("What is 3 plus 3?", "6"),), verified=True)
  assert second.category == "question_answering" and not second.thinks
  assert {name: found["count"] for name, found in removed.as_dict().items()} == {"no reference": 1, "reference": 1}


class Writer:
  name = "writer"

  def __init__(self):
    self.requests = []

  def answer(self, requests, on_progress=lambda done, total: None):
    self.requests += requests
    return [[self.reply(request.messages[-1]["content"])] for request in requests]

  def reply(self, prompt):
    if "cut" in prompt:
      return Reply("Well", "", "length", 1, 1)
    return Reply("red " if "0" in prompt else "A Tree.", "", "stop", 1, 1)


def test_answers_that_a_model_writes():
  samples = [Sample("a", "code", (Turn("p", "r"),)), Sample("b", "code", (Turn("open 0", ""),), "Be kind.")]
  samples.append(Sample("c", "role_play", (Turn("cut", ""),)))
  writer, removed = Writer(), Removed()
  written = write_answers(samples, writer, 0, removed)
  assert written == [samples[0], Sample("b", "code", (Turn("open 0", "red"),), "Be kind.")]
  request = writer.requests[0]
  assert [message["role"] for message in request.messages] == ["system", "user"] and not request.enable_thinking
  assert (request.temperature, request.top_p, request.top_k, request.presence_penalty) == (0.7, 0.8, 20, 1.5)
  assert removed.as_dict()["not written"]["examples"][0]["reason"] == "the answer was cut short at 2048 tokens"


def test_translation(tmp_path):
  file = tmp_path / "pairs.jsonl"
  records = [{"en": f"Good day {i}", "fr": f"Bonjour {i}"} for i in range(40)]
  records += [{"id": "s", "sw": "Habari {x}", "de": "Guten Tag {x}"}]
  file.write_text("".join(json.dumps(record) + "\n" for record in records))
  tasks = translation_tasks(read_pairs(file), seed=0)
  assert len(tasks) == 82 and tasks == translation_tasks(read_pairs(file), seed=0) != translation_tasks(
    read_pairs(file), 1
  )
  assert len({task.id for task in tasks}) == 82 and {task.category for task in tasks} == {"multilingual"}
  ways = {"en": set(), "fr": set()}
  for i in range(40):
    to_french, to_english = tasks[2 * i], tasks[2 * i + 1]
    (there,), (back,) = to_french.turns, to_english.turns
    assert there.response == f"Bonjour {i}" and back.response == f"Good day {i}"
    assert f"Good day {i}" in there.prompt and f"Bonjour {i}" in back.prompt
    assert "French" in there.prompt and "anglais" in back.prompt and "English" not in back.prompt
    ways["en"].add(there.prompt.replace(f"Good day {i}", ""))
    ways["fr"].add(back.prompt.replace(f"Bonjour {i}", ""))
  assert len(ways["en"]) == len(ENGLISH) and len(ways["fr"]) == len(NATIVE["fr"].instructions)
  swahili, german = tasks[-2:]
  assert "German" in swahili.turns[0].prompt and "Habari {x}" in swahili.turns[0].prompt
  assert "Swahili" in german.turns[0].prompt  # German instructions do not know its name
  for language in NATIVE.values():
    assert len(language.names) == 11 and all("{target}" in way and "{text}" in way for way in language.instructions)


@pytest.mark.parametrize(
  "record, message",
  [
    ({"en": "a", "fre": "b"}, "fre: expected the ISO 639 code of a language. Did you mean 'fr'"),
    ({"en": "a"}, "two languages, found en"),
    ({"en": "a", "fr": "b", "de": "c"}, "two languages, found en, fr, de"),
    ({"en": "a", "fr": " "}, "fr: an empty text"),
    ({"en": "a", "fr": 3}, "fr: expected str, found int"),
  ],
)
def test_malformed_pairs(tmp_path, record, message):
  file = tmp_path / "pairs.jsonl"
  file.write_text(json.dumps(record) + "\n")
  with pytest.raises(ValueError, match=f"pairs.jsonl, line 1: .*{message}"):
    read_pairs(file)
