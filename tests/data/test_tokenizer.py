"""Tokenizers of the three formats against each other, against the libraries and against the released ids."""

import base64
import hashlib
import json
import pickle
import unicodedata

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from qwen3_jax.data.tokenizer import Tokenizer
from qwen3_jax.data.tokenizer_backends import QWEN_ADDED_TOKENS

# The pattern as QWEN3.md quotes it, so that the one in the package is checked.
SPLIT = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What tokenizers get wrong: white space, combining marks, joined emoji, digits, markup, private use, NUL, U+2581.
FRAGMENTS = [
  *(
    "a",
    "word ",
    "I'LL",
    "é",
    "e\u0301",
    "\u0338",
    "世界",
    "한국어",
    "\u1112\u1161\u11ab",
    "العربية",
    "हिन्दी",
    "1",
    "23",
    "½",
  ),
  *(
    " ",
    "  ",
    "        ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\xa0",
    "\u3000",
    "!",
    "?!",
    "\U0001f469\u200d\U0001f52c",
    "▁",
    "\0",
    "▅",
  ),
  *("<|im_end|>", "<think>", "</think>", "<tool_call>", "<|", "|>", "<", "\U000f0000", "\ufffd"),
]
TEXTS = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.sampled_from(FRAGMENTS)).map("".join))


@pytest.fixture(scope="session")
def qwen_json(qwen_path, tmp_path_factory):
  """The released vocabulary as tokenizer.json, its merges found from the ranks: another implementation."""
  ranks = {base64.b64decode(line.split()[0]): i for i, line in enumerate(qwen_path.read_bytes().splitlines())}
  # Every byte is spelled as one letter: printable Latin-1 as itself, the others in order from U+0100.
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  letters = {value: chr(value) for value in range(256) if chr(value) in alphabet}
  others = [value for value in range(256) if value not in letters]
  letters.update(zip(others, sorted(letter for letter in alphabet if letter >= "\u0100")))

  def spell(token: bytes) -> str:
    return "".join(letters[value] for value in token)

  def halves(token: bytes) -> tuple[str, str]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
      i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], 1 << 30))
      parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return spell(parts[0]), spell(parts[1])

  vocabulary = {spell(token): rank for token, rank in ranks.items()}
  assert len(vocabulary) == len(ranks)
  merges = [halves(token) for token in ranks if len(token) > 1]
  reference = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
  reference.normalizer = normalizers.NFC()
  split = pre_tokenizers.Split(tokenizers.Regex(SPLIT), "isolated")
  to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  reference.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
  reference.decoder = decoders.ByteLevel()
  special = QWEN_ADDED_TOKENS[:14]
  reference.add_tokens([tokenizers.AddedToken(t, normalized=False, special=t in special) for t in QWEN_ADDED_TOKENS])
  path = tmp_path_factory.mktemp("json") / "tokenizer.json"
  reference.save(str(path))
  return reference, Tokenizer.from_pretrained(path)


def test_released_vocabulary(qwen, qwen_path):
  digest = hashlib.sha256(qwen_path.read_bytes()).hexdigest()
  assert digest == "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186"
  assert qwen.vocab_size == 151_669
  ids = [108386, 3837, 99489, 0, 21927, 220, 151667, 271, 151668]
  text = "你好，世界! Hello <think>\n\n</think>"
  assert qwen.encode(text) == ids
  assert qwen.decode(ids) == text


def test_added_tokens_of_the_released_vocabulary(qwen):
  expected = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|video_pad|>": 151656,
    "<tool_call>": 151657,
    "</tool_call>": 151658,
    "<|fim_prefix|>": 151659,
    "<|file_sep|>": 151664,
    "<tool_response>": 151665,
    "</tool_response>": 151666,
    "<think>": 151667,
    "</think>": 151668,
  }
  assert {name: qwen.special_tokens[name] for name in expected} == expected
  assert sorted(qwen.special_tokens.values()) == list(range(151643, 151669))
  for name, id in qwen.special_tokens.items():
    assert qwen.encode(name) == [id] == [qwen.token_to_id(name)]
    assert qwen.is_special(id) == (id < 151657)
  assert (qwen.eos_id, qwen.pad_id, qwen.im_start_id, qwen.im_end_id) == (151643, 151643, 151644, 151645)
  assert (qwen.think_start_id, qwen.think_end_id) == (151667, 151668)
  assert qwen.token_to_id("Hello") == 9707


def test_skip_special_keeps_tags(qwen, small):
  text = "<|im_start|>a<think>b</think><tool_call>c</tool_call><|fim_pad|><|im_end|>d<|endoftext|>"
  for tokenizer in (qwen, small):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=True) == "a<think>b</think><tool_call>c</tool_call><|fim_pad|>d"
    assert tokenizer.decode(ids) == text


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_formats_agree_on_the_released_vocabulary(qwen, qwen_json, text):
  reference, loaded = qwen_json
  ids = reference.encode(text).ids
  assert qwen.encode(text) == ids
  assert loaded.encode(text) == ids
  assert loaded.encode(text, allow_special=False) == qwen.encode(text, allow_special=False)


