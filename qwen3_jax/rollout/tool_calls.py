"""The tool calls that an answer makes, and what is wrong with those that cannot be made."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from qwen3_jax import nearest
from qwen3_jax.rollout.tools_file import Tool, ToolResult

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACE = re.compile(r"\s*")
_LONGEST = 80  # characters of what is quoted
_EXPECTED = 'expected {"name": ..., "arguments": {...}}'


@dataclasses.dataclass(frozen=True)
class ToolCall:
  """A call that fits its tool's schema."""

  name: str
  arguments: dict[str, Any]

  def result(self, tools: Sequence[Tool], seconds: float) -> ToolResult:
    """Of the tool with this name; nothing is raised, and nothing takes longer than the limit."""
    for tool in tools:
      if tool.name == self.name:
        return tool.call(self.arguments, seconds)
    return ToolResult(
      f"Error: no tool is named {self.name!r}{nearest.clause(self.name, [t.name for t in tools])}", True
    )

  def run(self, tools: Sequence[Tool], seconds: float) -> str:
    """The text of `result`."""
    return self.result(tools, seconds).text


@dataclasses.dataclass(frozen=True)
class ToolCallError:
  """A call that cannot be made; the message goes to the model as the call's result."""

  message: str


class Parsed(NamedTuple):
  content: str  # what is outside of the calls, thinking included
  calls: list[ToolCall | ToolCallError]  # in the answer's order


def parse_tool_calls(answer: str, tools: Sequence[Tool | Mapping[str, Any]]) -> Parsed:
  """The calls of an answer, as the template spells them; it may begin with its thinking, whose calls are not meant.

    <tool_call>
    {"name": "search", "arguments": {"query": "weather"}}
    </tool_call>

  Arguments are an object or its JSON text. They are checked against the tool's schema: names, required ones, `type`,
  `enum`, `anyOf`, `items`, `properties`, `additionalProperties`; names that the schema does not have are wrong unless
  it allows more. Nothing is raised: what is malformed is a ToolCallError in its place.
  """
  functions = {function["name"]: function for function in map(_function, tools)}
  position = _thinking_end(answer)
  content = [answer[:position]]
  calls: list[ToolCall | ToolCallError] = []
  while (start := answer.find(_OPEN, position)) >= 0:
    content.append(answer[position:start])
    call, position = _read_call(answer, start + len(_OPEN), functions)
    calls.append(call)
  content.append(answer[position:])
  return Parsed("".join(content).strip(), calls)


def _function(tool: Tool | Mapping[str, Any]) -> Mapping[str, Any]:
  """{name, parameters, ...} of a tool or of its schema."""
  schema = tool.schema if isinstance(tool, Tool) else tool
  return schema.get("function", schema)


def _thinking_end(answer: str) -> int:
  """Where the response begins. Thinking that a prompt opened has no <think>; a call may quote </think>."""
  end = answer.find("</think>")
  if answer.lstrip().startswith("<think>"):
    return len(answer) if end < 0 else end + len("</think>")
  quoted = answer.rfind(_OPEN, 0, max(end, 0)) > answer.rfind(_CLOSE, 0, max(end, 0))
  return 0 if end < 0 or quoted else end + len("</think>")


def _read_call(answer: str, start: int, functions: Mapping[str, Any]) -> tuple[ToolCall | ToolCallError, int]:
  """(the call after the tag that ends at `start`, where its block ends)"""
  start = _skip_space(answer, start)
  try:
    value, position = _DECODER.raw_decode(answer, start)
  except (ValueError, RecursionError) as error:
    end, block_end = _find_end(answer, start)
    unclosed = f", nor is it closed by {_CLOSE}" if block_end == end else ""
    text = _shorten(answer[start:end].strip()) or "nothing"
    return _error(f"the tool call is not valid JSON ({_reason(error, start)}){unclosed}: {text}"), block_end
  position = _skip_space(answer, position)
  if answer.startswith(_CLOSE, position):  # looked for after the JSON, whose strings may hold tags
    return _check_call(value, functions), position + len(_CLOSE)
  end, block_end = _find_end(answer, position)
  found = _shorten(answer[position:end].strip()) or "nothing"
  return _error(f"expected {_CLOSE} after the tool call's JSON, found {found}"), block_end


def _skip_space(text: str, position: int) -> int:
  match = _SPACE.match(text, position)
  return match.end() if match else position


def _find_end(answer: str, position: int) -> tuple[int, int]:
  """(where a block's text ends, where the block ends); the same where the next block or the end comes first."""
  close, following = answer.find(_CLOSE, position), answer.find(_OPEN, position)
  if close >= 0 and not 0 <= following < close:
    return close, close + len(_CLOSE)
  end = following if following >= 0 else len(answer)
  return end, end


