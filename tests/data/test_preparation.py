"""The prepare command as users meet it: kills, bad text, and its report."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import sentencex

from bert_jax import config as config_lib
from bert_jax.data import corpus as corpus_lib
from bert_jax.data import mixing
from bert_jax.data import preparation as prepare_lib
from bert_jax.data.encoding import hash_tokens
from bert_jax.data.examples import Examples
from bert_jax.data.sources.source import Source
from bert_jax.data.tokenization import SPECIAL_TOKENS, create_tokenizer
from bert_jax.data.writing import chunks
from bert_jax.errors import UserError
from tests import texts

ROOT = pathlib.Path(__file__).parents[2]
SETTINGS = {
  "corpus.vocab_size": 200,
  "corpus.eval_fraction": 0.1,
  "phase1.max_seq_length": 32,
  "phase1.max_predictions": 5,
  "phase1.batch_size": 8,
  "phase2.max_seq_length": 64,
  "phase2.max_predictions": 10,
  "phase2.batch_size": 4,
}
# The command with small chunks, and with workers whatever the text's size.
_SMALL_CHUNKS = """
from bert_jax import command, prepare
from bert_jax.data.writing import chunks
chunks.CHUNK_BYTES = {chunk_bytes}
chunks._POOL_BYTES = {pool_bytes}
command.define_config_flags()
command.define_init_flags()
prepare.define_flags()
command.run(prepare.main)
"""


def _arguments(workdir, source, *more):
  return [
    "--config=configs/quickstart.py",
    f"--workdir={workdir}",
    *(f"--config.{key}={value}" for key, value in SETTINGS.items()),
    f"--config.corpus.source={source}",
    *more,
  ]


def _start(arguments, code=None):
  run = ("-c", code) if code else ("-m", "bert_jax.prepare")
  return subprocess.Popen(
    [sys.executable, *run, *arguments],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _run(arguments, code=None):
  """Runs the command to its end; returns (status, stdout, stderr)."""
  process = _start(arguments, code)
  output, errors = process.communicate(timeout=120)
  return process.returncode, output, errors


def _files(directory):
  """Returns what a folder holds, but for when its files were written."""
  return {
    path.name: path.read_bytes()
    for path in directory.iterdir()
    if path.name != "verified.json"
  }


def _write_documents(path, documents):
  path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
  return path


@pytest.fixture(scope="module", name="source")
def _source(tmp_path_factory):
  path = tmp_path_factory.mktemp("text") / "text.txt"
  texts.write_text(path, texts.make_documents(800, 20))
  return path


@pytest.fixture(scope="module", name="whole")
def _whole(tmp_path_factory, source):
  """The files of a run that nobody disturbed, in one process."""
  workdir = tmp_path_factory.mktemp("whole")
  code = _SMALL_CHUNKS.format(chunk_bytes=5000, pool_bytes=10**12)
  status, output, errors = _run(_arguments(workdir, source), code)
  assert (status, errors) == (0, "")
  assert "documents" in output
  return _files(workdir / "corpus")


def test_workers_write_the_same_bytes(tmp_path, source, whole):
  code = _SMALL_CHUNKS.format(chunk_bytes=5000, pool_bytes=0)
  status, _, errors = _run(_arguments(tmp_path, source), code)
  assert (status, errors) == (0, "")
  assert _files(tmp_path / "corpus") == whole


def _num_chunks(workdir):
  """Returns the chunks that are in, or None before the first file."""
  path = workdir / "corpus" / "progress.json"
  return json.loads(path.read_text())["num_chunks"] if path.exists() else None


def _children(process):
  path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
  return path.read_text().split() if path.exists() else []


def _is_alive(pid):
  try:
    status = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return status.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(
  ("pool_bytes", "moments"),
  [
    (10**12, (None, 0, 1)),
    pytest.param(10**12, (30, 90), marks=pytest.mark.slow),
    pytest.param(0, (0, 30, 90), marks=pytest.mark.slow),
  ],
)
def test_killed_again_and_again_it_ends_in_the_same_bytes(
  tmp_path, source, whole, pool_bytes, moments
):
  """kill -9 while words are counted, at the first chunk, and later."""
  code = _SMALL_CHUNKS.format(chunk_bytes=5000, pool_bytes=pool_bytes)
  arguments = _arguments(tmp_path, source)
  for moment in moments:
    process = _start(arguments, code)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
      chunks = _num_chunks(tmp_path)
      if moment is None or (chunks is not None and chunks >= moment):
        break
      time.sleep(0.001)
    children = _children(process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done already"
    deadline = time.monotonic() + 20
    while any(map(_is_alive, children)) and time.monotonic() < deadline:
      time.sleep(0.05)
    orphans = [child for child in children if _is_alive(child)]
    for child in orphans:
      os.kill(int(child), signal.SIGKILL)
    process.communicate()
    assert not orphans, "workers outlived the command"
  status, output, errors = _run(arguments, code)
  assert (status, errors) == (0, "")
  assert "continuing in" in output
  assert _files(tmp_path / "corpus") == whole


def test_a_second_run_says_that_all_is_done(tmp_path, source, whole):
  """Also one that was killed before it could tidy up."""
  code = _SMALL_CHUNKS.format(chunk_bytes=5000, pool_bytes=10**12)
  arguments = _arguments(tmp_path, source)
  assert _run(arguments, code)[0] == 0
  (tmp_path / "corpus" / "progress.json").write_text("{}")
  (tmp_path / "corpus" / "documents.bin").write_bytes(b"left")
  status, output, errors = _run(arguments, code)
  assert (status, errors) == (0, "")
  assert output == f"corpus: {tmp_path}/corpus is prepared already\n"
  assert _files(tmp_path / "corpus") == whole
  # Other settings do not overwrite what is there.
  status, _, errors = _run([*arguments, "--config.corpus.lowercase=False"])
  assert status == 2
  assert "made with another lowercase" in errors
  assert _files(tmp_path / "corpus") == whole


def _one_document(tmp_path):
  lines = texts.make_documents(1, 400)
  return _write_documents(tmp_path / "a.txt", lines), ()


def _empty_file(tmp_path):
  return _write_documents(tmp_path / "a.txt", [""]), ()


def _empty_file_with_a_vocabulary(tmp_path):
  vocab = [*SPECIAL_TOKENS, *map(chr, range(97, 123))]
  (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
  flag = f"--config.corpus.vocab_file={tmp_path}/vocab.txt"
  return _write_documents(tmp_path / "a.txt", [""]), (flag,)


def _not_utf8(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes(b"caf\xe9\n")
  return path, ()


def _not_utf8_in_the_second_file(tmp_path):
  """The vocabulary is given, so that half of the tokens are written by then."""
  source, flags = _empty_file_with_a_vocabulary(tmp_path)
  _write_documents(source, texts.make_documents(400, 20))
  (tmp_path / "b.txt").write_bytes(b"and then caf\xe9\n")
  return tmp_path / "?.txt", (*flags, "--config.corpus.one_sentence_per_line")


def _fewer_examples_than_a_batch(tmp_path):
  documents = texts.make_documents(40, 4)
  path = _write_documents(tmp_path / "a.txt", documents)
  return path, ("--config.phase1.batch_size=512",)


def _no_file(tmp_path):
  return tmp_path / "none*.txt", ()


def _no_vocabulary_file(tmp_path):
  path = _write_documents(tmp_path / "a.txt", texts.make_documents(40, 4))
  return path, (f"--config.corpus.vocab_file={tmp_path}/none.txt",)


def _unknown_key(tmp_path):
  return tmp_path / "a.txt", ("--config.masking.rat=0.2",)


def _wrong_type(tmp_path):
  return tmp_path / "a.txt", ("--config.corpus.vocab_size=many",)


def _wrong_value(tmp_path):
  return tmp_path / "a.txt", ("--config.corpus.eval_fraction=0.9",)


@pytest.mark.parametrize(
  ("make", "words"),
  [
    (_one_document, ["has 1 usable documents", "at least 4", "blank line"]),
    (_empty_file, ["no text in", "a.txt"]),
    (_empty_file_with_a_vocabulary, ["has 0 usable documents"]),
    (_not_utf8, ["a.txt is not UTF-8", "0xe9 at position 3 (line 1)"]),
    (_not_utf8_in_the_second_file, ["b.txt is not UTF-8", "position 12"]),
    (
      _fewer_examples_than_a_batch,
      ["phase1.batch_size is 512", "examples of length 32", "more text"],
    ),
    (_no_file, ["none*.txt", "matches no file"]),
    (_no_vocabulary_file, ["none.txt", "No such file"]),
    (_unknown_key, ["no key 'masking.rat'", "--config.masking.rate?"]),
    (_wrong_type, ["corpus.vocab_size", "many", "int"]),
    (_wrong_value, ["corpus.eval_fraction is 0.9", "less than 0.5"]),
  ],
)
def test_a_mistake_is_one_line_and_leaves_no_corpus(tmp_path, make, words):
  """Status 2, no traceback, no workdir unless token ids were written."""
  workdir = tmp_path / "workdir"
  (tmp_path / "in").mkdir()
  source, more = make(tmp_path / "in")
  status, _, errors = _run(_arguments(workdir, source, *more))
  assert status == 2
  assert errors.startswith("error: ")
  assert errors.count("\n") == 1
  for word in words:
    assert word in errors
  if make in (_one_document, _fewer_examples_than_a_batch):
    left = {path.name for path in workdir.iterdir()}
    assert left == {"corpus"}
    assert not (workdir / "corpus" / "manifest.json").exists()
  else:
    assert not workdir.exists()


def test_one_bad_row_keeps_the_work_and_can_be_skipped(tmp_path):
  """In the last of two files, after many chunks; skipped, named, counted."""
  letters = [c + chr(n) for n in range(97, 123) for c in ("", "##")]
  vocab = [*SPECIAL_TOKENS, *letters, *map(str, range(10))]
  (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
  (tmp_path / "in").mkdir()
  _write_documents(tmp_path / "in" / "a.txt", texts.make_documents(100, 20))
  (tmp_path / "in" / "b.jsonl").write_text(
    '{"text": "a b c"}\n{"text": null}\n'
  )
  arguments = _arguments(
    tmp_path / "w",
    tmp_path / "in" / "*",
    f"--config.corpus.vocab_file={tmp_path}/vocab.txt",
  )
  code = _SMALL_CHUNKS.format(chunk_bytes=5000, pool_bytes=10**12)
  status, _, errors = _run(arguments, code)
  assert (status, errors.count("\n")) == (2, 1)
  assert "b.jsonl line 2 has no text" in errors and "skip_bad_rows" in errors
  assert _num_chunks(tmp_path / "w") > 10
  arguments.append("--config.corpus.skip_bad_rows=True")
  status, output, errors = _run(arguments, code)
  assert (status, errors) == (0, "")
  assert "continuing in" in output
  assert output.count("skipped: ") == output.count("b.jsonl line 2") == 1
  assert "1 rows skipped" in output
  files = _files(tmp_path / "w" / "corpus")
  arguments[1] = f"--workdir={tmp_path / 'anew'}"
  assert _run(arguments, code)[0] == 0
  assert _files(tmp_path / "anew" / "corpus") == files


def test_a_missing_config_file_is_named(tmp_path):
  """Whether or not one of its settings is overridden."""
  for more in ((), ("--config.corpus.vocab_size=200",)):
    arguments = ["--config=configs/none.py", f"--workdir={tmp_path}", *more]
    status, _, errors = _run(arguments)
    assert status == 2
    assert errors.startswith("error: --config")
    assert "configs/none.py" in errors and "configs/bert_base.py" in errors
    assert errors.count("\n") == 1


def test_an_empty_file_beside_a_good_one_is_named_once(tmp_path):
  texts.write_text(tmp_path / "good.txt", texts.make_documents(40, 12))
  (tmp_path / "empty.txt").write_text("\n \n")
  source = tmp_path / "*.txt"
  status, output, errors = _run(_arguments(tmp_path / "w", source))
  assert (status, errors) == (0, "")
  line = f"corpus: {tmp_path}/empty.txt holds no text; skipped\n"
  assert output.count("holds no text") == output.count(line) == 1
  assert (tmp_path / "w" / "corpus" / "manifest.json").exists()


def test_a_given_vocabulary_is_taken_as_it_is(tmp_path, source):
  vocab = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  vocab += ["zzz", "the", "river", "##s", *map(chr, range(97, 123))]
  (tmp_path / "mine.txt").write_text("\n".join(vocab) + "\n")
  flag = f"--config.corpus.vocab_file={tmp_path}/mine.txt"
  status, output, errors = _run(_arguments(tmp_path / "w", source, flag))
  assert (status, errors) == (0, "")
  assert "counting words" not in output
  content = (tmp_path / "mine.txt").read_bytes()
  assert (tmp_path / "w" / "vocab.txt").read_bytes() == content
  assert corpus_lib.open_corpus(tmp_path / "w" / "corpus").vocab == vocab


def _config(source, **settings):
  config = config_lib.default_config()
  config.update_from_flattened_dict(SETTINGS | settings)
  config.corpus.source = str(source)
  config.phase1.num_steps = 1000
  config.phase2.num_steps = 100
  return config


def _recount(documents, vocab):
  """Counts what a corpus of these documents holds, one token at a time.

  Returns:
    (Counter, {hash of a document: its tokens}).
  """
  tokenizer = create_tokenizer(vocab, lowercase=True)
  found = collections.Counter()
  lengths = {}
  for document in documents:
    tokens = 0
    sentences = 0
    ids = []
    for line in document.split("\n"):
      for sentence in sentencex.segment("en", line):
        encoded = tokenizer.encode(sentence, add_special_tokens=False)
        pieces = encoded.tokens
        ids += encoded.ids
        sentences += bool(pieces)
        tokens += len(pieces)
        found["words"] += sum(not p.startswith("##") for p in pieces)
        found["unknown"] += pieces.count("[UNK]")
        found["lost"] += sum(
          end - start
          for (start, end), piece in zip(encoded.offsets, pieces, strict=True)
          if piece == "[UNK]"
        )
    found["sentences"] += sentences
    found["tokens"] += tokens
    lengths[hash_tokens(np.array(ids, np.uint16).tobytes())] = tokens
  return found, lengths


def test_every_number_of_the_report_is_right(tmp_path, capsys):
  """Against a recount that knows neither shards nor memos."""
  documents = texts.make_documents(150, 6)
  documents += ["A caf\u00e9 \u6f22.\nUnheard-of w\u00f6rds, 1,000! So?"]
  usable = list(documents)
  documents[50:50] = [documents[3], "x", documents[4], documents[3], "!"]
  path = _write_documents(tmp_path / "a.txt", documents)
  # A vocabulary that lacks characters, so that something is unknown.
  letters = map(chr, [*range(97, 120), *range(48, 58), 46, 44])
  vocab = [*SPECIAL_TOKENS, "the", "river"]
  vocab += [piece for c in letters for piece in (c, "##" + c)]
  (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n")
  config = _config(path, **{"corpus.vocab_file": str(tmp_path / "vocab.txt")})
  directory = prepare_lib.prepare(config, tmp_path / "w")
  printed = capsys.readouterr().out
  report = json.loads((directory / "report.json").read_text())

  lost = _recount(documents, vocab)[0]["lost"]
  found, lengths = _recount(usable, vocab)
  held_out = sorted(lengths)[: sum(h < 0.1 * 2**64 for h in lengths)]
  expected = {
    "num_documents": len(usable),
    "num_duplicate_documents": 3,
    "num_near_duplicates_dropped": 0,
    "num_short_documents": 2,
    "num_skipped_rows": 0,
    "num_text_bytes": sum(len(d.encode()) for d in documents),
    "num_characters": sum(len("".join(d.split())) for d in documents),
    "num_lost_characters": lost,
    "lost_characters_rate": pytest.approx(
      lost / sum(len("".join(d.split())) for d in documents)
    ),
    "num_spelled_special_tokens": 0,
    "num_lines": sum(d.count("\n") + 1 for d in documents),
    "num_wrapped_lines": 0,
    "held_out_token_rate": pytest.approx(
      sum(lengths[h] for h in held_out) / found["tokens"]
    ),
    "num_compared_documents": len(usable),
    "num_compared_held_out": len(held_out),
    "num_sentences": found["sentences"],
    "num_words": found["words"],
    "num_tokens": found["tokens"],
    "vocab_size": len(vocab),
    "tokens_per_word": pytest.approx(found["tokens"] / found["words"]),
    "unknown_rate": pytest.approx(found["unknown"] / found["tokens"]),
    "num_held_out_documents": len(held_out),
  }
  assert {name: report[name] for name in expected} == expected
  assert found["unknown"] > 0
  corpus = corpus_lib.open_corpus(directory)
  training, _ = corpus_lib.split_documents(corpus.documents, 0.1)
  for number, name in enumerate(("phase1", "phase2"), start=1):
    phase = report[name]
    length = config[name].max_seq_length
    assert phase["max_seq_length"] == length
    tokens = [
      max(n, length - 3) for h, n in lengths.items() if h not in held_out
    ]
    assert phase["examples_per_pass"] == -(-sum(tokens) // (length - 3))
    seen = config[name].num_steps * config[name].batch_size
    assert phase["predicted_passes"] == seen / phase["examples_per_pass"]
    examples = Examples(corpus, training, length, config.seed, number)
    batch = examples.batch(np.arange(20_000))
    labels = batch["next_sentence_labels"]
    assert phase["not_next_rate"] == pytest.approx(labels.mean())
    assert abs(phase["not_next_rate"] - 0.5) < 3 * 0.5 / np.sqrt(20_000)
    is_short = examples.pairs(np.arange(20_000)).is_short
    fill = batch["length"][~is_short].mean() / length
    assert phase["fill"] == pytest.approx(fill)
    assert f"{name} at length {length}" in printed
  for number in (len(usable), found["sentences"], found["words"]):
    assert f"{number:,} " in printed


def test_a_phase_that_is_off_is_not_reported(tmp_path):
  path = tmp_path / "a.txt"
  texts.write_text(path, texts.make_documents(60, 6))
  config = _config(path)
  config.phase2.num_steps = 0
  directory = prepare_lib.prepare(config, tmp_path / "w")
  report = json.loads((directory / "report.json").read_text())
  assert "phase1" in report and "phase2" not in report


def test_a_corpus_folder_of_its_own_serves_many_runs(tmp_path, capsys):
  path = tmp_path / "a.txt"
  texts.write_text(path, texts.make_documents(60, 6))
  config = _config(path, **{"corpus.dir": str(tmp_path / "shared")})
  for name in ("first", "second"):
    directory = prepare_lib.prepare(config, tmp_path / name)
    assert directory == tmp_path / "shared"
    vocab = (directory / "vocab.txt").read_bytes()
    assert (tmp_path / name / "vocab.txt").read_bytes() == vocab
  assert "is prepared already" in capsys.readouterr().out


def test_a_finished_corpus_needs_its_text_no_more(tmp_path, capsys):
  """Other settings are refused all the same, and so is other text."""
  path, other = tmp_path / "a.txt", tmp_path / "b.txt"
  texts.write_text(path, texts.make_documents(60, 6))
  config = _config(path, **{"corpus.dir": str(tmp_path / "shared")})
  prepare_lib.prepare(config, tmp_path / "run")
  path.rename(other)
  prepare_lib.prepare(config, tmp_path / "run")
  assert "is prepared already" in capsys.readouterr().out
  config.corpus.lowercase = False
  with pytest.raises(UserError, match="lowercase was True, now False"):
    prepare_lib.prepare(config, tmp_path / "run")
  config.corpus.lowercase = True
  config.corpus.source = str(other)
  with pytest.raises(UserError, match=r"another source: .*a.txt.*b.txt"):
    prepare_lib.prepare(config, tmp_path / "run")


def test_two_workdirs_that_prepare_one_folder_take_turns(tmp_path, source):
  shared = f"--config.corpus.dir={tmp_path / 'shared'}"
  code = _SMALL_CHUNKS.format(chunk_bytes=2000, pool_bytes=10**12)
  processes = [
    _start(_arguments(tmp_path / name, source, shared), code)
    for name in ("first", "second")
  ]
  outputs = sorted(process.communicate(timeout=240) for process in processes)
  assert [process.returncode for process in processes] == [0, 0], outputs
  written, found = sorted((output for output, _ in outputs), key=len)[::-1]
  assert "documents" in written
  assert found == f"corpus: {tmp_path / 'shared'} is prepared already\n"
  opened = corpus_lib.open_corpus(tmp_path / "shared")
  assert opened.manifest["num_documents"] == 800


def test_text_that_was_added_is_told(tmp_path, capsys):
  """The corpus that is there is used, and how to make another one is said."""
  texts.write_text(tmp_path / "a.txt", texts.make_documents(60, 6))
  config = _config(tmp_path / "*.txt")
  prepare_lib.prepare(config, tmp_path / "w")
  prepare_lib.prepare(config, tmp_path / "w")
  assert "have changed since" not in capsys.readouterr().out
  texts.write_text(tmp_path / "b.txt", texts.make_documents(3, 6, seed=1))
  prepare_lib.prepare(config, tmp_path / "w")
  printed = capsys.readouterr().out
  assert "have changed since" in printed
  assert f"delete {tmp_path}/w/corpus" in printed


def _prepared(tmp_path, documents, **settings):
  """Returns (corpus, report) of some documents."""
  path = _write_documents(tmp_path / "a.txt", documents)
  config = _config(path, **settings)
  directory = prepare_lib.prepare(config, tmp_path / "w")
  report = json.loads((directory / "report.json").read_text())
  return corpus_lib.open_corpus(directory), report


def _vary(documents):
  """Returns documents that say the same with other spaces, case and lines."""
  return [
    change(document)
    for number, document in enumerate(documents)
    for change in [
      (
        str.upper,
        lambda d: d.replace(" ", "  "),
        lambda d: d.replace("\n", " "),
      )[number % 3]
    ]
  ]


def test_the_same_document_is_never_on_both_sides(tmp_path):
  """Written in another way, it is a duplicate and stored once."""
  documents = texts.make_documents(200, 12)
  settings = {"corpus.eval_fraction": 0.3}
  corpus, report = _prepared(
    tmp_path, [*documents, *_vary(documents)], **settings
  )
  assert report["num_documents"] == 200
  assert report["num_duplicate_documents"] == 200
  assert any("copies of others" in w for w in report["warnings"])
  assert len(corpus.tokens) == report["num_tokens"]


def _with_twins(num_documents, num_twins):
  """Returns documents, and copies of some with one sentence more."""
  documents = texts.make_documents(num_documents, 20)
  twins = [d + f"\nThe end of page {i}." for i, d in enumerate(documents)]
  return [*documents, *twins[:num_twins]]


@pytest.mark.parametrize("near_duplicates", ["report", "drop"])
def test_near_duplicates_are_counted_or_dropped(tmp_path, near_duplicates):
  settings = {
    "corpus.near_duplicates": near_duplicates,
    "corpus.eval_fraction": 0.2,
  }
  _, report = _prepared(tmp_path, _with_twins(150, 60), **settings)
  drops = near_duplicates == "drop"
  assert report["num_documents"] == (150 if drops else 210)
  assert report["num_near_duplicates_dropped"] == (60 if drops else 0)
  assert report["num_near_duplicates"] == (0 if drops else 60)
  # Of 60 pairs, 2 x 0.2 x 0.8 stand on two sides.
  assert report["num_leaked"] == 0 if drops else 8 < report["num_leaked"] < 32
  told = [w for w in report["warnings"] if "near_duplicates=drop" in w]
  assert bool(told) is not drops


def _wrap(document):
  return "\n".join(textwrap.wrap(document.replace("\n", " "), 70))


@pytest.mark.parametrize(
  ("documents", "settings", "words"),
  [
    (["Yes, no."] + [f"Word {i}." for i in range(999)], {}, ["phase1 fills"]),
    (list(map(_wrap, texts.make_documents(90, 20))), {}, ["join_lines=True"]),
    (
      [d + " \u6f22\u5b57" * 9 for d in texts.make_documents(90, 20)],
      {"corpus.vocab_size": 100},
      [],
    ),
    (
      ["\u0e01\u0e32" * 60 + f" {d}" for d in texts.make_documents(90, 20)],
      {},
      ["characters are lost", "split_long_words=True"],
    ),
    (texts.make_documents(4, 400), {}, ["tokens are held out"]),
    (texts.make_documents(90, 20), {}, []),
  ],
)
def test_the_report_warns_of_a_bad_corpus(tmp_path, documents, settings, words):
  _, report = _prepared(tmp_path, documents, **settings)
  for word in words:
    assert any(word in warning for warning in report["warnings"])
  if not words:
    assert report["warnings"] == []


def test_wrapped_text_that_is_joined_is_no_more_warned_of(tmp_path):
  documents = texts.make_documents(90, 20)
  _, plain = _prepared(tmp_path, [d.replace("\n", " ") for d in documents])
  (tmp_path / "wrapped").mkdir()
  _, joined = _prepared(
    tmp_path / "wrapped",
    list(map(_wrap, documents)),
    **{"corpus.join_lines": True},
  )
  assert joined["warnings"] == []
  assert joined["num_sentences"] == plain["num_sentences"]
  assert joined["num_tokens"] == plain["num_tokens"]


def test_sources_are_counted_and_weighed(tmp_path):
  """A weight changes what is trained on, and no byte of the corpus."""
  texts.write_text(tmp_path / "a.txt", texts.make_documents(100, 20))
  texts.write_text(tmp_path / "b.txt", texts.make_documents(50, 20, seed=1))
  config = _config(f"{tmp_path}/a.txt,{tmp_path}/b.txt@de*3")
  directory = prepare_lib.prepare(config, tmp_path / "w")
  report = json.loads((directory / "report.json").read_text())
  first, second = report["sources"]
  assert (first["num_documents"], second["num_documents"]) == (100, 50)
  assert (first["language"], second["language"]) == ("en", "de")
  assert (first["weight"], second["weight"]) == (1, 3)
  tokens = [
    s["num_tokens"] - s["num_held_out_tokens"] for s in report["sources"]
  ]
  corpus = corpus_lib.open_corpus(directory)
  trained = mixing.training_documents(config.corpus, corpus)
  assert trained["num_tokens"].sum() == tokens[0] + 3 * tokens[1]
  config.corpus.language_smoothing = 0.5
  weights = mixing.source_weights(config.corpus, corpus, corpus.documents)
  share = second["num_tokens"] / first["num_tokens"]
  assert weights == pytest.approx([1, 3 * share**-0.5])
  # Another weight is no other corpus.
  config.corpus.source = f"{tmp_path}/a.txt*2,{tmp_path}/b.txt@de"
  prepare_lib.prepare(config, tmp_path / "w")


def test_words_are_counted_all_over_a_large_corpus(tmp_path, monkeypatch):
  """With room for a tenth of the text: every tenth chunk of it."""
  words = [f"w{i}" for i in range(1000)]
  path = _write_documents(tmp_path / "a.txt", words)
  monkeypatch.setattr(chunks, "CHUNK_BYTES", 40)
  monkeypatch.setattr(
    prepare_lib, "VOCABULARY_BYTES", path.stat().st_size // 10 + 1
  )
  config = _config(path)
  found = prepare_lib.spec.open_sources(config.corpus)
  counts = prepare_lib._count_words(config.corpus, found)
  seen = [int(word[1:]) for word in counts]
  assert 80 < len(seen) < 120
  assert np.histogram(seen, 5, (0, 1000))[0].min() > 10


@pytest.mark.parametrize(
  ("num_files", "num_read"), [((400, 40), (200, 20)), ((400, 20), (400, 20))]
)
def test_of_many_files_some_are_read_for_the_vocabulary(num_files, num_read):
  """Of each entry the same share, and 16 files at least."""
  found = [
    Source(f"{group} {number}", 1, 1, None, group)
    for group, count in enumerate(num_files)
    for number in range(count)
  ]
  sampled = chunks.sample_files(found, 9)
  assert set(sampled) <= set(found)
  groups = [source.group for source in sampled]
  assert tuple(groups.count(group) for group in (0, 1)) == num_read
  assert chunks.sample_files(found, 0) == found
