"""A WordPiece vocabulary, trained with sentencepiece on BERT's words.

sentencepiece's BPE sees the words as BERT's tokenizer cuts them (lower-cased,
accents stripped, punctuation apart) with their counts, and its pieces are
rewritten: what starts a word stays, what continues one gets "##".
"""

import collections
import io
import os
import tempfile

import sentencepiece

from bert_jax.data.tokenization import (
  SPECIAL_TOKENS,
  create_tokenizer,
  split_plain,
)
from bert_jax.errors import UserError
from bert_jax.storage import paths

# WordPiece gives up on longer words (the original's max_input_chars_per_word).
MAX_WORD_CHARS = 100
MAX_VOCAB_SIZE = 65_536  # token ids take two bytes
# Above this share of the vocabulary, the rarest characters are left out and
# become [UNK]: a text with every Chinese character must still have words.
MAX_ALPHABET_SHARE = 0.3
_WORDS_PER_CALL = 100_000


def count_words(documents):
  """Counts the space-separated words of some documents, as they stand.

  Args:
    documents: iterable of str.

  Returns:
    collections.Counter of str.
  """
  counts = collections.Counter()
  for document in documents:
    counts.update(document.split())
  return counts


def normalize_counts(counts, lowercase):
  """Turns counts of raw words into counts of BERT's words.

  Args:
    counts: Counter of space-separated words.
    lowercase: whether to lower-case and strip accents.

  Returns:
    Counter of normalised words without spaces or joined punctuation.
  """
  tokenizer = create_tokenizer(SPECIAL_TOKENS, lowercase)
  by_count = collections.defaultdict(list)
  words = collections.Counter()
  for word, count in counts.items():
    parts = split_plain(word)
    if parts is None:
      by_count[count].append(word)
      continue
    for part in parts:
      if len(part) <= MAX_WORD_CHARS:
        words[part.lower() if lowercase else part] += count
  # Words of one count go through the tokenizer together: one call, one count.
  for count, group in by_count.items():
    for start in range(0, len(group), _WORDS_PER_CALL):
      raw = " ".join(group[start : start + _WORDS_PER_CALL])
      text = tokenizer.normalizer.normalize_str(raw)
      for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text):
        if len(word) <= MAX_WORD_CHARS:
          words[word] += count
  return words


def train_vocabulary(words, vocab_size):
  """Trains a WordPiece vocabulary of exactly `vocab_size` entries.

  Special tokens come first, then every character as start ("a") and as
  continuation ("##a"), then pieces in the order sentencepiece found them.

  Args:
    words: Counter of normalised words.
    vocab_size: number of entries wanted.

  Returns:
    (list of `vocab_size` tokens, list of characters left out).

  Raises:
    UserError: the text has too few different words for so many pieces.
  """
  characters = collections.Counter()
  for word, count in words.items():
    for character in word:
      characters[character] += count
  ranked = sorted(characters, key=lambda c: (-characters[c], c))
  room = int(MAX_ALPHABET_SHARE * vocab_size) // 2
  alphabet, left_out = sorted(ranked[:room]), sorted(ranked[room:])

  # Insertion order keeps the vocabulary's order and drops repetitions.
  vocab = dict.fromkeys(SPECIAL_TOKENS)
  vocab.update(dict.fromkeys(alphabet))
  vocab.update(dict.fromkeys("##" + c for c in alphabet))
  known = frozenset(alphabet)
  trainable = {w: n for w, n in words.items() if known.issuperset(w)}
  for piece in _bpe_pieces(trainable, vocab_size):
    if len(vocab) == vocab_size:
      break
    vocab[piece] = None
  if len(vocab) < vocab_size:
    raise UserError(
      f"corpus.vocab_size is {vocab_size}, but the text yields only "
      f"{len(vocab)} pieces; expected at most that (set "
      "--config.corpus.vocab_size)"
    )
  return list(vocab), left_out


