"""The dump of libtpu's instructions, on a file as libtpu writes it."""

from bert_jax.hlo import bundles

DUMP = """\
== CAPACTIY:
MXU, XLU, VALU, VPOP, EUP, VLOAD, VLOAD:FILL, VSTORE, VSTORE:SPILL, SALU
    4     3     4     2     1     3     3     1     1     2
== UTILIZATION:
0 0 0 0 0 1 0 0 0 0
0 0 2 0 0 1 0 0 0 2
4 0 4 1 0 0 0 1 1 0
"""


def test_bundles_are_counted_by_the_name_of_the_instruction(tmp_path):
  label = "final_hlo-static-per-bundle-utilization"
  (tmp_path / f"12-shard_map.3-00-{label}.txt").write_text(DUMP)
  (tmp_path / "13-shard_map.3-01-final_bundles.txt").write_text(DUMP)
  assert bundles.read(tmp_path) == {"shard_map.3": 3}
  assert f"={label}" in bundles.dump_flags(tmp_path)