def _reason(error: Exception, start: int) -> str:
  if isinstance(error, json.JSONDecodeError):
    return f"{error.msg} at character {error.pos - start}"
  return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _check_call(value: Any, functions: Mapping[str, Any]) -> ToolCall | ToolCallError:
  if not isinstance(value, dict):
    return _error(f"the tool call is {_show(value)}, {_EXPECTED}")
  for key in value:
    if key not in ("name", "arguments"):
      hint = nearest.clause(key, ("name", "arguments"))
      return _error(f"the tool call has the unknown key {_show(key)}, {_EXPECTED}{hint}")
  if "name" not in value:
    return _error(f"the tool call has no name, {_EXPECTED}")
  name, arguments = value["name"], value.get("arguments", {})
  if not isinstance(name, str):
    return _error(f"the tool call's name is {_show(name)}, expected a string")
  if name not in functions:
    known = ", ".join(functions) or "none"
    return _error(f"no tool is named {_show(name)}, expected one of: {known}{nearest.clause(name, functions)}")
  if isinstance(arguments, str):
    try:
      arguments = _DECODER.decode(arguments)
    except (ValueError, RecursionError) as error:
      return _error(f"{name}: the arguments' text is not valid JSON ({_reason(error, 0)}): {_shorten(arguments)}")
  if not isinstance(arguments, dict):
    return _error(f"{name}: arguments is {_show(arguments)}, expected an object")
  problems = _problems(arguments, {"additionalProperties": False, **functions[name].get("parameters", {})}, "")
  if problems:
    return _error(f"{name}: {'; '.join(problems)}")
  return ToolCall(name, arguments)


# JSON schemas


def _problems(value: Any, schema: Any, where: str) -> list[str]:
  """What of a value does not fit a schema; what the schema says beyond `parse_tool_calls`'s list is not checked."""
  if not isinstance(schema, Mapping):
    return []
  for alternatives in (schema.get("anyOf"), schema.get("oneOf")):
    if alternatives:
      found = [_problems(value, alternative, where) for alternative in alternatives]
      if all(found):
        alike = [problems for problems, schema in zip(found, alternatives) if _has_type(value, schema)]
        return alike[0] if len(alike) == 1 else [_unexpected(value, schema, where)]
  if not _has_type(value, schema) or ("enum" in schema and not any(_same(value, x) for x in schema["enum"])):
    return [_unexpected(value, schema, where)]
  problems = []
  if isinstance(value, list):
    for i, item in enumerate(value):
      problems += _problems(item, schema.get("items"), f"{where}[{i}]")
  if isinstance(value, dict):
    properties = schema.get("properties", {})
    more = schema.get("additionalProperties", True)
    inside = lambda key: f"{where}.{key}" if where else key
    for key in schema.get("required", ()):
      if key not in value:
        problems.append(f"{inside(key)} is missing, expected {_expected(properties.get(key))}")
    for key, item in value.items():
      if key in properties:
        problems += _problems(item, properties[key], inside(key))
      elif more is False:
        known = ", ".join(properties) or "none"
        problems.append(f"{inside(key)} is no parameter, expected one of: {known}{nearest.clause(key, properties)}")
      else:
        problems += _problems(item, more, inside(key))
  return problems


def _has_type(value: Any, schema: Any) -> bool:
  kinds = schema.get("type") if isinstance(schema, Mapping) else None
  if kinds is None or (value is None and schema.get("nullable")):
    return True
  return any(_is(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _is(value: Any, kind: str) -> bool:
  """Whether a JSON value has a type of JSON schemas; true is no number, and 3.0 no integer."""
  if kind in ("integer", "number"):
    return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
  python = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}.get(kind)
  return python is None or isinstance(value, python)


def _same(value: Any, other: Any) -> bool:
  return value == other and isinstance(value, bool) == isinstance(other, bool)


def _unexpected(value: Any, schema: Mapping[str, Any], where: str) -> str:
  text = f"{where or 'arguments'} is {_show(value)}, expected {_expected(schema)}"
  names = [x for x in schema.get("enum", ()) if isinstance(x, str)]
  return text + (nearest.clause(value, names) if isinstance(value, str) else "")


def _expected(schema: Any) -> str:
  """What a schema admits, in words."""
  if not isinstance(schema, Mapping):
    return "a value"
  if "enum" in schema:
    return "one of " + ", ".join(map(_show, schema["enum"]))
  alternatives = schema.get("anyOf") or schema.get("oneOf")
  if alternatives:
    return " or ".join(map(_expected, alternatives))
  kinds = schema.get("type", "a value")
  return kinds if isinstance(kinds, str) else " or ".join(kinds)


# JSON


def _error(message: str) -> ToolCallError:
  return ToolCallError(f"Error: {message}")


def _show(value: Any) -> str:
  return _shorten(json.dumps(value, ensure_ascii=False))


def _shorten(text: str) -> str:
  return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    twice = next(key for i, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:i]))
    raise ValueError(f"the key {_show(twice)} is given twice")
  return found


def _number(text: str) -> float:
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f"{_shorten(text)} is no number of JSON")
  return value


# Python's decoder would take NaN, and the last of several equal keys.
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_number)
