"""A run's settings: older ones are read, damaged ones are named."""

import json
import os

import pytest
from etils import epath

from bert_jax.config import default_config
from bert_jax.errors import UserError
from bert_jax.storage import workdir as workdir_lib


def _saved(tmp_path, **changes):
  config = default_config()
  config.update_from_flattened_dict(changes)
  workdir = epath.Path(tmp_path)
  workdir_lib.save_config(config, workdir)
  return workdir, config


def test_a_setting_that_an_older_run_did_not_have_is_at_its_default(tmp_path):
  workdir, config = _saved(tmp_path, **{"model.hidden_size": 384})
  path = tmp_path / "config.json"
  saved = json.loads(path.read_text())
  del saved["content_crc32"]
  del saved["model"]["remat"], saved["log"], saved["optimizer"]["eps"]
  path.write_text(json.dumps(saved))
  workdir_lib.check_config(config, workdir)
  assert workdir_lib.load_config(workdir).to_dict() == config.to_dict()
  config.optimizer.eps = 1e-8
  with pytest.raises(UserError, match=r"optimizer.eps was 1e-06, now 1e-08"):
    workdir_lib.check_config(config, workdir)


def test_a_setting_of_a_newer_version_is_refused(tmp_path):
  workdir, config = _saved(tmp_path)
  path = tmp_path / "config.json"
  saved = json.loads(path.read_text())
  del saved["content_crc32"]
  saved["model"]["rotary"] = True
  path.write_text(json.dumps(saved))
  with pytest.raises(UserError, match=r"model.rotary was True, now None"):
    workdir_lib.check_config(config, workdir)


@pytest.mark.parametrize(
  "content",
  ["", "{", "7", "[]", '{"model": 7}', '{"seed": "x"}', "\udcff", None],
)
def test_damaged_settings_are_one_line(tmp_path, content):
  workdir, config = _saved(tmp_path)
  path = tmp_path / "config.json"
  path.unlink()
  if content is None:
    path.mkdir()
  else:
    path.write_text(content, errors="surrogateescape")
  for use in (
    lambda: workdir_lib.load_config(workdir),
    lambda: workdir_lib.check_config(config, workdir),
  ):
    with pytest.raises(UserError, match=r"config.json is damaged") as e:
      use()
    assert "\n" not in str(e.value)


def test_two_commands_in_one_workdir_are_told_apart(tmp_path):
  """Training and preparation both hold this lock."""
  workdir = epath.Path(tmp_path) / "run"
  with (
    workdir_lib.run_lock(workdir),
    pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
    workdir_lib.run_lock(workdir),
  ):
    pass
  with workdir_lib.run_lock(workdir):  # it ended with its holder
    pass
  assert not workdir.exists()


def test_a_workdir_deleted_under_a_lock_is_no_error(tmp_path):
  workdir = epath.Path(tmp_path) / "run"
  with workdir_lib.run_lock(workdir):
    workdir.rmtree()
  assert not workdir.exists()


def test_a_folder_in_the_place_of_the_lock_is_named(tmp_path):
  (tmp_path / ".lock").mkdir()
  with (
    pytest.raises(UserError, match=r"\.lock is a folder"),
    workdir_lib.run_lock(epath.Path(tmp_path)),
  ):
    pass
