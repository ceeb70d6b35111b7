"""Sentences end where a reader ends them, in many languages."""

import pytest

from bert_jax.data import sentences
from bert_jax.errors import UserError

# Each string is one sentence; the splitter gets them joined.
CASES = {
  "en": [
    "Ms. Smith met Mrs. Jones, Prof. Lee and J. R. Tolkien.",
    'He said, "Stay here."',
    "The U.S. team (Acme Inc. of Ohio) won at 5 p.m. on Jan. 3.",
    "Vol. 3 is out!",
    "\u201cGo,\u201d she said.",
    "Why?",
  ],
  "de": [
    "Er kam am 21. Oktober nach Wien.",
    "Der 2. Weltkrieg endete 1945.",
    "Dr. M\u00fcller wohnt z. B. in der Bahnhofstr. 5 gern.",
    "Ludwig XIV. regierte lange.",
    "Sie sagte: \u201eKomm her!\u201c",
  ],
  "fr": [
    "Le livre de J. Martin est bon.",
    "M. Dupont et Mme Curie l\u2019aiment.",
    "Il dit : \u00ab Viens ici. \u00bb",
    "Pourquoi ?",
  ],
  "fi": ["H\u00e4n syntyi 3. tammikuuta 1950.", "H\u00e4n kuoli."],
  "tr": ["19. y\u00fczy\u0131lda geldi.", "Prof. Dr. Ay\u015fe gitti."],
  "hi": [
    "\u092f\u0939 \u090f\u0915 \u0939\u0948\u0964",
    "\u0939\u093e\u0901\u0964",
  ],
  "zh": [
    "\u8fd9\u662f\u7b2c\u4e00\u53e5\u3002",
    "\u771f\u7684\u5417\uff1f",
    "\u662f\u7684\uff01",
  ],
  "ja": [
    "\u3053\u308c\u306f\u30da\u30f3\u3067\u3059\u3002",
    "\u305d\u3046\u3060\uff01",
  ],
  "ru": [
    "\u0410. \u0421. \u041f\u0443\u0448\u043a\u0438\u043d"
    " \u043f\u0438\u0441\u0430\u043b.",
    "\u041e\u043d \u0436\u0438\u043b.",
  ],
  "und": ["Iste ego sum.", "Quis es?"],
}
# A Thai sentence ends with a space, as a clause may.
THAI = [
  "\u0e1c\u0e21\u0e44\u0e1b\u0e42\u0e23\u0e07\u0e40\u0e23\u0e35\u0e22\u0e19\u0e17\u0e38\u0e01\u0e27\u0e31\u0e19",
  "\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49\u0e1d\u0e19\u0e15\u0e01\u0e2b\u0e19\u0e31\u0e01\u0e21\u0e32\u0e01",
]


@pytest.mark.parametrize("language", CASES)
def test_sentences_are_those_of_a_reader(language):
  space = "" if language in ("zh", "ja") else " "
  expected = CASES[language]
  found = sentences.create_splitter(language)(space.join(expected))
  assert [sentence.strip() for sentence in found] == expected
  assert "".join(found) == space.join(expected)


def test_thai_is_split_by_a_trained_model():
  found = sentences.create_splitter("th")(" ".join(THAI))
  assert [sentence.strip() for sentence in found] == THAI
  assert sentences.create_splitter("th")("") == []


@pytest.mark.parametrize(
  "language", [code for code in sentences.LANGUAGES if code != "th"]
)
def test_no_language_loses_a_character(language):
  """Whatever precedes a break: numbers, initials, opening quotes, nothing."""
  split = sentences.create_splitter(language)
  for text in (
    "",
    " ",
    ".",
    "A. 3. (\u201e",
    'He left. \u201c Then " he came. \u201e',
    "Ein 3. Mai. X. [ Y. \u00ab",
    "  a.  B.  ",
  ):
    assert "".join(split(text)) == text


def test_an_opening_quotation_mark_goes_to_the_sentence_that_follows():
  mended = sentences._mend(["He left. \u201c", "Stay."], False)
  assert mended == ["He left. ", "\u201cStay."]


def test_an_unknown_language_lists_the_known_ones():
  with pytest.raises(UserError, match="'klingon'") as e:
    sentences.check_language("corpus.language", "klingon")
  message = str(e.value)
  assert "\n" not in message
  assert all(f"{language}," in message for language in ("de", "en", "th"))
