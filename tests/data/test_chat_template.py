"""The chat template against texts of the released one, its sandbox, and checkpoints' own templates."""

import json

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen3_jax.data import chat_template
from qwen3_jax.data.chat_template import render

HI = [{"role": "user", "content": "hi"}]


def golden_cases(golden, name):
  cases = json.loads((golden / name).read_text(encoding="utf-8"))
  return [(case.pop("name", ""), case.pop("expected"), case) for case in cases]


@pytest.mark.parametrize("file", ["chat_template_examples.json", "chat_template_cases.json"])
def test_released_texts(golden, file):
  cases = golden_cases(golden, file)
  assert len(cases) >= 6
  for name, expected, arguments in cases:
    assert render(**arguments) == expected, name


def test_our_template_needs_nothing_of_ours(golden):
  """Saved with a checkpoint, it must render the same in another program: here plain Jinja."""
  environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
  template = environment.from_string(chat_template.QWEN3_TEMPLATE)
  for name, expected, arguments in golden_cases(golden, "chat_template_cases.json"):
    arguments.setdefault("add_generation_prompt", True)
    assert template.render(**arguments) == expected, name


def test_same_text_in_transformers(golden):
  utilities = pytest.importorskip("transformers.utils.chat_template_utils")
  for name, expected, arguments in golden_cases(golden, "chat_template_cases.json"):
    arguments.setdefault("add_generation_prompt", True)
    messages = [arguments.pop("messages")]
    texts, _ = utilities.render_jinja_template(messages, chat_template=chat_template.QWEN3_TEMPLATE, **arguments)
    assert texts == [expected], name


def test_checkpoint_templates():
  assert render(HI, template="{{ messages[0].content | tojson }}{{ bos_token }}", variables={"bos_token": "<s>"}) == (
    '"hi"<s>'
  )
  unicode = [{"role": "user", "content": "<b> é"}]
  assert render(unicode, template="{{ messages | tojson(indent=1) }}") == json.dumps(
    unicode, ensure_ascii=False, indent=1
  )
  blocks = (
    "{% for m in messages %}\n  {% if m.role == 'tool' %}{% continue %}{% endif %}\n{{ m.content }}\n{% endfor %}"
  )
  assert render([*HI, {"role": "tool", "content": "x"}], template=blocks) == "hi\n"
  assert render(HI, template="a{% generation %}b{% endgeneration %}c") == "abc"
  assert len(render(HI, template="{{ strftime_now('%Y') }}")) == 4
  assert render([{"role": "developer", "content": "x"}], template="{{ messages[0].role }}") == "developer"


def test_choice_among_named_templates():
  named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
  assert chat_template.choose(None, True) is None
  assert chat_template.choose("x", True) == "x"
  assert [chat_template.choose(named, tools) for tools in (False, True)] == ["d", "t"]
  assert chat_template.choose(named[:1], True) == "d"
  with pytest.raises(ValueError, match="no template is named 'default', only tool_use"):
    chat_template.choose(named[1:], False)
  with pytest.raises(ValueError, match="expected a string or a list"):
    chat_template.choose([1], False)


@pytest.mark.parametrize(
  "source",
  [
    "{{ ().__class__.__bases__ }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ ''['__class__']['__mro__'] }}",
    "{{ ('' | attr('__class__')).__mro__ }}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__['datetime'] }}",
    "{{ lipsum.__globals__['os'] }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{% include '/etc/hostname' %}",
    "{% import 'os' as os %}",
    "{{ range(10000000) | list }}",
  ],
)
def test_sandbox(source):
  try:
    text = render(HI, template=source)
  except ValueError:
    return
  assert text == "", text  # an attribute that the sandbox hides prints nothing


def test_template_errors_are_one_line():
  for source, message in {
    "{{ raise_exception('roles must alternate') }}": "roles must alternate",
    "{% if %}": "chat template failed",
    "{{ missing.attribute }}": "missing",
    "{{ 1 / 0 }}": "division",
    "{{ messages[0].content + 1 }}": "chat template failed",
    "{{ ().__class__.__bases__ }}": "sandbox",
  }.items():
    with pytest.raises(ValueError, match=message):
      render(HI, template=source)


def test_size_limit(monkeypatch):
  monkeypatch.setattr(chat_template, "MAX_CHARACTERS", 1000)
  assert len(render(HI, template="{% for i in range(1000) %}x{% endfor %}")) == 1000
  with pytest.raises(ValueError, match="more than 1000 characters"):
    render(HI, template="{% for i in range(1001) %}x{% endfor %}")


def test_templates_see_plain_data_only():
  class Text(str):
    def read(self):
      return "secret"

  with pytest.raises(ValueError, match=r"messages\[0\]\.content: expected JSON values, found Text"):
    render([{"role": "user", "content": Text("x")}], template="{{ messages[0].content.read() }}")
  with pytest.raises(ValueError, match=r"tools\[0\]: expected JSON values, found function"):
    render(HI, tools=[lambda: None])
  messages = [{"role": "user", "content": "hi", "list": [1]}]
  render(messages, template="{% set x = messages[0] %}{{ x.content }}")
  assert messages == [{"role": "user", "content": "hi", "list": [1]}]


@pytest.mark.parametrize(
  ("messages", "message"),
  [
    ([], "non-empty list"),
    ("hi", "non-empty list"),
    ({"role": "user", "content": "hi"}, "non-empty list"),
    (["hi"], r"messages\[0\]: expected an object"),
    ([{"content": "hi"}], r"messages\[0\]: expected an object"),
    ([*HI, {"role": "usr", "content": "hi"}], r"messages\[1\]\.role is 'usr', expected one of system, user"),
    ([{"role": "user", "content": ["hi"]}], r"messages\[0\]\.content: expected text, found list"),
    ([{"role": "user", "content": 3}], r"messages\[0\]\.content: expected text, found int"),
    ([{"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}], "chat template failed"),
  ],
)
def test_malformed_messages(messages, message):
  with pytest.raises(ValueError, match=message):
    render(messages)
