"""The corpus on disk: read back, split, continued after a kill."""

import collections
import hashlib
import json
import random
import zlib

import numpy as np
import pytest

from bert_jax.data import corpus as corpus_lib
from bert_jax.data.encoding import EncodedDocuments, hash_tokens
from bert_jax.data.tokenization import SPECIAL_TOKENS
from bert_jax.data.writing import corpus_writer
from bert_jax.errors import UserError

SETTINGS = {"source": "made up", "vocab_size": 200}


def _draw_documents(num_documents, seed=0):
  """Returns documents as lists of sentences, lists of ids; some repeat."""
  rng = random.Random(seed)
  documents = []
  for _ in range(num_documents):
    if documents and rng.random() < 0.1:
      documents.append(rng.choice(documents))
      continue
    documents.append(
      [
        [rng.randrange(5, 200) for _ in range(rng.randint(1, 12))]
        for _ in range(rng.choice([0, 1, 1, 2, 5, 9]))
      ]
    )
  return documents


def _encode(documents):
  """Packs documents as the encoder does, without text or tokenizer."""
  sentences = [sentence for document in documents for sentence in document]
  return EncodedDocuments(
    tokens=np.array([t for s in sentences for t in s], np.uint16),
    sentence_lengths=np.array([len(s) for s in sentences], np.uint32),
    document_sentences=np.array([len(d) for d in documents], np.uint32),
    hashes=np.array(
      [hash_tokens(repr(d).encode()) for d in documents], np.uint64
    ),
    sources=np.array([len(d) % 2 for d in documents], np.uint16),
    counts=collections.Counter(num_text_bytes=10 * len(documents)),
    problems=[],
  )


def _write_vocabulary(directory):
  tokens = [*SPECIAL_TOKENS, *(f"t{i}" for i in range(195))]
  (directory / "vocab.txt").write_text("\n".join(tokens) + "\n")


def _write(directory, chunks, settings=None):
  """Writes a corpus from where it was left to its end."""
  writer = corpus_writer.CorpusWriter(directory, settings or SETTINGS)
  if writer.num_chunks == 0:
    _write_vocabulary(directory)
  for chunk in chunks[writer.num_chunks :]:
    writer.append(_encode(chunk))
  manifest = writer.finish([])
  corpus_writer.commit(directory, manifest)
  return corpus_lib.open_corpus(directory)


def _chunks(documents, size=7):
  return [documents[i : i + size] for i in range(0, len(documents), size)]


def _read_back(corpus):
  """Returns the documents of a corpus as lists of sentences."""
  found = []
  for record in corpus.documents:
    start, end = record["start"], record["start"] + record["num_tokens"]
    first = record["first_sentence"]
    starts = corpus.sentence_starts[first : first + record["num_sentences"]]
    sentences = np.split(corpus.tokens[start:end], starts[1:])
    found.append([sentence.tolist() for sentence in sentences])
  return found


def test_what_is_written_is_read_back(tmp_path):
  """First of its kind, of two tokens or more, in order; the rest counted."""
  documents = _draw_documents(300)
  corpus = _write(tmp_path, _chunks(documents))
  usable = [d for d in documents if sum(map(len, d)) >= 2]
  expected = []
  for document in usable:
    if document not in expected:
      expected.append(document)
  assert _read_back(corpus) == expected
  manifest = corpus.manifest
  assert manifest["num_documents"] == len(expected)
  assert manifest["num_duplicate_documents"] == len(usable) - len(expected) > 9
  assert manifest["num_short_documents"] == len(documents) - len(usable) > 9
  assert manifest["num_sentences"] == sum(map(len, expected))
  assert manifest["num_tokens"] == sum(len(s) for d in expected for s in d)
  assert manifest["num_text_bytes"] == 3000
  assert len(corpus.vocab) == 200
  assert {path.name for path in tmp_path.iterdir()} == {
    "tokens-00000.bin",
    "sentences.bin",
    "documents.npy",
    "vocab.txt",
    "manifest.json",
    "verified.json",
  }
  sources = [len(d) % 2 for d in expected]
  assert corpus.documents["source"].tolist() == sources
  # Documents that are left out leave the token ids too.
  assert len(corpus.tokens) == manifest["num_tokens"]
  assert len(corpus.sentence_starts) == manifest["num_sentences"]


