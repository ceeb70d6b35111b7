"""The prepare command as users meet it: kills, bad text, and its report."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import sentencex

from bert_jax import config as config_lib
from bert_jax.data import corpus as corpus_lib
from bert_jax.data import preparation as prepare_lib
from bert_jax.data.encoding import hash_text
from bert_jax.data.examples import Examples
from bert_jax.data.tokenization import SPECIAL_TOKENS, create_tokenizer
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
from bert_jax.data import preparation
preparation.CHUNK_BYTES = {chunk_bytes}
preparation._POOL_BYTES = {pool_bytes}
command.define_config_flags()
command.define_init_flags()
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
  return {path.name: path.read_bytes() for path in directory.iterdir()}


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
  [(10**12, (None, 0, 1)), (10**12, (30, 90)), (0, (0, 30, 90))],
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


def _too_large_a_vocabulary(tmp_path):
  path = _write_documents(tmp_path / "a.txt", texts.make_documents(40, 4))
  return path, ("--config.corpus.vocab_size=9000",)


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
    (_too_large_a_vocabulary, ["vocab_size is 9000", "yields only"]),
    (_no_file, ["none*.txt", "matches no file"]),
    (_no_vocabulary_file, ["none.txt", "No such file"]),
    (_unknown_key, ["no key 'masking.rat'", "--config.masking.rate?"]),
    (_wrong_type, ["corpus.vocab_size", "many", "int"]),
    (_wrong_value, ["corpus.eval_fraction is 0.9", "less than 0.5"]),
  ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, make, words):
  """Status 2, no traceback, no corpus, no workdir."""
  workdir = tmp_path / "workdir"
  (tmp_path / "in").mkdir()
  source, more = make(tmp_path / "in")
  status, _, errors = _run(_arguments(workdir, source, *more))
  assert status == 2
  assert errors.startswith("error: ")
  assert errors.count("\n") == 1
  for word in words:
    assert word in errors
  assert not workdir.exists()


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
  """Counts what a corpus of these documents holds, one token at a time."""
  tokenizer = create_tokenizer(vocab, lowercase=True)
  found = collections.Counter()
  lengths = {}
  for document in documents:
    tokens = 0
    sentences = 0
    for line in document.split("\n"):
      for sentence in sentencex.segment("en", line):
        pieces = tokenizer.encode(sentence, add_special_tokens=False).tokens
        sentences += bool(pieces)
        tokens += len(pieces)
        found["words"] += sum(not p.startswith("##") for p in pieces)
        found["unknown"] += pieces.count("[UNK]")
    found["sentences"] += sentences
    found["tokens"] += tokens
    lengths[hash_text(document.encode())] = tokens
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

  found, lengths = _recount(usable, vocab)
  held_out = sorted(lengths)[: sum(h < 0.1 * 2**64 for h in lengths)]
  assert {k: v for k, v in report.items() if not k.startswith("phase")} == {
    "num_documents": len(usable),
    "num_duplicate_documents": 3,
    "num_short_documents": 2,
    "num_text_bytes": sum(len(d.encode()) for d in documents),
    "num_sentences": found["sentences"],
    "num_words": found["words"],
    "num_tokens": found["tokens"],
    "vocab_size": len(vocab),
    "tokens_per_word": pytest.approx(found["tokens"] / found["words"]),
    "unknown_rate": pytest.approx(found["unknown"] / found["tokens"]),
    "num_held_out_documents": len(held_out),
  }
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
    assert phase["examples_per_pass"] == sum(tokens) // (length - 3)
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


def test_words_are_counted_all_over_a_large_corpus(tmp_path, monkeypatch):
  """With room for a tenth of the text: every tenth chunk of it."""
  words = [f"w{i}" for i in range(1000)]
  path = _write_documents(tmp_path / "a.txt", words)
  monkeypatch.setattr(prepare_lib, "CHUNK_BYTES", 40)
  monkeypatch.setattr(
    prepare_lib, "VOCABULARY_BYTES", path.stat().st_size // 10 + 1
  )
  config = _config(path)
  found = prepare_lib.sources.open_sources(config.corpus)
  counts = prepare_lib._count_words(config.corpus, found)
  seen = [int(word[1:]) for word in counts]
  assert 80 < len(seen) < 120
  assert np.histogram(seen, 5, (0, 1000))[0].min() > 10
