"""Tool calls in answers, their errors, and tools from files of Python."""

import json
import re
import textwrap
import time
from typing import Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_jax.data.chat_template import render
from qwen3_jax.rollout.tool_calls import ToolCall, ToolCallError, parse_tool_calls
from qwen3_jax.rollout.tools_file import Tool, load_tools


def search(query: str, limit: int = 3, kind: Literal["web", "news"] = "web", tags: list[str] | None = None) -> list:
  """Searches.

  Everything, everywhere.

  Args:
    query: what to
      look for
    limit (int, optional): at most: so many

  Returns:
    What it found.
  """
  return [query, limit, kind, tags]


def forget() -> None:
  """Forgets."""


TOOLS = [Tool.of(search), Tool.of(forget)]
RAW = {
  "name": "put",
  "parameters": {"properties": {"at": {"properties": {"x": {"type": "number"}}, "required": ["x"]}}},
}


def block(text: str) -> str:
  return f"<tool_call>\n{text}\n</tool_call>"


def call(name: str, arguments: Any) -> str:
  return block(json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False))


FINE = call("forget", {})


def test_calls():
  text = f"First.\n{call('search', {'query': 'é', 'limit': 2})}\n{call('search', json.dumps({'query': 'b'}))}\n{FINE}"
  content, calls = parse_tool_calls(text, TOOLS)
  assert content == "First."
  assert calls == [
    ToolCall("search", {"query": "é", "limit": 2}),
    ToolCall("search", {"query": "b"}),
    ToolCall("forget", {}),
  ]
  assert [c.run(TOOLS, 5) for c in calls] == ['["é", 2, "web", null]', '["b", 3, "web", null]', "null"]
  assert parse_tool_calls(block('{"name": "forget"}'), [tool.schema for tool in TOOLS]).calls == [
    ToolCall("forget", {})
  ]
  assert parse_tool_calls("No calls, only {}.", TOOLS) == ("No calls, only {}.", [])
  assert parse_tool_calls("", TOOLS) == ("", [])