def test_every_token_of_the_two_formats_has_the_same_bytes(qwen, qwen_json):
  _, loaded = qwen_json
  assert loaded.vocab_size == qwen.vocab_size
  assert all(loaded.token_bytes(id) == qwen.token_bytes(id) for id in range(qwen.vocab_size))
  assert loaded.special_tokens == qwen.special_tokens
  assert all(loaded.is_special(id) == qwen.is_special(id) for id in loaded.special_tokens.values())


@settings(max_examples=400, deadline=None)
@given(text=TEXTS)
def test_round_trip_of_plain_text(qwen, small, text):
  for tokenizer in (qwen, small):
    ids = tokenizer.encode(text, allow_special=False)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert not set(ids) & set(tokenizer.special_tokens.values())


@settings(max_examples=200, deadline=None)
@given(texts=st.lists(TEXTS, max_size=6), allow_special=st.booleans())
def test_batch_equals_single(qwen, small, texts, allow_special):
  for tokenizer in (qwen, small):
    single = [tokenizer.encode(text, allow_special=allow_special) for text in texts]
    assert tokenizer.encode_batch(iter(texts), allow_special=allow_special) == single


def test_added_tokens_are_cut_before_normalisation(qwen, qwen_json):
  text = "<think>\u0338 e\u0301"  # NFC would join > and the stroke
  assert qwen.encode(text) == qwen_json[0].encode(text).ids
  assert qwen.encode(text)[0] == qwen.think_start_id
  assert qwen.decode(qwen.encode("e\u0301")) == "\u00e9"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_stream_equals_decode(qwen, qwen_json, small, data):
  for tokenizer in (qwen, qwen_json[1], small):
    any_id = st.one_of(
      st.integers(0, 400),
      st.integers(0, tokenizer.vocab_size - 1),
      st.sampled_from([*tokenizer.special_tokens.values()]),
    )
    ids = data.draw(st.one_of(st.lists(any_id), TEXTS.map(tokenizer.encode)))
    skip = data.draw(st.booleans())
    stream = tokenizer.stream(skip_special=skip)
    parts = [stream.push(id) for id in ids]
    assert "".join(parts) + stream.finish() == tokenizer.decode(ids, skip_special=skip)


def test_stream_waits_for_whole_characters(qwen, small):
  for tokenizer in (qwen, small):
    emoji = [tokenizer.token_to_id(c) for c in "ok"] + tokenizer.encode("🫨")
    assert len(emoji) > 3  # several tokens make the character
    stream = tokenizer.stream()
    assert [stream.push(id) for id in emoji] == ["o", "k", *[""] * (len(emoji) - 3), "🫨"]
    assert stream.finish() == ""
    assert [stream.push(id) for id in emoji[:-1]] == ["o", "k", *[""] * (len(emoji) - 3)]
    assert stream.finish() == "\ufffd"
    assert stream.push(emoji[0]) == "o"  # as new


def test_unpaired_surrogates_become_replacement_characters(qwen, small):
  for tokenizer in (qwen, small):
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude00")) == "😀"
    undecodable = b"a\xffb".decode("utf-8", "surrogateescape")
    assert tokenizer.decode(tokenizer.encode(undecodable)) == "a\ufffdb"


def test_invalid_ids_and_texts(qwen, small):
  for tokenizer in (qwen, small):
    for id in (tokenizer.vocab_size, -1, 1 << 40):
      with pytest.raises(ValueError, match=rf"token id {id} .* 0\.\.{tokenizer.vocab_size - 1}"):
        tokenizer.decode([0, id])
      with pytest.raises(ValueError, match="token id"):
        tokenizer.stream().push(id)
    with pytest.raises(ValueError, match="not an integer"):
      tokenizer.decode([1.5])
    with pytest.raises(TypeError, match="bytes"):
      tokenizer.encode(b"text")
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == "" and tokenizer.encode_batch([]) == []
    assert tokenizer.decode(np.array(tokenizer.encode("a b"), np.int32)) == "a b"
  with pytest.raises(ValueError, match=r"did you mean '<\|im_end\|>'"):
    qwen.token_to_id("<|im_emd|>")


def test_long_runs(qwen, small):
  for tokenizer in (qwen, small):
    for text in (" " * 1_200_000, "a" * 200_000, "\n" * 200_000, "世" * 50_000):
      assert tokenizer.decode(tokenizer.encode(text)) == text


def test_save_and_load(qwen, qwen_json, small, tmp_path):
  text = "Hello <think>\n 世界"
  messages = [{"role": "user", "content": "hi"}]
  for number, tokenizer in enumerate((qwen, qwen_json[1], small)):
    folder = tmp_path / str(number)
    tokenizer.save(folder)
    loaded = Tokenizer.from_pretrained(folder)
    pickled = pickle.loads(pickle.dumps(tokenizer))
    for other in (loaded, pickled):
      assert other.encode(text) == tokenizer.encode(text)
      assert other.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
      assert other.fingerprint == tokenizer.fingerprint
  assert len({t.fingerprint for t in (qwen, qwen_json[1], small)}) == 3


