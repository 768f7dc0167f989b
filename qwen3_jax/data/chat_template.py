"""The chat template: a conversation as one text, in ChatML."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

FILE_NAME = "chat_template.jinja"
MAX_CHARACTERS = 1 << 26  # of a rendered conversation

# Behaves as the template of the released Qwen3 checkpoints (QWEN3, section 4.3 and Table 9), text for text.
QWEN3_TEMPLATE = r"""
{#- The first turn: the system message, the tools, or both. -#}
{%- set first = messages[0] %}
{%- set system = first.content or '' %}
{%- if tools %}
  {{- '<|im_start|>system\n' }}
  {{- system + '\n\n' if first.role == 'system' else '' }}
  {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' }}
  {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n' }}
  {%- for tool in tools %}
    {{- tool | tojson }}
    {{- '\n' }}
  {%- endfor %}
  {{- '</tools>\n\nFor each function call, return a json object with function name and arguments ' }}
  {{- 'within <tool_call></tool_call> XML tags:\n<tool_call>\n' }}
  {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' }}
{%- elif first.role == 'system' %}
  {{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}

{#- Thinking is kept only after the user's last question. A user turn that is one tool response asks nothing. -#}
{%- set question = namespace(last=messages | length - 1) %}
{%- for message in messages %}
  {%- set text = message.content %}
  {%- if message.role == 'user' and text is string %}
    {%- if not (text.startswith('<tool_response>') and text.endswith('</tool_response>')) %}
      {%- set question.last = loop.index0 %}
    {%- endif %}
  {%- endif %}
{%- endfor %}

{%- for message in messages %}
  {%- set text = message.content or '' %}
  {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
    {{- '<|im_start|>' + message.role + '\n' + text + '<|im_end|>\n' }}

  {%- elif message.role == 'assistant' %}
    {%- set thinking = '' %}
    {%- if message.reasoning_content is string %}
      {%- set thinking = message.reasoning_content %}
    {%- elif '</think>' in text %}
      {%- set parts = text.split('</think>') %}
      {%- set thinking = parts[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
      {%- set text = parts[-1].lstrip('\n') %}
    {%- endif %}
    {{- '<|im_start|>assistant\n' }}
    {%- if loop.index0 > question.last and (loop.last or thinking) %}
      {{- '<think>\n' + thinking.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') }}
    {%- else %}
      {{- text }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
      {%- set call = call.function or call %}
      {{- '\n' if text or not loop.first else '' }}
      {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
      {{- call.arguments if call.arguments is string else call.arguments | tojson }}
      {{- '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}

  {%- elif message.role == 'tool' %}
    {#- Results that follow one another share a user turn. -#}
    {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' }}
    {{- '\n<tool_response>\n' + text + '\n</tool_response>' }}
    {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' else '' }}
  {%- endif %}
{%- endfor %}

{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}
  {{- '<think>\n\n</think>\n\n' if enable_thinking is false else '' }}
{%- endif %}
""".strip()

_ROLES = ("system", "user", "assistant", "tool")


def render(
  messages: Sequence[Mapping[str, Any]],
  tools: Sequence[Mapping[str, Any]] | None = None,
  enable_thinking: bool = True,
  add_generation_prompt: bool = True,
  template: str | None = None,
  variables: Mapping[str, Any] | None = None,
) -> str:
  """The conversation as one text.

  A message is {"role": "system" | "user" | "assistant" | "tool", "content": str or None}; an assistant's may also hold
  "reasoning_content" (else thinking is read from <think>...</think> in the content) and "tool_calls"
  ({"name", "arguments"}, alone or under "function"; arguments as an object or as JSON text).
  `tools` are JSON schemas. `enable_thinking=False` opens the answer after an empty think block.

  `template` is a checkpoint's own Jinja source (None: Qwen3's), `variables` are more names it may use. It runs in a
  sandbox on plain JSON values: it cannot reach Python objects, files or attributes that start with an underscore. Its
  output is limited to MAX_CHARACTERS; its running time and its memory on the way are not limited, so a template from
  an unknown source belongs in a process that can be stopped.

  Raises ValueError for malformed messages and for a template that fails.
  """
  variables = {key: _plain(value, key) for key, value in (variables or {}).items()}
  conversation = check_messages(messages)
  if template is None or template == QWEN3_TEMPLATE:
    _check_roles(conversation)
  try:
    blocks = _compile(QWEN3_TEMPLATE if template is None else template).generate(
      **variables,
      messages=conversation,
      tools=_plain(tools, "tools") or None,
      enable_thinking=enable_thinking,
      add_generation_prompt=add_generation_prompt,
    )
    text, size = [], 0
    for block in blocks:
      size += len(block)
      if size > MAX_CHARACTERS:
        raise ValueError(f"the chat template wrote more than {MAX_CHARACTERS} characters")
      text.append(block)
  except SecurityError as error:
    raise ValueError(f"the chat template was stopped by the sandbox: {error}") from None
  except (jinja2.TemplateError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
    raise ValueError(f"the chat template failed: {error}") from error
  return "".join(text)


def choose(templates: str | Sequence[Mapping[str, str]] | None, with_tools: bool) -> str | None:
  """The template to use of what tokenizer_config.json holds: one, or named ones ("tool_use" serves tools).

  None stands for Qwen3's. Raises ValueError when there is none to use.
  """
  if templates is None or isinstance(templates, str):
    return templates
  try:
    named = {entry["name"]: entry["template"] for entry in templates}
  except (TypeError, KeyError):
    raise ValueError("chat_template: expected a string or a list of {name, template}") from None
  if with_tools and "tool_use" in named:
    return named["tool_use"]
  if "default" not in named:
    raise ValueError(f"chat_template: no template is named 'default', only {', '.join(named) or 'none'}")
  return named["default"]


def check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """The messages as plain data; ValueError names what is malformed."""
  if isinstance(messages, (str, Mapping)) or not messages:
    raise ValueError(f"messages: expected a non-empty list of messages, found {messages!r:.80}")
  plain = []
  for i, message in enumerate(messages):
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
      raise ValueError(f"messages[{i}]: expected an object with a role and content, found {message!r:.80}")
    if not isinstance(message.get("content"), str | None):
      raise ValueError(f"messages[{i}].content: expected text, found {type(message['content']).__name__}")
    plain.append(_plain(message, f"messages[{i}]"))
  return plain


def _check_roles(messages: Sequence[Mapping[str, Any]]) -> None:
  """Qwen3's template would leave out a turn of an unknown role."""
  for i, message in enumerate(messages):
    if message["role"] not in _ROLES:
      raise ValueError(f"messages[{i}].role is {message['role']!r}, expected one of {', '.join(_ROLES)}")


def _plain(value: Any, where: str) -> Any:
  """A copy made of JSON types alone, so that a template finds no object with methods that do something."""
  if value is None or type(value) in (str, int, float, bool):
    return value
  if isinstance(value, Mapping):
    return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
  raise ValueError(f"{where}: expected JSON values, found {type(value).__name__}")


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` marks what the model wrote; it changes nothing in the text."""

  tags = {"generation"}  # noqa: RUF012

  def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
    next(parser.stream)
    return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> jinja2.Template:
  """The template with the names that Hugging Face templates rely on."""
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = _to_json
  environment.globals["raise_exception"] = _raise_exception
  environment.globals["strftime_now"] = _strftime_now
  return environment.from_string(source)


def _to_json(
  value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
  """Jinja's own filter escapes HTML and non-ASCII characters, which would change the text."""
  return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
  raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
  return datetime.datetime.now().strftime(format)