def extend_vocabulary(vocab, words, num_pieces):
  """Adds the pieces of a text that a vocabulary lacks.

  They are sentencepiece's, the most frequent first, but for those with
  characters that the vocabulary can't spell.

  Args:
    vocab: list of tokens.
    words: Counter of normalised words.
    num_pieces: number of entries to add.

  Returns:
    list of tokens: `vocab`, then `num_pieces` new ones.

  Raises:
    UserError: the text has too few pieces that are new.
  """
  ids = {token: i for i, token in enumerate(vocab)}
  # So many that only a text of few words could yield too few new ones.
  new = [
    piece
    for piece in dict.fromkeys(_bpe_pieces(words, len(vocab) + num_pieces))
    if piece not in ids and split_piece(piece, ids)
  ]
  if len(new) < num_pieces:
    raise UserError(
      f"--extend_vocab={num_pieces}, but the text yields only {len(new)} "
      "pieces that the vocabulary lacks; expected at most that"
    )
  return [*vocab, *new[:num_pieces]]


def split_piece(piece, ids):
  """Spells a piece with the tokens of a vocabulary, longest first.

  Args:
    piece: str, with "##" if it continues a word.
    ids: dict whose keys are the tokens.

  Returns:
    list of tokens as WordPiece finds them; None if there is no spelling.
  """
  prefix = "##" if piece.startswith("##") else ""
  rest, found = piece.removeprefix("##"), []
  while rest:
    ends = range(len(rest), 0, -1)
    end = next((e for e in ends if prefix + rest[:e] in ids), None)
    if end is None:
      return None
    found.append(prefix + rest[:end])
    rest, prefix = rest[end:], "##"
  return found


def _bpe_pieces(words, num_pieces):
  """Returns sentencepiece's BPE pieces in WordPiece spelling, best first."""
  if not words:
    return []
  with tempfile.NamedTemporaryFile("w", suffix=".tsv", encoding="utf-8") as f:
    f.writelines(f"{w}\t{words[w]}\n" for w in sorted(words))
    f.flush()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      input=f.name,
      input_format="tsv",
      model_writer=model,
      model_type="bpe",
      vocab_size=num_pieces,
      hard_vocab_limit=False,
      character_coverage=1.0,
      normalization_rule_name="identity",
      split_by_number=False,
      split_by_unicode_script=False,
      max_sentencepiece_length=32,
      num_threads=os.cpu_count(),
      minloglevel=2,
    )
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  pieces = []
  for i in range(processor.get_piece_size()):
    if processor.is_control(i) or processor.is_unknown(i):
      continue
    piece = processor.id_to_piece(i)
    start = piece.startswith("\u2581")
    text = piece.removeprefix("\u2581")
    if text:
      pieces.append(text if start else "##" + text)
  return pieces


def load_vocabulary(path):
  """Reads a vocab.txt: one token a line, the line number its id.

  Args:
    path: an `os.PathLike`; the file is UTF-8.

  Returns:
    list of tokens.

  Raises:
    UserError: a file that can't be read, missing special tokens, repeated
      tokens or too many of them.
  """
  try:
    text = paths.as_path(path).read_bytes().decode("utf-8")
    vocab = text.removesuffix("\n").replace("\r", "").split("\n")
  except (OSError, UnicodeDecodeError) as e:
    raise UserError(f"vocabulary {path} can't be read: {e}") from None
  missing = [token for token in SPECIAL_TOKENS if token not in vocab]
  if missing:
    raise UserError(
      f"{path} lacks {', '.join(missing)}; expected a WordPiece vocabulary, "
      "one token a line"
    )
  if len(vocab) > MAX_VOCAB_SIZE:
    raise UserError(
      f"{path} has {len(vocab)} tokens; expected at most {MAX_VOCAB_SIZE}"
    )
  if len(set(vocab)) < len(vocab):
    repeated = collections.Counter(vocab).most_common(1)[0][0]
    raise UserError(f"{path} lists {repeated!r} more than once")
  return vocab


def save_vocabulary(path, vocab):
  """Writes `vocab` as a vocab.txt."""
  text = "".join(token + "\n" for token in vocab)
  paths.write_file(path, text)
