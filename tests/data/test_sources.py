"""Every kind of raw source on small files made here."""

import gzip
import importlib.resources
import json
import pickle
import sys

import numpy as np
import pytest
import zstandard
from array_record.python.array_record_module import ArrayRecordWriter

from qwen3_jax.data import sources
from qwen3_jax.data.sources import Document, SourceError, documents, open_source

RECORDS = [{"text": f"text {i} é", "language": "fr" if i % 2 else "en", "domain": "web"} for i in range(7)]
EXPECTED = [(record["text"], record["domain"], record["language"]) for record in RECORDS]


def read(spec, **arguments):
  source = pickle.loads(pickle.dumps(open_source(spec, **arguments)))  # what a worker process gets
  return list(documents(source))


def labelled(found: list[Document]):
  return [(document.text, document.domain, document.language) for document in found]


def test_text_files_one_document_each_in_order_of_names(tmp_path):
  for name in ("b.txt", "a.txt", "sub/c.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(name)
  (tmp_path / "skipped.md").write_text("no")
  assert [d.text for d in read(f"text:{tmp_path}/*.txt")] == ["a.txt", "b.txt"]
  assert [d.text for d in read(f"text:{tmp_path}/**/*.txt")] == ["a.txt", "b.txt", "sub/c.txt"]
  assert [d.text for d in read(f"text:{tmp_path}/b.txt,{tmp_path}/sub")] == ["b.txt", "sub/c.txt"]


def test_undecodable_bytes_become_the_replacement_character_and_are_counted(tmp_path):
  (tmp_path / "a.txt").write_bytes("naïve \ufffd ".encode() + b"\xff\xfe caf\xe9")
  (document,) = read(f"text:{tmp_path}/a.txt")
  assert document.text == "naïve \ufffd \ufffd\ufffd caf\ufffd"
  assert document.replaced == 3  # the one that was there is text
  (tmp_path / "b.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
  (document,) = read(f"jsonl:{tmp_path}/b.jsonl")
  assert (document.text, document.replaced) == ("caf\ufffd", 1)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_json_lines_plain_and_compressed(tmp_path, suffix):
  data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()
  compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
  (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(data[:100]) + compress(data[100:]))  # files may be joined
  assert labelled(read(f"jsonl:{tmp_path}")) == EXPECTED


@pytest.mark.parametrize("unit_bytes", [1, 10, 55, 56, 57, 100])
def test_units_of_a_plain_file_hold_every_line_once(tmp_path, monkeypatch, unit_bytes):
  monkeypatch.setattr(sources, "_SPLIT_BYTES", unit_bytes)
  lines = [json.dumps(record) for record in RECORDS]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  source = open_source(f"jsonl:{tmp_path}/a.jsonl")
  assert len(source.units) >= 5
  assert labelled(list(documents(source))) == EXPECTED


def test_parquet_row_groups(tmp_path):
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  table = pyarrow.Table.from_pylist([{**record, "other": 1} for record in RECORDS])
  parquet.write_table(table, tmp_path / "a.parquet", row_group_size=3)
  assert len(open_source(f"parquet:{tmp_path}/a.parquet").units) == 3
  assert labelled(read(f"parquet:{tmp_path}/a.parquet")) == EXPECTED
  with pytest.raises(SourceError, match=r"no field 'txet'.*Did you mean 'text'"):
    read(f"parquet:{tmp_path}/a.parquet", text_field="txet")
  (tmp_path / "b.parquet").write_bytes(b"not parquet")
  with pytest.raises(SourceError, match=r"b\.parquet: not a Parquet file"):
    read(f"parquet:{tmp_path}/b.parquet")


def test_a_missing_extra_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "datasets", None)
  with pytest.raises(ImportError, match=r"'hf' needs datasets.*pip install 'qwen3_jax\[data\]'"):
    open_source(f"hf:{tmp_path}")


def test_array_records_of_objects_and_of_text(tmp_path):
  writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
  for record in [*map(json.dumps, RECORDS), "plain", "{ braces but no object"]:
    writer.write(record.encode())
  writer.close()
  found = read(f"arrayrecord:{tmp_path}")
  assert labelled(found) == [*EXPECTED, ("plain", "", ""), ("{ braces but no object", "", "")]
  (tmp_path / "a.array_record").write_bytes(b"junk")
  with pytest.raises(SourceError, match=r"a\.array_record: not an ArrayRecord file"):
    read(f"arrayrecord:{tmp_path}")


def test_tensorflow_datasets_without_tensorflow(tmp_path, monkeypatch):
  tfds = pytest.importorskip("tensorflow_datasets")
  # Building asks for this backport, reading does not.
  monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)

  class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = tmp_path

    def _info(self):
      text = tfds.features.Text()
      features = tfds.features.FeaturesDict({"text": text, "language": text, "domain": text})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples()}

    def _generate_examples(self):
      yield from enumerate(RECORDS)

  Tiny(data_dir=tmp_path, file_format="array_record").download_and_prepare()
  assert sorted(labelled(read(f"tfds:tiny:train@{tmp_path}"))) == sorted(EXPECTED)
  with pytest.raises(SourceError, match="tfds:tiny: split 'tset' cannot be opened"):
    read(f"tfds:tiny:tset@{tmp_path}")


