"""From a command line to a checked configuration.

`--config=experiments/moe_235b.py:stage=s2,tiny` names a file with `get_config(arg)` and its typed arguments;
`--config.stages.s1.optimizer.peak_lr=3e-4` then sets any one key.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict

from qwen3_jax.config_checks import (
  ConfigError,
  did_you_mean,
  expected_config,
  flatten,
  type_name,
  type_problem,
  validate,
)

# What is beside this package: `experiments/NAME.py` is found from any folder, in a checkout and when installed.
INSTALLED = Path(__file__).parents[1]


def parse_arg(arg: str, **arguments: Any) -> SimpleNamespace:
  """The arguments of an experiment, from `name=value,flag,...`.

  Each keyword gives an argument's default and with it its type: `parse_arg(arg, stage="", tiny=False, layers=4)`.
  A tuple lists the strings allowed, the default first. A bare name sets a bool. Raises ConfigError with all problems.
  """
  values = {name: default[0] if isinstance(default, tuple) else default for name, default in arguments.items()}
  problems = []
  seen = set()
  for item in filter(None, (part.strip() for part in arg.split(","))):
    name, equals, text = item.partition("=")
    if name not in arguments:
      known = ", ".join(arguments) or "none"
      problems.append(f"experiment argument {name!r}: unknown.{did_you_mean(name, arguments)} Known: {known}")
      continue
    if name in seen:
      problems.append(f"experiment argument {name!r}: given twice")
    seen.add(name)
    default = arguments[name]
    if isinstance(default, tuple):
      if text in default:
        values[name] = text
      else:
        problems.append(
          f"experiment argument {name}={text!r}: must be one of {', '.join(default)}.{did_you_mean(text, default)}"
        )
    elif not equals and type(default) is not bool:
      problems.append(f"experiment argument {name!r}: needs a value, {name}=...")
    else:
      try:
        values[name] = _parse_value(text if equals else "true", default)
      except ValueError:
        problems.append(f"experiment argument {name}={text!r}: expected {type_name(default)}")
  if problems:
    raise ConfigError(problems)
  return SimpleNamespace(**values)


def load(path: str, overrides: Sequence[str] = (), *, device_count: int | None = None) -> ConfigDict:
  """The locked and valid configuration of an experiment.

  Args:
    path: a file that has `get_config(arg)`, then optionally `:` and arguments: `experiments/miniature.py:model=moe`.
    overrides: `key=value` with dotted keys; later ones win. Integers may be written 1e9, tuples as in Python.
    device_count: when known, the mesh is checked against it.

  Raises:
    ConfigError: with all problems of the arguments, the overrides and the values.
  """
  file, _, arg = path.partition(":")
  get_config = _import_get_config(file)
  problems: list[str] = []
  try:
    config = get_config(arg)
  except ConfigError as error:
    problems += error.problems
    config = get_config("")  # for what else is wrong
  except (TypeError, ValueError, AttributeError, KeyError) as error:
    raise ConfigError([f"{path}: {str(error).strip() or type(error).__name__}"]) from error
  problems += _apply(config, overrides)
  try:
    validate(config, device_count)
  except ConfigError as error:
    problems += error.problems
  if problems:
    raise ConfigError(problems)
  return config.lock()


def define_config_flag(flag_values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines `--config`; `parse_flags` must then be absl's flags_parser, and `config_from_flags` reads the result."""
  about = "Experiment: FILE.py[:argument,...]; --config.KEY=VALUE then sets any key."
  flags.DEFINE_string("config", None, about, required=True, flag_values=flag_values)
  about = "KEY=VALUE; --config.KEY=VALUE is the usual spelling."
  flags.DEFINE_multi_string("config_override", [], about, flag_values=flag_values)


def parse_flags(argv: Sequence[str]) -> list[str]:
  """For `app.run(main, flags_parser=parse_flags)`: absl knows no flags with dots, so each becomes a config_override."""
  return app.parse_flags_with_usage([re.sub(r"^--?config\.", "--config_override=", argument) for argument in argv])


def config_from_flags() -> ConfigDict:
  """The configuration that the command line names; prints all problems and exits with 1 when it cannot run."""
  try:
    return load(flags.FLAGS.config, flags.FLAGS.config_override)
  except ConfigError as error:
    sys.exit(str(error))


def _import_get_config(file: str) -> Any:
  path = next((found for found in (Path(file), INSTALLED / file) if found.is_file()), None)
  if path is None:
    here = Path(file).parent
    known = [str(found) for found in sorted(here.glob("*.py"))] if here.is_dir() else []
    known += [str(found.relative_to(INSTALLED)) for found in sorted((INSTALLED / "experiments").glob("**/*.py"))]
    raise ConfigError([f"config={file!r}: no such file.{did_you_mean(file, known)}"])
  spec = importlib.util.spec_from_file_location(path.stem, path)
  if spec is None or spec.loader is None:
    raise ConfigError([f"config={file!r}: not a Python file"])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ConfigError([f"config={file!r}: has no get_config(arg)"])
  return module.get_config


def _apply(config: ConfigDict, overrides: Sequence[str]) -> list[str]:
  """Sets what can be set; returns one line for each override that cannot."""
  expected = flatten(expected_config(config))
  problems = []
  for override in overrides:
    key, equals, text = override.partition("=")
    if not equals:
      problems.append(f"--config.{key}: needs a value, --config.{key}=...")
    elif key not in expected:
      inside = [name for name in expected if name.startswith(f"{key}.")]
      if inside:
        problems.append(f"--config.{key}={text}: a group of keys; set one, e.g. {inside[0]}")
      else:
        problems.append(f"--config.{key}={text}: unknown key.{did_you_mean(key, expected)}")
    else:
      try:
        config.update_from_flattened_dict({key: _parse_value(text, expected[key])})
      except ValueError:
        problems.append(f"--config.{key}={text}: expected {type_name(expected[key])}")
  return problems


def _parse_value(text: str, like: Any) -> Any:
  """`text` as a value of the type of `like`; ValueError when it is none."""
  if isinstance(like, str):
    return text
  if isinstance(like, bool):
    if text.lower() not in ("true", "false"):
      raise ValueError(text)
    return text.lower() == "true"
  if isinstance(like, tuple):
    try:
      value: Any = ast.literal_eval(text)
    except (SyntaxError, TypeError) as error:
      raise ValueError(text) from error
    value = _tuples(value)
  elif isinstance(like, int):
    try:
      value = int(text)
    except ValueError:
      number = float(text)
      if not number.is_integer():  # 1e9 and 2.0 are whole numbers, inf and nan are not
        raise
      value = int(number)
  else:
    value = float(text)
  if type_problem("", value, like):
    raise ValueError(text)
  return value


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
