"""Tools from a Python file: functions with type hints and docstrings, as JSON schemas, called under a time limit."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
import threading
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union

from qwen3_jax import nearest

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_SECTION = re.compile(r"(Args|Arguments|Returns?|Yields?|Raises|Examples?|Notes?|Warnings?|See also|Todo):\s*", re.I)
_ARGUMENT = re.compile(r"(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
T = TypeVar("T")


class ToolResult(NamedTuple):
  text: str  # what the model is told
  failed: bool  # the call raised or was abandoned


@dataclasses.dataclass(frozen=True)
class Tool:
  """A function that a model may call."""

  name: str
  function: Callable[..., Any]
  schema: dict[str, Any]  # {"type": "function", "function": {name, description, parameters}}: for the chat template

  @classmethod
  def of(cls, function: Callable[..., Any], name: str | None = None) -> Tool:
    """The tool that a function is; its type hints and Google-style docstring say what the model is told.

    A parameter with a default is not required. Hints may be str, int, float, bool, None, list, dict with keys of str,
    Literal, and unions of these. Raises ValueError, with the names of function and parameter, for anything else.
    """
    name = name or function.__name__
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
      raise ValueError(f"tool {name}: expected a plain function, found an asynchronous one or a generator")
    description, arguments = _read_docstring(inspect.getdoc(function) or "")
    if not description:
      raise ValueError(f"tool {name}: expected a docstring that says what it does, found none")
    parameters = _parameters(name, function, arguments)
    schema = {"name": name, "description": description, "parameters": parameters}
    return cls(name, function, {"type": "function", "function": schema})

  def call(self, arguments: Mapping[str, Any], seconds: float) -> ToolResult:
    """What the function returns, as text or JSON; what goes wrong is told, not raised.

    A call that takes longer is abandoned: see `in_background` for what that means.
    """

    def work() -> ToolResult:
      try:
        return ToolResult(_text(self.function(**arguments)), False)
      except BaseException as error:  # SystemExit, too, is no more than a failed call
        return ToolResult(f"Error: {self.name} raised {describe(error)}", True)

    future = in_background(work)
    concurrent.futures.wait([future], seconds)
    if not future.done():
      return ToolResult(f"Error: {self.name} gave no result within {seconds:g} s and was abandoned", True)
    error = future.exception()
    return future.result() if error is None else ToolResult(f"Error: {self.name} did not start: {error}", True)


def load_tools(path: str | os.PathLike[str]) -> list[Tool]:
  """The public functions that a Python file defines, in its order. The file is executed: it must be trusted.

  Raises OSError for a file that cannot be read, ValueError for one that fails or whose functions are no tools.
  """
  path = Path(path)
  path.read_bytes()  # raises what is worth reading
  name = f"tools_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise ValueError(f"{path}: expected a Python file, whose name ends in .py")
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # type hints that are text are looked up there
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    del sys.modules[name]
    raise ValueError(f"{path} failed: {describe(error)}") from error
  own = lambda value: inspect.isfunction(value) and value.__module__ == name and value.__name__ != "<lambda>"
  functions = {value: key for key, value in reversed(vars(module).items()) if own(value) and not key.startswith("_")}
  if not functions:
    raise ValueError(f"{path}: expected functions to use as tools, found no public one")
  try:
    return [Tool.of(function, key) for function, key in reversed(functions.items())]
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error


def in_background(function: Callable[[], T]) -> concurrent.futures.Future[T]:
  """Runs a function in a daemon thread of its own.

  Python cannot end a thread: one that is given up goes on until its function returns or the process ends, which it does
  not hold up. Its result goes nowhere. While it stays inside a C function that keeps the interpreter's lock, such as a
  regular expression that backtracks without end, nothing else runs; tools that may do so belong in processes.
  """
  future: concurrent.futures.Future[T] = concurrent.futures.Future()

  def work() -> None:
    try:
      result = function()
    except BaseException as error:
      future.set_exception(error)
    else:
      future.set_result(result)

  try:
    threading.Thread(target=work, daemon=True).start()
  except RuntimeError as error:  # the system has no more threads
    future.set_exception(error)
  return future


def describe(error: BaseException) -> str:
  """Its type and text, also where the text itself raises."""
  try:
    text = str(error)
  except Exception:
    text = ""
  return type(error).__name__ + (f": {text}" if text else "")


def _text(value: Any) -> str:
  if isinstance(value, str):
    return value
  try:
    return json.dumps(value, ensure_ascii=False)
  except (TypeError, ValueError, RecursionError):
    return str(value)


def _parameters(name: str, function: Callable[..., Any], descriptions: Mapping[str, str]) -> dict[str, Any]:
  """JSON schema of a function's parameters."""
  try:
    hints = typing.get_type_hints(function)
  except Exception as error:
    raise ValueError(f"tool {name}: its type hints cannot be read: {describe(error)}") from error
  signature = inspect.signature(function).parameters
  for described in descriptions:
    if described not in signature:
      raise ValueError(
        f"tool {name}: the docstring describes {described!r}, which is no parameter"
        + nearest.clause(described, signature)
      )
  properties: dict[str, Any] = {}
  required = []
  for key, parameter in signature.items():
    where = f"tool {name}, parameter {key!r}"
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
      raise ValueError(f"{where}: expected one that is given by its name, found {parameter.kind.description}")
    if key not in hints:
      raise ValueError(f"{where}: expected a type hint, found none")
    properties[key] = _schema(hints[key], where)
    if key in descriptions:
      properties[key]["description"] = descriptions[key]
    if parameter.default is parameter.empty:
      required.append(key)
  return {"type": "object", "properties": properties, "required": required}


