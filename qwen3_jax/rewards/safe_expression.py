"""Whether a text is a plain formula, before SymPy's `parse_expr` evaluates it as Python."""

from __future__ import annotations

import ast
from collections.abc import Collection

from qwen3_jax.rewards.options import shorten

FUNCTIONS = frozenset("sin cos tan sec csc cot asin acos atan sinh cosh tanh exp log ln sqrt Abs".split())
CONSTANTS = frozenset({"pi", "E", "C"})
_MAX_CHARACTERS = 1000
_MAX_DIGITS = 30
_MAX_EXPONENT = 100
_NODES = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd, ast.Load, ast.BinOp, ast.UnaryOp)


def safe_expression(text: str, variables: Collection[str]) -> str:
  """The text with ^ as **: numbers, `variables`, constants, functions of one argument and + - * / **, nothing else.

  Raises ValueError for all other text, which `parse_expr` could run as code, for long numbers, exponents beyond 100 and
  powers in exponents.
  """
  text = " ".join(text.split()).replace("^", "**").replace("\N{MINUS SIGN}", "-")
  if len(text) > _MAX_CHARACTERS:
    raise ValueError(f"a formula of {len(text)} characters, more than {_MAX_CHARACTERS}")
  try:
    tree = ast.parse(text, mode="eval").body
    _check(tree, frozenset(variables) | CONSTANTS)
  except (SyntaxError, RecursionError, MemoryError):
    raise ValueError(f"{shorten(text)} is no formula") from None
  return text


def _check(node: ast.AST, names: frozenset[str]) -> None:
  match node:
    case ast.Constant(value=int() | float() as number) if type(number) is not bool:
      if len(str(number)) > _MAX_DIGITS:
        raise ValueError(f"a number of more than {_MAX_DIGITS} digits")
    case ast.Name(id=name):
      if name not in names:
        raise ValueError(f"unknown name {shorten(name)} in a formula")
    case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]):
      if name not in FUNCTIONS:
        raise ValueError(f"unknown function {shorten(name)} in a formula")
      _check(argument, names)
    case ast.BinOp(left=left, op=ast.Pow(), right=right):
      if any(isinstance(part, ast.Pow) for part in ast.walk(right)):
        raise ValueError("a power of powers")
      for part in ast.walk(right):
        if isinstance(part, ast.Constant) and not (isinstance(part.value, int | float) and part.value <= _MAX_EXPONENT):
          raise ValueError(f"an exponent beyond {_MAX_EXPONENT}")
      _check(left, names)
      _check(right, names)
    case ast.BinOp() | ast.UnaryOp():
      for child in ast.iter_child_nodes(node):
        _check(child, names)
    case _ if not isinstance(node, _NODES):
      raise ValueError(f"{type(node).__name__} in a formula")
