"""From a config's corpora to prepared ones: what is shared, what is made once, what cannot be used."""

import json

import numpy as np
import pytest
import run_helpers

from qwen3_jax.config import base_config, corpus, pretrain_stage
from qwen3_jax.data.corpora import open_mixture, prepare_corpora
from qwen3_jax.data.prepare import prepare
from qwen3_jax.data.records import DataError
from qwen3_jax.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def material(tmp_path_factory):
  return run_helpers.make_material(tmp_path_factory.mktemp("material"))


def make_config(material, **sources):
  """One stage that mixes the named sources."""
  config = base_config()
  config.model.vocab_size = run_helpers.VOCABULARY
  config.tokenizer.path = str(material.tokenizer)
  config.tokenizer.train_vocab_size = 400
  config.data.prepare_workers = 1
  for name, source in sources.items():
    config.data.corpora[name] = corpus(source, validation_fraction=0.1)
  config.stages.s1 = pretrain_stage(tokens=10**6, mixture=dict.fromkeys(sources, 1.0))
  config.pipeline = ("s1",)
  return config


def texts(material):
  return [json.loads(line)["text"] for line in material.corpus.read_text().splitlines()]


def test_prepared_in_the_work_directory_once(material, tmp_path, capsys):
  config = make_config(material, web=f"jsonl:{material.corpus}")
  tokenizer, corpora = prepare_corpora(config, tmp_path)
  assert corpora["web"].parent == tmp_path / "data" and corpora["web"].name.startswith("jsonl-")
  (opened, share) = open_mixture(config.stages.s1.mixture, corpora)["web"]
  assert share == 1.0 and opened.domain_names == ["web"]
  written = {tokenizer.decode(opened.tokens(i)[:-1]) for i in range(len(opened))}
  assert written < set(texts(material)) and len(written) > 100
  before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arecord*")}
  assert f"Prepared jsonl:{material.corpus}: " in capsys.readouterr().err
  assert prepare_corpora(config, tmp_path)[1] == corpora
  assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.arecord*")} == before
  assert "Prepared" not in "".join(capsys.readouterr())


def test_cache_is_shared_by_runs_and_by_corpora_that_are_alike(material, tmp_path):
  config = make_config(material, web=f"jsonl:{material.corpus}", code=f"jsonl:{material.corpus}")
  config.data.cache = str(tmp_path / "cache")
  for settings in config.data.corpora.values():
    settings.domain = "text"
  corpora = prepare_corpora(config, tmp_path / "one")[1]
  assert corpora["web"] == corpora["code"] and corpora["web"].parent == tmp_path / "cache"
  assert prepare_corpora(config, tmp_path / "two")[1] == corpora
  config.data.corpora.code.domain = "code"
  assert prepare_corpora(config, tmp_path / "two")[1]["code"] != corpora["code"]


def test_tokenizer_is_trained_once_on_all_raw_corpora(material, tmp_path):
  run_helpers.write_jsonl(tmp_path / "greek.jsonl", ["Καλημέρα κόσμε, τι κάνεις σήμερα; " * 60] * 40)
  config = make_config(material, web=f"jsonl:{material.corpus}", greek=f"jsonl:{tmp_path / 'greek.jsonl'}")
  config.tokenizer.path = ""
  config.tokenizer.train_megabytes = 1
  tokenizer, _ = prepare_corpora(config, tmp_path)
  assert tokenizer.vocab_size == 400
  text = "Καλημέρα κόσμε"
  assert tokenizer.decode(tokenizer.encode(text)) == text
  assert len(tokenizer.encode(text)) < len(Tokenizer.from_pretrained(material.tokenizer).encode(text)) / 2
  again, _ = prepare_corpora(config, tmp_path)
  assert again.fingerprint == tokenizer.fingerprint


def test_run_keeps_its_tokenizer(material, tmp_path):
  config = make_config(material, web=f"jsonl:{material.corpus}")
  tokenizer, _ = prepare_corpora(config, tmp_path)
  assert Tokenizer.from_pretrained(tmp_path / "tokenizer").fingerprint == tokenizer.fingerprint
  run_helpers.train_sentencepiece(texts(material), tmp_path / "other.model", 400)
  config.tokenizer.path = str(tmp_path / "other.model")
  with pytest.raises(DataError, match=r"tokenizer.path='.*other.model': another tokenizer than this run began with"):
    prepare_corpora(config, tmp_path)


def test_prepared_source_is_used_where_it_lies(material, tmp_path):
  tokenizer = Tokenizer.from_pretrained(material.tokenizer)
  manifest = prepare(f"jsonl:{material.corpus}", tmp_path / "tokens", tokenizer, workers=1, progress=False)
  config = make_config(material, web=f"prepared:{tmp_path / 'tokens'}")
  _, corpora = prepare_corpora(config, tmp_path / "run")
  assert corpora == {"web": tmp_path / "tokens"} and not (tmp_path / "run" / "data").exists()
  opened, _ = open_mixture(config.stages.s1.mixture, corpora)["web"]
  assert np.sum(opened.lengths) == manifest["splits"]["train"]["tokens"]


BAD = {
  "no file": (lambda config, folder: config.data.corpora.web.update(source=f"text:{folder}/a.txt"), "no files match"),
  "field": (lambda config, folder: config.data.corpora.web.update(text_field="txt"), "no field 'txt'; it has text"),
  "no manifest": (
    lambda config, folder: config.data.corpora.web.update(source=f"prepared:{folder}"),
    "is no prepared corpus",
  ),
  "no tokenizer": (lambda config, folder: config.tokenizer.update(path=str(folder / "x")), "no tokenizer at"),
  "not a tokenizer": (
    lambda config, folder: config.tokenizer.update(path=str(_file(folder / "tokenizer.json", "{"))),
    "tokenizer.json",
  ),
  "too many ids": (lambda config, folder: config.model.update(vocab_size=100), "more than the model's vocab_size=100"),
  "more pieces than there are": (
    lambda config, folder: (
      config.data.corpora.web.update(source=f"text:{_file(folder / 'a.txt', 'abc ' * 9)}"),
      config.tokenizer.update(path=""),
    ),
    "tokenizer.train_vocab_size=400: vocab_size is 400, but the texts hold only",
  ),
  "nothing to train on": (
    lambda config, folder: (
      config.data.corpora.web.update(source=f"prepared:{folder}"),
      config.tokenizer.update(path=""),
    ),
    "there is no raw corpus to train a tokenizer on",
  ),
}


def _file(path, text):
  path.write_text(text)
  return path


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_used(material, tmp_path, kind):
  change, message = BAD[kind]
  config = make_config(material, web=f"jsonl:{material.corpus}")
  change(config, tmp_path)
  with pytest.raises(DataError) as error:
    prepare_corpora(config, tmp_path / "run")
  assert message in str(error.value) and "\n" not in str(error.value)
  if kind in ("no file", "field", "no manifest"):
    assert str(error.value).startswith("data.corpora.web")
  if kind not in ("no file", "field", "no manifest", "too many ids"):
    assert not (tmp_path / "run" / "tokenizer").exists()
