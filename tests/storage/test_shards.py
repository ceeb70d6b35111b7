"""Input files divided among processes: each once, over all restarts."""

import itertools

import pytest

from bert_jax.distributed.hosts import Hosts
from bert_jax.errors import UserError
from bert_jax.storage import shards


class _OneOfSeveral(Hosts):
  """A process whose others know and say what it does."""

  def __init__(self, index, count):
    super().__init__(index, [f"host{i}" for i in range(count)])

  def gather(self, value):
    return [value] * len(self.names)

  def on_first(self, function):
    return function()


@pytest.fixture(name="folder")
def _folder(tmp_path):
  for number in range(7):
    (tmp_path / f"part-{number}.txt").write_text("a\n" * (1 + number))
  return tmp_path


def _divide(folder, index=0, count=1, source="part-*.txt", **settings):
  hosts = _OneOfSeveral(index, count)
  found = shards.divide(
    hosts, str(folder / source), str(folder / "out/o.jsonl"), settings
  )
  return [
    (a.removeprefix(f"{folder}/"), b.removeprefix(f"{folder}/"))
    for a, b in found
  ]


@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_every_file_is_the_work_of_one_process(folder, count):
  work = [_divide(folder, index, count) for index in range(count)]
  assert sorted(itertools.chain(*work)) == [
    (f"part-{n}.txt", f"out/o-0000{n}-of-00007.jsonl") for n in range(7)
  ]
  assert max(map(len, work)) - min(map(len, work)) <= 1


def test_what_is_done_is_left_out_and_the_rest_is_shared_anew(folder):
  _divide(folder)
  for number in (0, 2, 3):
    (folder / f"out/o-0000{number}-of-00007.jsonl").touch()
  work = [_divide(folder, index, 2) for index in range(2)]
  assert [[source for source, _ in part] for part in work] == [
    ["part-1.txt", "part-5.txt"],
    ["part-4.txt", "part-6.txt"],
  ]


def test_a_file_without_a_wildcard_is_read_by_the_first_process(folder, capsys):
  only = [("part-3.txt", "out/o.jsonl")]
  assert _divide(folder, 0, 3, "part-3.txt") == only
  assert (
    "1 file for 3 processes; 2 have nothing to do" in capsys.readouterr().out
  )
  assert _divide(folder, 1, 3, "part-3.txt") == []
  assert _divide(folder, source="missing.txt")  # its reader says what is wrong
  assert not (folder / "out").exists()


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda f: {"model": 2}, "settings.model was 1, now 2"),
    (
      lambda f: (f / "part-8.txt").write_text("b"),
      "part-8.txt was None, now 1",
    ),
    (lambda f: (f / "part-1.txt").write_text("b"), "part-1.txt was 4, now 1"),
  ],
)
def test_shards_of_another_job_are_refused(folder, change, message):
  _divide(folder, model=1)
  changed = change(folder)
  settings = changed if isinstance(changed, dict) else {"model": 1}
  with pytest.raises(UserError, match=message):
    _divide(folder, **settings)


def test_an_empty_file_and_a_pattern_without_files_are_refused(folder):
  with pytest.raises(UserError, match=r"none-.*matches no file"):
    _divide(folder, source="none-*.txt")
  (folder / "part-4.txt").write_text("")
  with pytest.raises(UserError, match=r"part-4\.txt is empty"):
    _divide(folder)