def test_how_documents_are_chunked_changes_no_byte(tmp_path):
  documents = _draw_documents(200)
  digests = set()
  for size in (1, 13, 200):
    directory = tmp_path / str(size)
    _write(directory, _chunks(documents, size))
    digests.add(_digest(directory))
  assert len(digests) == 1


@pytest.mark.parametrize("shard_tokens", [3, 50, 10_000])
def test_any_size_of_shards_holds_the_same_corpus(
  tmp_path, monkeypatch, shard_tokens
):
  """Of one fingerprint, since checkpoints are compared by it."""
  chunks = _chunks(_draw_documents(30))
  whole = _write(tmp_path / "whole", chunks)
  monkeypatch.setattr(corpus_writer, "SHARD_TOKENS", shard_tokens)
  corpus = _write(tmp_path / "shards", chunks)
  assert _read_back(corpus) == _read_back(whole)
  assert corpus.fingerprint == whole.fingerprint
  sizes = [
    (tmp_path / "shards" / name).stat().st_size
    for name in corpus_lib.token_files(corpus.manifest)
  ]
  assert set(sizes[:-1]) <= {2 * shard_tokens}
  assert len(sizes) == -(-len(whole.tokens) // shard_tokens)
  stored = json.loads((tmp_path / "shards" / "manifest.json").read_text())
  assert {"tokens-00000.bin"} <= stored["crc32"].keys() == _crcs(tmp_path)


def _crcs(tmp_path):
  """Returns which files of a corpus should have checksums."""
  names = {path.name for path in (tmp_path / "shards").iterdir()}
  return names - {"manifest.json", "verified.json"}


def test_a_corpus_of_one_file_of_token_ids_is_still_read(tmp_path):
  """As every corpus was before: format 2."""
  whole = _write(tmp_path / "new", _chunks(_draw_documents(50)))
  token_ids = whole.tokens[:]
  directory = tmp_path / "new"
  (directory / "tokens-00000.bin").rename(directory / "tokens.bin")
  manifest = json.loads((directory / "manifest.json").read_text())
  del manifest["shard_tokens"], manifest["content_crc32"]
  manifest["version"] = 2
  for key in ("crc32", "file_bytes"):
    manifest[key]["tokens.bin"] = manifest[key].pop("tokens-00000.bin")
  # As that version made it.
  crcs = repr(sorted(manifest["crc32"].items())).encode()
  assert manifest["fingerprint"] == f"{zlib.crc32(crcs):08x}"
  (directory / "manifest.json").write_text(json.dumps(manifest))
  corpus = corpus_lib.open_corpus(directory)
  np.testing.assert_array_equal(corpus.tokens[:], token_ids)
  assert corpus.fingerprint == whole.fingerprint


def _digest(directory):
  content = [
    path.name.encode() + path.read_bytes()
    for path in sorted(directory.iterdir())
    if path.name != "verified.json"  # which tells when the files were written
  ]
  return hashlib.sha256(b"\x00".join(content)).hexdigest()


def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
  """Killed amid any write: files too long, too many, or half a chunk in."""
  monkeypatch.setattr(corpus_writer, "SHARD_TOKENS", 700)
  rng = random.Random(4)
  chunks = _chunks(_draw_documents(150))
  _write(tmp_path / "whole", chunks)
  for number in range(25):
    directory = tmp_path / str(number)
    for _ in range(rng.randint(1, 3)):
      writer = corpus_writer.CorpusWriter(directory, SETTINGS)
      if writer.num_chunks == 0:
        _write_vocabulary(directory)
      last = rng.randint(writer.num_chunks, len(chunks))
      for chunk in chunks[writer.num_chunks : last]:
        writer.append(_encode(chunk))
      # The chunk it was at: what reached the disk of it, if anything.
      for name in ("tokens-00001.bin", "sentences.bin", "documents.bin"):
        with open(directory / name, "ab") as f:
          f.write(rng.randbytes(rng.choice([0, 1, 1000])))
      if rng.random() < 0.5:
        (directory / "progress.json.unfinished").write_text('{"num_chu')
    if rng.random() < 0.3:
      writer = corpus_writer.CorpusWriter(directory, SETTINGS)
      if writer.num_chunks == len(chunks):
        writer.finish([])  # killed before the manifest
    _write(directory, chunks)
    assert _digest(directory) == _digest(tmp_path / "whole")


@pytest.mark.parametrize(
  "lost", ["tokens-00000.bin", "documents.bin", "vocab.txt"]
)
def test_a_writer_whose_files_were_lost_begins_anew(tmp_path, lost):
  """After a crash of the machine a file may be shorter than was noted."""
  chunks = _chunks(_draw_documents(150))
  _write(tmp_path / "whole", chunks)
  directory = tmp_path / "lost"
  writer = corpus_writer.CorpusWriter(directory, SETTINGS)
  _write_vocabulary(directory)
  for chunk in chunks[:9]:
    writer.append(_encode(chunk))
  if lost == "vocab.txt":
    (directory / lost).unlink()
  else:
    (directory / lost).write_bytes((directory / lost).read_bytes()[:-8])
  writer = corpus_writer.CorpusWriter(directory, SETTINGS)
  assert writer.num_chunks == 0
  _write(directory, chunks)
  assert _digest(directory) == _digest(tmp_path / "whole")


def test_other_settings_begin_anew(tmp_path):
  chunks = _chunks(_draw_documents(100))
  writer = corpus_writer.CorpusWriter(tmp_path, SETTINGS | {"vocab_size": 300})
  _write_vocabulary(tmp_path)
  for chunk in chunks[:5]:
    writer.append(_encode(chunk))
  corpus = _write(tmp_path, chunks)
  assert corpus.manifest["settings"] == SETTINGS
  assert corpus.manifest["num_text_bytes"] == 1000


def test_fingerprints_tell_corpora_apart(tmp_path):
  """One token, one boundary or one vocabulary entry is enough."""
  documents = _draw_documents(50)
  token = [*documents[:-1], [[7, 8], [9]]]
  boundary = [*documents[:-1], [[7], [8, 9]]]
  found = {
    _write(tmp_path / str(i), _chunks(changed)).fingerprint
    for i, changed in enumerate((documents, token, boundary))
  }
  directory = tmp_path / "vocabulary"
  writer = corpus_writer.CorpusWriter(directory, SETTINGS)
  _write_vocabulary(directory)
  text = (directory / "vocab.txt").read_text()
  (directory / "vocab.txt").write_text(text.replace("t7\n", "seven\n"))
  for chunk in _chunks(documents):
    writer.append(_encode(chunk))
  found.add(writer.finish([])["fingerprint"])
  assert len(found) == 4


@pytest.mark.parametrize(
  "name", ["tokens-00000.bin", "sentences.bin", "documents.npy", "vocab.txt"]
)
def test_a_flipped_bit_is_found_and_named(tmp_path, name):
  """Whatever was found right before."""
  _write(tmp_path, _chunks(_draw_documents(50)))
  path = tmp_path / name
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  for _ in range(2):
    with pytest.raises(UserError, match=f"{name} has the checksum"):
      corpus_lib.open_corpus(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", None])
def test_a_damaged_index_is_a_message(tmp_path, content):
  _write(tmp_path, _chunks(_draw_documents(50)))
  path = tmp_path / "documents.npy"
  path.unlink() if content is None else path.write_bytes(content)
  with pytest.raises(UserError, match=r"documents\.npy has the checksum"):
    corpus_lib.open_corpus(tmp_path)


@pytest.mark.parametrize(
  "content", [b"", b'{"settings"', b"[]", b"{}", b"\xff"]
)
def test_a_damaged_manifest_is_a_message(tmp_path, content):
  _write(tmp_path, _chunks(_draw_documents(50)))
  (tmp_path / "manifest.json").write_bytes(content)
  with pytest.raises(UserError, match=r"manifest\.json is damaged"):
    corpus_lib.open_corpus(tmp_path)


def test_files_are_read_for_their_checksums_once(tmp_path, monkeypatch):
  _write(tmp_path, _chunks(_draw_documents(50)))
  monkeypatch.setattr(corpus_lib, "checksum", None)
  corpus_lib.open_corpus(tmp_path)


def test_a_corpus_of_an_older_format_is_refused(tmp_path):
  _write(tmp_path, _chunks(_draw_documents(50)))
  path = tmp_path / "manifest.json"
  manifest = json.loads(path.read_text())
  del manifest["version"], manifest["content_crc32"]
  path.write_text(json.dumps(manifest))
  with pytest.raises(UserError, match=r"format 1; expected format 2.*again"):
    corpus_lib.open_corpus(tmp_path)


@pytest.mark.parametrize("name", ["tokens-00000.bin", "sentences.bin"])
def test_a_file_of_another_size_is_refused(tmp_path, name):
  _write(tmp_path, _chunks(_draw_documents(50)))
  path = tmp_path / name
  content = path.read_bytes()
  for wrong in (content[:-2], content + b"\x00\x00", None):
    if wrong is None:
      path.unlink()
    else:
      path.write_bytes(wrong)
    with pytest.raises(UserError, match="bytes; expected") as e:
      corpus_lib.open_corpus(tmp_path)
    message = str(e.value)
    assert str(path) in message and "\n" not in message
    assert f"{len(wrong or b'')} bytes; expected {len(content)}" in message


def test_a_corpus_that_is_not_there_or_not_finished_is_refused(tmp_path):
  corpus_writer.CorpusWriter(tmp_path / "begun", SETTINGS)
  for directory in (tmp_path / "nowhere", tmp_path / "begun"):
    with pytest.raises(UserError, match="holds no prepared corpus") as e:
      corpus_lib.open_corpus(directory)
    assert str(directory) in str(e.value)


@pytest.mark.parametrize("num_usable", [0, 1, 3])
def test_too_few_documents_are_refused(tmp_path, num_usable):
  usable = [[[10 + i, 11, 12]] for i in range(num_usable)]
  documents = [*usable, *usable, [[5]], []]
  with pytest.raises(UserError, match=f"has {num_usable} usable documents"):
    _write(tmp_path, [documents])


def test_removing_leaves_what_others_put_there(tmp_path):
  directory = tmp_path / "corpus"
  corpus_writer.CorpusWriter(directory, SETTINGS)
  _write_vocabulary(directory)
  (directory / "progress.json.unfinished").write_text("{")
  (directory / "notes").write_text("mine")
  corpus_writer.remove_empty(directory)
  assert [path.name for path in directory.iterdir()] == ["notes"]
  (directory / "notes").unlink()
  corpus_writer.remove_empty(directory)
  assert not directory.exists()


def test_removing_leaves_chunks_that_are_in(tmp_path):
  """What one bad row stopped goes on once the row is mended."""
  writer = corpus_writer.CorpusWriter(tmp_path, SETTINGS)
  _write_vocabulary(tmp_path)
  writer.append(_encode(_draw_documents(9)))
  corpus_writer.remove_empty(tmp_path)
  again = corpus_writer.CorpusWriter(tmp_path, SETTINGS)
  assert again.num_chunks == 1


@pytest.mark.parametrize("name", ["tokens-00000.bin", "documents.bin"])
def test_a_writer_does_not_go_on_after_damaged_files(tmp_path, name):
  """A bit of what was noted in progress.json has changed: begin anew."""
  chunks = _chunks(_draw_documents(150))
  _write(tmp_path / "whole", chunks)
  directory = tmp_path / "damaged"
  writer = corpus_writer.CorpusWriter(directory, SETTINGS)
  _write_vocabulary(directory)
  for chunk in chunks[:9]:
    writer.append(_encode(chunk))
  content = bytearray((directory / name).read_bytes())
  content[30] ^= 4
  (directory / name).write_bytes(content)
  _write(directory, chunks)
  assert _digest(directory) == _digest(tmp_path / "whole")


def _records(hashes):
  documents = np.zeros(len(hashes), corpus_lib.DOCUMENT)
  documents["hash"] = hashes
  documents["num_tokens"] = 1 + hashes % np.uint64(97)
  return documents


def test_few_long_documents_hold_out_the_shortest():
  """Two are held out at least; of books, those that cost least."""
  documents = _records(np.arange(1, 6, dtype=np.uint64) << np.uint64(60))
  documents["num_tokens"] = [90_000, 40_000, 80_000, 30_000, 70_000]
  training, held_out = corpus_lib.split_documents(documents, 0.01)
  assert sorted(held_out["num_tokens"]) == [30_000, 40_000]
  assert sorted(training["num_tokens"]) == [70_000, 80_000, 90_000]


@pytest.mark.parametrize("weight", [1, 3, 0.25, 2.5])
def test_weights_repeat_the_documents_of_a_source(weight):
  rng = np.random.default_rng(0)
  documents = _records(rng.integers(0, 2**64, 10_000, np.uint64))
  documents["source"] = rng.integers(0, 2, 10_000)
  weighed = corpus_lib.weigh_documents(documents, [1, weight])
  sizes = [(documents["source"] == n).sum() for n in (0, 1)]
  found = [(weighed["source"] == n).sum() for n in (0, 1)]
  assert found[0] == sizes[0]
  assert found[1] / sizes[1] == pytest.approx(weight, abs=0.03)
  _, times = np.unique(weighed["hash"], return_counts=True)
  assert times.max() == max(1, np.ceil(weight))


def test_a_document_stays_on_its_side_when_others_come_and_go():
  rng = np.random.default_rng(0)
  hashes = rng.integers(0, 2**64, 20_000, np.uint64)
  training, held_out = corpus_lib.split_documents(_records(hashes), 0.05)
  assert len(training) + len(held_out) == 20_000
  assert abs(len(held_out) / 20_000 - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 20_000)
  assert not np.isin(training["hash"], held_out["hash"]).any()
  some = rng.permutation(hashes)[:10_000]
  others, fewer = corpus_lib.split_documents(_records(some), 0.05)
  assert np.isin(fewer["hash"], held_out["hash"]).all()
  assert np.isin(others["hash"], training["hash"]).all()


@pytest.mark.parametrize("eval_fraction", [1e-9, 0.01, 0.49])
@pytest.mark.parametrize("num_documents", [4, 5, 50])
def test_each_side_has_two_documents_at_least(eval_fraction, num_documents):
  for seed in range(20):
    hashes = np.random.default_rng(seed).integers(
      0, 2**64, num_documents, np.uint64
    )
    training, held_out = corpus_lib.split_documents(
      _records(hashes), eval_fraction
    )
    assert min(len(training), len(held_out)) >= 2
    assert len(training) + len(held_out) == num_documents


def test_json_is_replaced_whole(tmp_path):
  path = tmp_path / "a.json"
  corpus_lib.write_json(path, {"a": 1})
  corpus_lib.write_json(path, {"a": [2]})
  assert json.loads(path.read_text()) == {"a": [2]}
  assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
