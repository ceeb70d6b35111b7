"""Small JSON files of a run tell that they are damaged."""

import json

import pytest
from etils import epath

from bert_jax.errors import UserError
from bert_jax.storage import files

CONTENT = {"rate": 1e-4, "sizes": [128, 512], "text": "a.txt"}


@pytest.fixture(name="path")
def _path(tmp_path):
  path = epath.Path(tmp_path) / "x.json"
  files.save_json(path, CONTENT)
  return path


def test_what_was_saved_is_loaded(path):
  assert files.load_json(path, "mend it") == CONTENT


def test_every_digit_and_letter_that_changes_is_noticed(path):
  text = path.read_text()
  for index, letter in enumerate(text):
    if letter.isalnum():
      changed = text[:index] + chr(ord(letter) ^ 1) + text[index + 1 :]
      path.write_text(changed)
      try:
        found = files.load_json(path, "mend it")
      except UserError as e:
        assert "x.json is damaged" in str(e) and "\n" not in str(e)
      else:  # without its checksum: the key changed its name
        assert found.keys() - CONTENT.keys(), index


def test_a_file_written_by_hand_is_taken_as_it_is(path):
  path.write_text(json.dumps(CONTENT))
  assert files.load_json(path, "mend it") == CONTENT
