"""Sentence splitting, by the library that does best in each language.

sentencex (rules, 100 MB/s) serves all languages but Thai. Thai marks the end of
a sentence by a space, as it does clauses, and so needs a trained model
(pythainlp's crfcut, 0.03 MB/s, `pip install bert_jax[thai]`).
"""

import functools
import re

import sentencex

from bert_jax.errors import UserError

# Languages with rules of their own in sentencex, and languages that its general
# rules serve: . ! ? and their counterparts in the language's script.
_OWN_RULES = (
  "am ar bg bn ca da de el en es fi gu hi hy it ja kk kn ml mr my nl pa pl pt "
  "ru sk ta te uk"
)
_GENERAL_RULES = (
  "af az be bs cs cy eo et eu fa fr ga gl he hr hu id is ka km ko la lo lt lv "
  "mk ms mt nb ne nn no ro si sl sq sr sv sw th tl tr und ur uz vi yo zh"
)
LANGUAGES = tuple(sorted(f"{_OWN_RULES} {_GENERAL_RULES}".split()))
# Only the English rules know that the French initial of "J. Martin", and "M.",
# end no sentence.
_RULES_OF = {"fr": "en", "und": "en"}
# Languages that write ordinal numbers with a period: "21. Oktober".
_ORDINALS = "bs cs da de et fi hr hu is lv nb nn no pl sk sl sr tr"
# Of a sentence's last characters, with a space before it.
_TAIL_CHARS = 6
_ENDS_IN_ORDINAL = re.compile(r"[\s(]\d{1,2}\.$")
_ENDS_IN_INITIAL_OR_NUMBER = re.compile(
  r"[\s.(](?:[^\W\d_a-z]|Vol|Nr|Fig|pp)\.$"
)
# An opening quotation mark or bracket belongs to the sentence that follows.
_OPENING = "\u201c\u201e\u00ab\u2018(["


def check_language(key, language):
  """Raises UserError unless sentences of a language can be split.

  Args:
    key: the setting, for the message.
    language: ISO 639 code.
  """
  if language not in LANGUAGES:
    raise UserError(
      f"{key} is {language!r}; expected an ISO 639 code among "
      f"{', '.join(LANGUAGES)} (und: any other language that ends sentences "
      "with . ! ?)"
    )


@functools.lru_cache
def create_splitter(language):
  """Returns a function that splits a line into sentences.

  Args:
    language: one of `LANGUAGES`.

  Returns:
    function of a str; returns a list of str, which joined give the line.

  Raises:
    UserError: the language needs a package that is not installed.
  """
  if language == "th":
    return _thai_splitter()
  rules = _RULES_OF.get(language, language)
  has_ordinals = language in _ORDINALS.split()

  def split(line):
    parts = sentencex.segment(rules, line)
    return _mend(parts, has_ordinals) if len(parts) > 1 else parts

  return split


def _mend(parts, has_ordinals):
  """Mends boundaries that the rules of sentencex place within a sentence."""
  sentences, begun = [], ""
  for part in parts:
    begun += part
    end = begun.rstrip()
    tail = f" {end}"[-_TAIL_CHARS:]
    if tail[-1] == "." and _goes_on(tail, has_ordinals):
      continue
    if tail[-1] in _OPENING and tail[-2].isspace() and len(end) > 1:
      sentences.append(begun[: len(end) - 1])
      begun = begun[len(end) - 1 :]
      continue
    sentences.append(begun)
    begun = ""
  return [*sentences, begun] if begun else sentences


def _goes_on(tail, has_ordinals):
  """Returns whether a period is no sentence's end, from what precedes it."""
  if has_ordinals and _ENDS_IN_ORDINAL.search(tail):
    return True
  return bool(_ENDS_IN_INITIAL_OR_NUMBER.search(tail))


def _thai_splitter():
  try:
    from pythainlp import sent_tokenize
  except ImportError:
    raise UserError(
      "corpus.language is 'th', which needs the package pythainlp; expected "
      "it to be installed (pip install 'bert_jax[thai]'), or "
      "--config.corpus.language=und"
    ) from None

  def split(line):
    return sent_tokenize(line, engine="crfcut") if line else []

  return split