def test_calls_that_the_template_wrote():
  """What a template writes for a message's tool_calls is read back."""
  calls = [
    {"name": "search", "arguments": {"query": '</tool_call> "\n', "tags": ["a", "\u2028"]}},
    {"name": "forget", "arguments": {}},
  ]
  text = render([{"role": "assistant", "content": "Well.", "tool_calls": calls}], add_generation_prompt=False)
  parsed = parse_tool_calls(text.removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n"), TOOLS).calls
  assert [{"name": c.name, "arguments": c.arguments} for c in parsed] == calls


@pytest.mark.parametrize(
  ("text", "names"),
  [
    (f"<think>\nI call {FINE}\n</think>\n\n{call('search', {'query': 'a'})}", ["search"]),
    (f"I call {FINE}\n</think>\n\n{call('search', {'query': 'a'})}", ["search"]),
    (f"\n<think>\nI call {FINE}", []),
    (call("search", {"query": "</think>"}), ["search"]),
    (f"<think>\n</think>\n\n{call('search', {'query': '<think></think>'})}", ["search"]),
  ],
)
def test_thinking_calls_nothing(text, names):
  assert [call.name for call in parse_tool_calls(text, TOOLS).calls] == names


@pytest.mark.parametrize(
  ("text", "message"),
  [
    (
      block('{"name": "forget"'),
      r"not valid JSON \(Expecting ',' delimiter at character \d+\): {\"name\": \"forget\"$",
    ),
    (block(""), r"not valid JSON \(Expecting value at character 0\): nothing"),
    (block('{"name": "forget", "name": "search"}'), r'the key "name" is given twice'),
    (block('{"name": "search", "arguments": {"query": NaN}}'), "NaN is no number of JSON"),
    (block('{"name": "search", "arguments": {"limit": 1e999}}'), "1e999 is no number"),
    (block("[" * 100_000), "nested too deeply"),
    (block('{"name": ' + "1" * 5000 + "}"), "not valid JSON"),
    (block('["forget"]'), r'the tool call is \["forget"\], expected \{"name": ...'),
    (block('{"arguments": {}}'), "has no name"),
    (block('{"name": 3, "arguments": {}}'), "name is 3, expected a string"),
    (block('{"name": "forget", "argument": {}}'), "unknown key \"argument\".*did you mean 'arguments'"),
    (call("serch", {}), "no tool is named \"serch\", expected one of: search, forget, put; did you mean 'search'"),
    (call("search", "{"), r"search: the arguments' text is not valid JSON \(Expecting"),
    (call("search", "[]"), r"search: arguments is \[\], expected an object"),
    (call("search", None), "search: arguments is null"),
    (call("search", {}), "search: query is missing, expected string"),
    (call("search", {"query": 1}), "search: query is 1, expected string"),
    (call("search", {"query": "a", "limit": True}), "limit is true, expected integer"),
    (call("search", {"query": "a", "limit": 2.5}), "limit is 2.5, expected integer"),
    (call("search", {"query": "a", "kind": "wed"}), 'kind is "wed", expected one of "web", "news"; did .* \'web\''),
    (call("search", {"query": "a", "tags": ["a", 2]}), r"tags\[1\] is 2, expected string"),
    (call("search", {"query": "a", "tags": "b"}), r'tags is "b", expected array or null'),
    (call("search", {"qery": "a", "limit": "x"}), r"query is missing.*; qery is no parameter.*'query'\?; limit is"),
    (call("put", {"at": {"x": "1"}}), 'put: at.x is "1", expected number'),
    (call("put", {"at": {}}), "put: at.x is missing, expected number"),
    ('<tool_call>\n{"name": "forget"}', r"expected </tool_call> after the tool call's JSON, found nothing"),
    (block('{"name": "forget"} and'), "expected </tool_call> after the tool call's JSON, found and"),
    ('<tool_call>\n{"name": "for', "not valid JSON .* nor is it closed by </tool_call>: "),
    (call("search", {"query": 10**200}), r"query is 1000+\.\.\., expected string$"),
  ],
)
def test_errors(text, message):
  """The call in its place is an error; those around it are not."""
  parsed = parse_tool_calls(FINE + text + FINE, [*TOOLS, RAW])
  first, error, last = parsed.calls
  assert first == last == ToolCall("forget", {})
  assert isinstance(error, ToolCallError) and error.message.startswith("Error: ")
  assert re.search(message, error.message), error.message
  assert len(error.message) < 400
  assert parsed.content == ""


def test_nothing_is_raised():
  pieces = [
    "<tool_call>",
    "</tool_call>",
    "\n",
    '{"name": "search"',
    ', "arguments": ',
    '{"query": "a"}',
    "}",
    "]",
    "\\",
  ]
  pieces += ["<think>", "</think>", '"', "{", "[", "1", "x", "\ud800", "é"]

  @settings(max_examples=500, deadline=None)
  @given(st.lists(st.sampled_from(pieces), max_size=14).map("".join))
  def parse(text):
    content, calls = parse_tool_calls(text, TOOLS)
    assert len(calls) <= text.count("<tool_call>")
    assert len(content) <= len(text)
    for found in calls:
      assert isinstance(found, ToolCallError) or (found.name, "query" in found.arguments) == ("search", True)

  parse()


def test_a_call_of_a_tool_that_is_not_there():
  assert ToolCall("forgt", {}).run(TOOLS, 1) == "Error: no tool is named 'forgt'; did you mean 'forget'?"


# Tools from functions


def test_schema():
  assert TOOLS[0].schema == {
    "type": "function",
    "function": {
      "name": "search",
      "description": "Searches.\n\nEverything, everywhere.",
      "parameters": {
        "type": "object",
        "properties": {
          "query": {"type": "string", "description": "what to look for"},
          "limit": {"type": "integer", "description": "at most: so many"},
          "kind": {"type": "string", "enum": ["web", "news"]},
          "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
        },
        "required": ["query"],
      },
    },
  }
  assert TOOLS[1].schema["function"]["parameters"] == {"type": "object", "properties": {}, "required": []}
  assert json.dumps(TOOLS[0].schema) in render([{"role": "user", "content": "hi"}], [TOOLS[0].schema])


@pytest.mark.parametrize(
  ("hint", "schema", "fitting", "others"),
  [
    (str, {"type": "string"}, ["a"], [1, None]),
    (float, {"type": "number"}, [1, 1.5], [True, "1"]),
    (bool, {"type": "boolean"}, [True], [1]),
    (None, {"type": "null"}, [None], [0]),
    (list, {"type": "array"}, [[], [1, "a"]], [{}]),
    (list[list[int]], {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}, [[[1]]], [[1]]),
    (dict, {"type": "object"}, [{"a": 1}], [[]]),
    (dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}, [{"a": 1}], [{"a": "b"}]),
    (Optional[int], {"type": ["integer", "null"]}, [1, None], ["a", 1.5]),  # noqa: UP045
    (int | str | None, {"type": ["integer", "string", "null"]}, [1, "a", None], [1.5]),
    (int | list[int], {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}}]}, [1], ["a"]),
    (Literal["a", 1, None], {"type": ["string", "integer", "null"], "enum": ["a", 1, None]}, ["a", 1, None], [True]),
    (Literal[True], {"type": "boolean", "enum": [True]}, [True], [False, 1]),
  ],
)
def test_types(hint, schema, fitting, others):
  def f(x):
    """Does."""

  f.__annotations__ = {"x": hint}
  tool = Tool.of(f)
  assert tool.schema["function"]["parameters"]["properties"]["x"] == schema
  for values, kind in ((fitting, ToolCall), (others, ToolCallError)):
    for value in values:
      (found,) = parse_tool_calls(call("f", {"x": value}), [tool]).calls
      assert isinstance(found, kind), (hint, value, found)


