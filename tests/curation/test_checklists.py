"""Checklists that a model writes and marks, replies that are none, and samples that are dropped for them."""

import json
import re

import pytest

from qwen3_jax.curation.ask import CurationError
from qwen3_jax.curation.checklists import Answered, mark
from qwen3_jax.language_models.disk_cache import DiskCache
from qwen3_jax.language_models.endpoint import Endpoint, Retries
from qwen3_jax.language_models.language_model import Reply
from tests.language_models.chat_server import Answer, ChatServer, chat

CRITERIA = ["Does it name a colour?", "Is it one word?", "Is it in lower case?", "Does it end without a full stop?"]
CHECKS = [  # what each criterion means
  lambda answer: any(colour in answer.lower() for colour in ("red", "blue")),
  lambda answer: len(answer.split()) == 1,
  str.islower,
  lambda answer: not answer.endswith("."),
]


class Judge:
  """Marks answers by `CHECKS`; `spoil` maps (step, how often it was asked this) to another reply."""

  name = "judge"

  def __init__(self, spoil=lambda step, text, times: None):
    self.spoil = spoil
    self.requests = []

  def answer(self, requests, on_progress=lambda done, total: None):
    return [[self.reply(request)] for request in requests]

  def reply(self, request):
    text = request.messages[0]["content"]
    times = sum(one.messages[0]["content"] == text for one in self.requests)
    self.requests.append(request)
    step = "marks" if "<<<ANSWER" in text else "checklist"
    said = self.spoil(step, text, times)
    if said is None and step == "checklist":
      said = json.dumps(CRITERIA)
    elif said is None:
      answer = re.search(r"<<<ANSWER\n(.*)\nANSWER>>>", text, re.DOTALL)[1]
      asked = [text.index(f"{i}. {criterion}") for i, criterion in enumerate(CRITERIA, 1)]
      assert asked == sorted(asked)
      said = json.dumps([check(answer) for check in CHECKS])
    return said if isinstance(said, Reply) else Reply(said, "", "stop", 1, 1)


QUERY = "Name a colour, in lower case, in one word."
ANSWERS = {"red": 4, "Red": 3, "a red flower": 3, "A red flower.": 1, "Tree.": 1}


def test_marks():
  judge = Judge()
  marked = mark([Answered(QUERY, answer) for answer in ANSWERS], judge, seed=0)
  assert [sum(one.passed) for one in marked] == list(ANSWERS.values())
  assert all(one.criteria == tuple(CRITERIA) and not one.problem for one in marked)
  assert [bool(one.fault(0.75)) for one in marked] == [False, False, False, True, True]
  assert [bool(one.fault(1.0)) for one in marked] == [False, True, True, True, True]
  assert marked[3].fault(0.75) == "1 of 4 criteria are met, not e.g. 'Is it one word?'"
  assert len(judge.requests) == 1 + len(ANSWERS)  # equal queries share a checklist
  assert not any(request.enable_thinking or request.seed is None for request in judge.requests)
  assert QUERY in judge.requests[0].messages[0]["content"]
  assert mark([], judge, seed=0) == []


@pytest.mark.parametrize(
  "malformed",
  [
    "I would rather not.", '["a", "b"', "[]", '["a", 3]', '["a", " "]', '["a", "a"]', '{"a": 1}',
    json.dumps([f"criterion {i}" for i in range(13)]),
  ],
)  # fmt: skip
def test_a_malformed_checklist_is_asked_for_again(malformed):
  judge = Judge(lambda step, text, times: malformed if step == "checklist" and times < 2 else None)
  (marked,) = mark([Answered(QUERY, "red")], judge, seed=0)
  assert marked.passed == (True,) * 4
  assert len({request.seed for request in judge.requests[:3]}) == 3  # another seed each time
  judge = Judge(lambda step, text, times: malformed if step == "checklist" else None)
  (marked,) = mark([Answered(QUERY, "red")], judge, seed=0, attempts=2)
  assert marked.problem.startswith("no checklist: expected") and marked.problem.endswith("after 2 replies")
  assert marked.fault(0.0) == marked.problem and marked.share == 0 and len(judge.requests) == 2


@pytest.mark.parametrize(
  "malformed", ["true, false", "[true, true, true]", "[1, 1, 1, 1]", '["true", true, true, true]']
)
def test_malformed_marks_are_asked_for_again(malformed):
  judge = Judge(lambda step, text, times: malformed if step == "marks" and times < 1 else None)
  assert mark([Answered(QUERY, "red")], judge, seed=0)[0].passed == (True,) * 4
  judge = Judge(lambda step, text, times: malformed if step == "marks" and "red" in text else None)
  bad, good = mark([Answered(QUERY, "red"), Answered(QUERY, "blue")], judge, seed=0)
  assert bad.problem.startswith("no marks: ") and not good.problem  # others are not affected
  assert len(judge.requests) == 1 + 3 + 1


@pytest.mark.parametrize("around", ["```json\n{}\n```", "Here it is:\n{}\nGood luck!", " {} "])
def test_lists_in_other_words(around):
  judge = Judge(lambda step, text, times: around.format(json.dumps(CRITERIA)) if step == "checklist" else None)
  assert mark([Answered(QUERY, "red")], judge, seed=0)[0].criteria == tuple(CRITERIA)


def test_a_model_that_fails():
  failed = Reply("", "", "error", 0, 0, "no such model")
  judge = Judge(lambda step, text, times: failed if step == "marks" and "red" in text else None)
  answers = [Answered(QUERY, answer) for answer in ("red", "blue", "Blue", "green")]
  with pytest.raises(CurationError, match=r"marks: 1 of 4 replies of judge failed.*no such model"):
    mark(answers, judge, seed=0, tolerated=0.1)
  marked = mark(answers, judge, seed=0, tolerated=0.3)
  assert [one.problem for one in marked] == ["no marks: the model failed: no such model", "", "", ""]


def test_against_a_server_and_kept_on_disk(tmp_path):
  judge = Judge(lambda step, text, times: "no" if step == "marks" and times == 0 else None)

  def served(body):
    class Request:
      messages = body["messages"]

    return Answer(chat(judge.reply(Request).response))

  answers = [Answered(QUERY, answer) for answer in ANSWERS]
  with ChatServer(served) as server:
    endpoint = Endpoint(server.url, "judge", concurrency=1, retries=Retries(attempts=1))
    marked = mark(answers, DiskCache(endpoint, tmp_path / "replies.sqlite"), seed=0)
    assert [sum(one.passed) for one in marked] == list(ANSWERS.values())
    asked = len(server.bodies)
    assert asked == 1 + 2 * len(ANSWERS)
    assert mark(answers, DiskCache(endpoint, tmp_path / "replies.sqlite"), seed=0) == marked
    assert len(server.bodies) == asked  # nothing is asked twice