def test_hugging_face_datasets(tmp_path):
  datasets = pytest.importorskip("datasets")
  for split, records in (("train", RECORDS), ("test", RECORDS[:2])):
    (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
  # From files: with some pyarrow releases the library cannot save a table made in memory.
  names = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}
  both = datasets.load_dataset("json", data_files=names, cache_dir=str(tmp_path / "cache"))
  both.save_to_disk(tmp_path / "both")
  both["train"].save_to_disk(tmp_path / "one")
  assert labelled(read(f"hf:{tmp_path}/one")) == EXPECTED
  assert labelled(read(f"hf:{tmp_path}/both")) == EXPECTED
  assert labelled(read(f"hf:{tmp_path}/both:test")) == EXPECTED[:2]
  with pytest.raises(SourceError, match="split 'tset' cannot be opened"):
    read(f"hf:{tmp_path}/both:tset")


def test_errors_are_one_line_that_names_the_fault(tmp_path):
  with pytest.raises(SourceError, match=r"'jsno:x': expected kind:location.*Did you mean 'jsonl'"):
    open_source("jsno:x")
  with pytest.raises(SourceError, match="expected kind:location"):
    open_source(str(tmp_path))
  with pytest.raises(SourceError, match="no files match"):
    open_source(f"text:{tmp_path}/*.txt")
  (tmp_path / "empty.jsonl").touch()
  with pytest.raises(SourceError, match="empty, there is no text in it"):
    open_source(f"jsonl:{tmp_path}/empty.jsonl")
  (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
  with pytest.raises(SourceError, match=r"a\.jsonl, line at byte 14: no field 'text'.*Did you mean 'txt'"):
    read(f"jsonl:{tmp_path}/a.jsonl")
  (tmp_path / "a.jsonl").write_text('{"text": 3}\n')
  with pytest.raises(SourceError, match="field 'text' holds int, expected text"):
    read(f"jsonl:{tmp_path}/a.jsonl")
  (tmp_path / "a.jsonl").write_text('{"text": \n')
  with pytest.raises(SourceError, match="not valid JSON"):
    read(f"jsonl:{tmp_path}/a.jsonl")
  noise = np.random.default_rng(0).bytes(999).hex().encode()
  (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "' + noise)[:300])
  with pytest.raises(SourceError, match=r"a\.jsonl\.gz: damaged"):
    read(f"jsonl:{tmp_path}/a.jsonl.gz")
  (tmp_path / "a.jsonl.zst").write_bytes(b"no zstandard")
  with pytest.raises(SourceError, match=r"a\.jsonl\.zst: damaged"):
    read(f"jsonl:{tmp_path}/a.jsonl.zst")
  (tmp_path / "a.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(b'{"text": "%s"}\n' % noise)[:-1])
  with pytest.raises(SourceError, match=r"a\.jsonl\.zst: damaged"):
    read(f"jsonl:{tmp_path}/a.jsonl.zst")