def _schema(hint: Any, where: str) -> dict[str, Any]:
  """JSON schema of a type hint."""
  if isinstance(hint, type) and hint in _TYPES:
    return {"type": _TYPES[hint]}
  origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
  if origin is list:
    return {"type": "array"} | ({"items": _schema(arguments[0], where)} if arguments else {})
  if origin is dict and (not arguments or arguments[0] is str):
    return {"type": "object"} | ({"additionalProperties": _schema(arguments[1], where)} if arguments else {})
  if origin is Literal and all(type(value) in _TYPES for value in arguments):
    kinds = list(dict.fromkeys(_TYPES[type(value)] for value in arguments))
    return {"type": kinds[0] if len(kinds) == 1 else kinds, "enum": list(arguments)}
  if origin is Union or origin is types.UnionType:
    members = [_schema(argument, where) for argument in arguments]
    if all(set(member) == {"type"} for member in members):
      return {"type": [member["type"] for member in members]}
    return {"anyOf": members}
  shown = hint.__name__ if isinstance(hint, type) and not arguments else str(hint)
  raise ValueError(
    f"{where}: the type {shown} has no JSON schema, expected str, int, float, bool, None, list, dict with keys of str, "
    "Literal, or a union of these"
  )


def _read_docstring(docstring: str) -> tuple[str, dict[str, str]]:
  """(text before the first section, the descriptions under Args) of a Google-style docstring."""
  sections: dict[str, list[str]] = collections.defaultdict(list)
  section = ""
  for line in docstring.splitlines():
    heading = _SECTION.fullmatch(line)
    if heading:
      section = heading.group(1).lower()
    else:
      sections[section].append(line)
  descriptions: dict[str, str] = {}
  name, indent = "", -1
  for line in [*sections["args"], *sections["arguments"]]:
    depth = len(line) - len(line.lstrip())
    match = _ARGUMENT.fullmatch(line.strip())
    if indent < 0 and line.strip():
      indent = depth
    if match and depth <= indent:
      name = match.group(1)
      descriptions[name] = match.group(2)
    elif name and line.strip():
      descriptions[name] = f"{descriptions[name]} {line.strip()}".strip()
  return "\n".join(sections[""]).strip(), descriptions
