"""A WordPiece vocabulary, trained with sentencepiece on BERT's words.

sentencepiece's BPE sees the words as BERT's tokenizer cuts them (lower-cased,
accents stripped, punctuation apart) with their counts, and its pieces are
rewritten: what starts a word stays, what continues one gets "##".
BPE reaches long pieces through shorter ones, which WordPiece's longest match
may never use: pieces that no training word is cut into are replaced by later
ones.
"""

import collections
import io
import os
import tempfile

import sentencepiece
from tokenizers import models

from bert_jax.config import MAX_VOCAB_SIZE
from bert_jax.data.tokenization import (
  MAX_WORD_CHARS,
  SPECIAL_TOKENS,
  create_text_tokenizer,
  split_plain,
  split_words,
)
from bert_jax.errors import UserError
from bert_jax.storage import paths

# Above this share of the vocabulary, the rarest characters are left out and
# become [UNK]: a text with every Chinese character must still have words.
# Where the text yields too few pieces, they come back.
MAX_ALPHABET_SHARE = 0.3
# BPE pieces to train for each one wanted: 7 to 9 % turn out unused.
_SPARE_PIECES = 1.2
# Rounds of dropping unused pieces; new pieces can make older ones unused.
_MAX_ROUNDS = 8
# Of sentencepiece's own in a model: unknown, start, end and the space.
_OTHER_PIECES = 4
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


def normalize_counts(counts, rules):
  """Turns counts of raw words into counts of BERT's words.

  Args:
    counts: Counter of space-separated words.
    rules: `WordRules`.

  Returns:
    Counter of normalised words without spaces or joined punctuation, none of
    them over `MAX_WORD_CHARS`.
  """
  tokenizer = create_text_tokenizer(SPECIAL_TOKENS, rules)
  by_count = collections.defaultdict(list)
  words = collections.Counter()
  for word, count in counts.items():
    parts = split_plain(word) if len(word) <= MAX_WORD_CHARS else None
    if parts is None:
      by_count[count].append(word)
      continue
    for part in parts:
      words[part.lower() if rules.lowercase else part] += count
  # Words of one count go through the tokenizer together: one call, one count.
  for count, group in by_count.items():
    for start in range(0, len(group), _WORDS_PER_CALL):
      raw = " ".join(group[start : start + _WORDS_PER_CALL])
      for word in split_words(tokenizer, rules, raw):
        if len(word) <= MAX_WORD_CHARS:
          words[word] += count
  return words


def train_vocabulary(words, vocab_size):
  """Trains a WordPiece vocabulary of `vocab_size` entries.

  Special tokens come first, then the characters that start words ("a"), then
  those that continue words ("##a"), then pieces in the order in which
  sentencepiece found them, without those that no word uses.

  Args:
    words: Counter of normalised words.
    vocab_size: number of entries wanted.

  Returns:
    (list of at most `vocab_size` tokens, list of characters left out). There
    are fewer tokens where the text yields no more.
  """
  counts = collections.Counter()
  forms = collections.defaultdict(set)
  for word, count in words.items():
    for position, character in enumerate(word):
      counts[character] += count
      forms[character].add("##" + character if position else character)
  ranked = sorted(counts, key=lambda c: (-counts[c], c))
  num_kept = _num_that_fit(ranked, forms, int(MAX_ALPHABET_SHARE * vocab_size))
  known = frozenset(ranked[:num_kept])
  trainable = {w: n for w, n in words.items() if known.issuperset(w)}
  characters = _character_tokens(known, forms)
  room = vocab_size - len(SPECIAL_TOKENS) - len(characters)
  pieces = _used_pieces(trainable, characters, room)
  # Entries that the pieces leave free go to the next most frequent characters.
  room -= len(pieces)
  num_kept += _num_that_fit(ranked[num_kept:], forms, room)
  characters = _character_tokens(ranked[:num_kept], forms)
  return [*SPECIAL_TOKENS, *characters, *pieces], sorted(ranked[num_kept:])


def _num_that_fit(characters, forms, room):
  """Returns how many of some characters have room for all of their tokens."""
  for number, character in enumerate(characters):
    room -= len(forms[character])
    if room < 0:
      return number
  return len(characters)


def _character_tokens(characters, forms):
  """Returns the tokens of characters, those that start words first."""
  tokens = [token for c in characters for token in forms[c]]
  return sorted(tokens, key=lambda token: (token.startswith("##"), token))


def _used_pieces(words, characters, num_pieces, spare=_SPARE_PIECES):
  """Returns BPE pieces that WordPiece's longest match uses on these words.

  Args:
    words: dict of word to count; every character is among `characters`.
    characters: list of tokens of single characters, always kept.
    num_pieces: how many to return at most.
    spare: BPE pieces to train for each of `num_pieces`.

  Returns:
    list of tokens, best first.
  """
  asked = len(characters) + int(spare * num_pieces) + 1
  is_character = frozenset(characters)
  found = _bpe_pieces(words, asked)
  waiting = [p for p in dict.fromkeys(found) if p not in is_character]
  kept, waiting = waiting[:num_pieces], waiting[num_pieces:]
  for _ in range(_MAX_ROUNDS):
    used = _find_used([*characters, *kept], words)
    kept = [piece for piece in kept if piece in used]
    missing = num_pieces - len(kept)
    if not missing or not waiting:
      break
    kept, waiting = kept + waiting[:missing], waiting[missing:]
  if len(kept) < num_pieces and len(found) >= asked - _OTHER_PIECES:
    return _used_pieces(words, characters, num_pieces, spare=1.5 * spare)
  return kept


def _find_used(tokens, words):
  """Returns the set of tokens that WordPiece cuts some words into."""
  vocab = {token: i for i, token in enumerate(["[UNK]", *tokens])}
  model = models.WordPiece(
    vocab, unk_token="[UNK]", max_input_chars_per_word=MAX_WORD_CHARS
  )
  used = set()
  for word in words:
    used.update(token.value for token in model.tokenize(word))
  return used


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