FILE = '''
from __future__ import annotations
import dataclasses
from json import dumps
from typing import Optional

Number = int
_calls = []

@dataclasses.dataclass
class Point:
  x: int

def scale(x: Number, by: Optional[float] = None) -> Point:
  """Scales."""
  _calls.append(x)
  return Point(x * by) if by else dumps({"calls": len(_calls)})

def add(a: int, *, b: int) -> int:
  """Adds.

  Arguments:
    a: one
    b: other
  """
  return a + b

def _private(x): ...

again = add
short = lambda x: x
'''


def test_tools_of_a_file(tmp_path):
  file = tmp_path / "tools.py"
  file.write_text(FILE)
  tools = load_tools(file)
  assert [tool.name for tool in tools] == ["scale", "add"]
  scale, add = tools
  assert scale.call({"x": 2}, 5) == ('{"calls": 1}', False)
  assert scale.call({"x": 2, "by": 1.5}, 5) == ("Point(x=3.0)", False)
  assert add.call({"a": 1, "b": 2}, 5) == ("3", False)
  assert add.schema["function"]["parameters"]["properties"]["b"] == {"type": "integer", "description": "other"}
  assert load_tools(file)[0].call({"x": 2}, 5).text == '{"calls": 1}'  # read anew


@pytest.mark.parametrize(
  ("source", "message"),
  [
    ("def f(x):\n  'Does.'", r"tool f, parameter 'x': expected a type hint, found none"),
    ("def f(x: int): ...", "tool f: expected a docstring"),
    ("def f(x: bytes):\n  'Does.'", "tool f, parameter 'x': the type bytes has no JSON schema, expected str"),
    ("def f(x: list[tuple[int]]):\n  'Does.'", r"parameter 'x': the type tuple\[int\] has no"),
    ("def f(x: dict[int, str]):\n  'Does.'", r"parameter 'x': the type dict\[int, str\] has no"),
    ("from typing import Any\ndef f(x: Any):\n  'Does.'", r"parameter 'x': the type .*Any has no"),
    ("from typing import Literal\ndef f(x: Literal[b'a']):\n  'Does.'", r"parameter 'x': the type .*Literal\[b'a'\]"),
    ("def f(x: 'Missing'):\n  'Does.'", "tool f: its type hints cannot be read: NameError"),
    ("def f(*x: int):\n  'Does.'", "tool f, parameter 'x': .*variadic positional"),
    ("def f(x: int, /):\n  'Does.'", "tool f, parameter 'x': .*positional-only"),
    ("async def f():\n  'Does.'", "tool f: expected a plain function"),
    ("def f(query: str):\n  '''Does.\n\n  Args:\n    qery: x\n  '''", "describes 'qery', .* did you mean 'query'"),
    ("x = 1", "found no public one"),
    ("def f(:", "tools.py failed: SyntaxError"),
    ("import sys\nsys.exit(3)", "tools.py failed: SystemExit: 3"),
    ("1 / 0", "tools.py failed: ZeroDivisionError: division by zero"),
  ],
)
def test_files_that_hold_no_tools(tmp_path, source, message):
  file = tmp_path / "tools.py"
  file.write_text(source)
  with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}.*{message}"):
    load_tools(file)


def test_files_that_are_not_there(tmp_path):
  with pytest.raises(FileNotFoundError):
    load_tools(tmp_path / "tools.py")
  (tmp_path / "tools.txt").write_text(textwrap.dedent(FILE))
  with pytest.raises(ValueError, match=r"whose name ends in \.py"):
    load_tools(tmp_path / "tools.txt")


class Odd(Exception):
  def __str__(self):
    raise RuntimeError


@pytest.mark.parametrize(
  ("error", "text"),
  [
    (ValueError("bad\nvalue"), "Error: f raised ValueError: bad\nvalue"),
    (KeyError(), "Error: f raised KeyError"),
    (SystemExit(2), "Error: f raised SystemExit: 2"),
    (TimeoutError("mine"), "Error: f raised TimeoutError: mine"),
    (Odd(), "Error: f raised Odd"),
  ],
)
def test_calls_that_raise(error, text):
  def f():
    """Raises."""
    raise error

  assert Tool.of(f).call({}, 5) == (text, True)


def test_results_as_text():
  for value, text in (("é", "é"), ({"a": "é"}, '{"a": "é"}'), (b"x", "b'x'"), (1.5, "1.5"), ({1}, "{1}")):

    def f(value=value) -> Any:
      """Gives."""
      return value

    f.__annotations__ = {"value": int}
    assert Tool.of(f).call({}, 5) == (text, False)
    assert Tool.of(f).call({"x": 1}, 5).text.startswith("Error: f raised TypeError")
    assert Tool.of(f, name="g").name == "g"


def test_a_call_that_hangs_is_abandoned():
  def f(seconds: float) -> str:
    """Sleeps."""
    time.sleep(seconds)
    return "done"

  tool = Tool.of(f)
  start = time.monotonic()
  assert tool.call({"seconds": 600.0}, 0.1) == ("Error: f gave no result within 0.1 s and was abandoned", True)
  assert time.monotonic() - start < 60
  assert tool.call({"seconds": 0.0}, 5) == ("done", False)