def test_saving_replaces_another_tokenizer(qwen, qwen_json, tmp_path):
  qwen_json[1].save(tmp_path)
  qwen.save(tmp_path)
  assert sorted(entry.name for entry in tmp_path.iterdir()) == ["qwen.tiktoken", "tokenizer_config.json"]
  assert Tokenizer.from_pretrained(tmp_path).fingerprint == qwen.fingerprint


def test_own_chat_template_wins_and_is_saved(qwen, tmp_path):
  messages = [{"role": "user", "content": "hi"}]
  qwen.save(tmp_path / "a")
  config_file = tmp_path / "a" / "tokenizer_config.json"
  config = json.loads(config_file.read_text())

  named = [
    {"name": "default", "template": "D{{ messages[0].content }}{{ eos_token }}"},
    {"name": "tool_use", "template": "T{{ tools | length }}"},
  ]
  config_file.write_text(json.dumps({**config, "chat_template": named, "eos_token": {"content": "<e>"}}))
  Tokenizer.from_pretrained(tmp_path / "a").save(tmp_path / "b")
  for folder in ("a", "b"):
    tokenizer = Tokenizer.from_pretrained(tmp_path / folder)
    assert tokenizer.apply_chat_template(messages) == "Dhi<e>"
    assert tokenizer.apply_chat_template(messages, tools=[{}, {}]) == "T2"

  (tmp_path / "a" / "chat_template.jinja").write_text("file")
  assert Tokenizer.from_pretrained(tmp_path / "a").apply_chat_template(messages) == "file"
  config_file.write_text("{")
  with pytest.raises(ValueError, match=r"tokenizer_config\.json"):
    Tokenizer.from_pretrained(tmp_path / "a")


def test_missing_and_damaged_files(qwen_path, small_path, qwen_json, tmp_path):
  (tmp_path / "config.json").write_text("{}")
  with pytest.raises(FileNotFoundError, match=r"tokenizer\.json, qwen\.tiktoken, tokenizer\.model.*config\.json"):
    Tokenizer.from_pretrained(tmp_path)
  with pytest.raises(FileNotFoundError, match="absent"):
    Tokenizer.from_pretrained(tmp_path / "absent")
  (tmp_path / "tokenizer.txt").write_text("")
  with pytest.raises(ValueError, match="unknown kind"):
    Tokenizer.from_pretrained(tmp_path / "tokenizer.txt")

  content = qwen_path.read_bytes()
  lines = content.splitlines(keepends=True)
  damaged = {
    "cut.tiktoken": (content[:700], "cut short|expected"),
    "empty.tiktoken": (b"", "256 of the 256"),
    "text.tiktoken": (b"no ranks here\n", "line 1"),
    "gap.tiktoken": (b"".join(lines[:300] + lines[301:]), "line 301: expected rank 300, found 301"),
    "cut.model": (small_path.read_bytes()[:1000], "not a SentencePiece model"),
    "empty.model": (b"", "not a SentencePiece model"),
    "cut.json": (b'{"model": {', "not a tokenizer.json"),
    "other.json": (b'{"model": {"type": "WordPiece", "vocab": {}}, "decoder": null}', "ByteLevel"),
  }
  for name, (data, message) in damaged.items():
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
      Tokenizer.from_pretrained(tmp_path / name)

  spec = json.loads(qwen_json[0].to_str())
  spec["added_tokens"][0]["lstrip"] = True
  (tmp_path / "strip.json").write_text(json.dumps(spec))
  with pytest.raises(ValueError, match="lstrip"):
    Tokenizer.from_pretrained(tmp_path / "strip.json")


def test_foreign_sentencepiece_model(tmp_path):
  """A model of SentencePiece's defaults: NFKC, a space before the text, no bytes, symbols found in any text."""
  file = tmp_path / "foreign.model"
  with open(file, "wb") as writer:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(["the quick brown fox jumps over the lazy dog", "a b c d e f g h i j"] * 20),
      model_writer=writer,
      vocab_size=35,
      user_defined_symbols=["<|im_end|>"],
      minloglevel=2,
    )
  reference = sentencepiece.SentencePieceProcessor(model_file=str(file))
  tokenizer = Tokenizer.from_pretrained(file)
  text = "the fox jumps over a dog"
  assert tokenizer.encode(text) == reference.encode(text)
  assert tokenizer.decode(tokenizer.encode(text)) == text
  stream = tokenizer.stream()
  assert "".join(map(stream.push, tokenizer.encode(text))) == text
  assert tokenizer.encode("fox<|im_end|>dog").count(tokenizer.im_end_id) == 1
  assert tokenizer.im_end_id not in tokenizer.encode("fox<|im_end|>dog", allow_special=False)
  assert tokenizer.eos_id == reference.eos_id()
