"""Claims about plans, most of them on real compilations."""

import json
import os
import re
import subprocess
import sys

import pytest

from bert_jax.config import default_config
from bert_jax.errors import UserError
from bert_jax.planning import report as report_lib
from bert_jax.planning import run_plan, slices, step_plan

CONFIG = """
from bert_jax.config import default_config
from tests.planning.test_plan import small_config

def get_config():
  return small_config()
"""


def small_config():
  config = default_config()
  config.model.update(
    hidden_size=128,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=512,
    max_position_embeddings=64,
  )
  config.corpus.vocab_size = 1000
  config.phase1.update(
    max_seq_length=64, num_steps=1000, batch_size=64, max_predictions=10
  )
  config.phase2.num_steps = 0
  config.optimizer.warmup_steps = 10
  return config


def _slices(*names):
  return [slices.find_slice(name) for name in names]


def test_prices_of_one_or_several_generations():
  found = _slices("v5e:2x2", "v6e:2x2")
  assert run_plan.parse_prices(None, found) == {}
  assert run_plan.parse_prices("1.2", found) == {"v5e": 1.2, "v6e": 1.2}
  given = run_plan.parse_prices("v6e=2.7, v5e=1.2", found)
  assert given == {"v5e": 1.2, "v6e": 2.7}


@pytest.mark.parametrize(
  "text", ["cheap", "v5e=1.2", "v5e=1,v6e=x", "-1", "nan", "1,h100=3"]
)
def test_a_bad_price_is_refused(text):
  with pytest.raises(UserError, match="v5e=PRICE,v6e=PRICE"):
    run_plan.parse_prices(text, _slices("v5e:2x2", "v6e:2x2"))


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
  """A plan in two micro-batches, so that its program has a loop."""
  folder = tmp_path_factory.mktemp("hlo")
  config = small_config()
  config.optimizer.grad_accumulation = 2
  (found,) = _slices("v5litepod-4")
  report = run_plan.plan(config, found, 1.0, str(folder))
  return report, (folder / "phase1.txt").read_text()


@pytest.mark.slow
def test_the_real_step_compiles_for_a_slice_without_its_devices(planned):
  report, text = planned
  (found,) = report["phases"].values()
  assert (report["topology"], report["chips"]) == ("v5e:2x2", 4)
  assert report["fits"]
  assert found["compute_seconds"] > found["best_step_seconds"] > 0
  low, high = found["step_seconds_range"]
  assert low < found["step_seconds"] < high
  assert report["money"] == pytest.approx(4 * report["hours"])
  # The compiler's instructions for a kernel this small outlast its products.
  assert found["kernel_seconds"] > found["kernel_roofline_seconds"] > 0
  assert found["row_seconds"] > 0
  # Gradients are reduced, and weights gathered, over the four chips.
  assert found["collective_count"].keys() >= {"all-reduce", "all-gather"}
  # Two float32 moments and the weights, mostly split in four.
  held = found["memory_bytes"]["parameters"]
  assert report["parameters"] < held < 1.3 * report["parameters"]
  assert text.startswith("HloModule")
  json.dumps(report)
  assert "fits" in report_lib.format_plan(report)


@pytest.mark.slow
def test_another_reading_of_the_program_finds_the_same(planned):
  """Line by line and by regular expressions, without our parser."""
  report, text = planned
  found = report["phases"]["phase1"]
  bodies = {
    head.split(" ")[-1].lstrip("%") if "ENTRY" not in head else "ENTRY": body
    for head, body in re.findall(
      r"^((?:ENTRY )?%?[\w.\-]+) \(.*\{\n((?:(?:  |\"|}},).*\n)*)",
      text,
      re.MULTILINE,
    )
  }

  def cycles(body):
    total = 0
    for line in body.splitlines():
      if loop := re.search(r" while\(.*body=%?([\w.\-]+)", line):
        total += 2 * cycles(bodies[loop[1]])  # micro-batches
      elif said := re.search(r'"estimated_cycles":"(\d{1,15})"', line):
        total += int(said[1])
    return total

  assert bodies["ENTRY"].count(" while(") == 1
  seconds = cycles(bodies["ENTRY"]) / 1.5e9
  assert found["compute_seconds"] == pytest.approx(seconds)
  # Every weight matrix is gathered once a step, at two bytes.
  gathered = found["collective_bytes"]["all-gather"]
  assert gathered == pytest.approx(2 * report["parameters"], rel=0.2)


@pytest.mark.slow
def test_every_gather_scatter_sort_and_call_is_priced_or_named(planned):
  """Of the scheduled instructions, and of those that they fuse."""
  report, text = planned
  unpriced = report["phases"]["phase1"]["no_estimate"]
  computations = {
    head.split(" ")[-1].lstrip("%") if "ENTRY" not in head else "ENTRY": body
    for head, body in re.findall(
      r"^((?:ENTRY )?%?[\w.\-]+) \(.*\{\n((?:(?:  |\"|}},).*\n)*)",
      text,
      re.MULTILINE,
    )
  }
  kinds = r" (gather|scatter|sort|custom-call|rng-bit-generator)\("
  loops = re.findall(r" while\(.*body=%?([\w.\-]+)", computations["ENTRY"])
  scheduled = [computations[name] for name in ("ENTRY", *loops)]
  found = 0
  for line in re.sub(r'\n(?="|\}\},)', "", "".join(scheduled)).splitlines():
    fused = re.search(r" fusion\(.*calls=%?([\w.\-]+)", line)
    within = computations[fused[1]] if fused else line
    if not re.search(kinds, within):
      continue
    found += 1
    name = re.search(r"%?([\w.\-]+?)[.\d]* = ", line)[1]
    assert (
      re.search(r'"estimated_cycles":"\d{1,15}"', line)
      or '"cost_estimate":{"flops"' in line
      # Rows of 128 entries, priced by the row.
      or re.search(r"\[[\d,]*,128\][^ ]* (gather|scatter)\(", within)
      or re.search("AllocateBuffer|ConcatBitcast|PrepareAsync", line)
      or name in unpriced
    ), line[:300]
  assert found > 10
  text = report_lib.format_plan(report)
  assert all(f"{n} {name}" in text for name, n in unpriced.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3-8", "tpu7x-8"])
def test_half_a_chip_is_a_device_and_a_whole_one_is_paid_for(name):
  """A narrow model on TPU7x also overflowed the compiler's stacks."""
  (found,) = _slices(name)
  report = run_plan.plan(small_config(), found, 1.0)
  assert (report["chips"], report["devices"]) == (4, 8)
  assert report["mesh"]["data"] == 8
  assert report["money"] == pytest.approx(4 * report["hours"])
  phase = report["phases"]["phase1"]
  peak = {"v3-8": 4 * 123e12, "tpu7x-8": 4 * 2307e12}[name]
  assert phase["best_step_seconds"] == pytest.approx(
    phase["model_flops"] / peak
  )
  assert phase["collective_count"]["all-gather"] > 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v3-32", "v4-32", "tpu7x-32"])
def test_a_layer_of_bert_base_compiles_where_vector_memory_is_small(name):
  """A fused all-reduce would overflow it."""
  (found,) = _slices(name)
  config = default_config()
  config.model.num_hidden_layers = 1
  config.phase2.num_steps = 0
  assert run_plan.plan(config, found, 1.0)["phases"]["phase1"]["fits"]


@pytest.mark.slow
def test_what_does_not_fit_says_by_how_much_and_what_would():
  """Two layers as wide as BERT-large's, 4096 x 512 on 4 chips."""
  config = default_config()
  config.model.update(
    hidden_size=1024,
    num_hidden_layers=2,
    num_attention_heads=16,
    intermediate_size=4096,
  )
  config.phase1.num_steps = 0
  config.phase2.batch_size = 4096
  config.optimizer.warmup_steps = 10
  (found,) = _slices("v5e:2x2")
  report = run_plan.plan(config, found)
  phase = report["phases"]["phase2"]
  assert not report["fits"]
  assert "hours" not in report
  assert phase["needed_bytes"] > phase["hbm_bytes"]
  text = report_lib.format_plan(report)
  missing = (phase["needed_bytes"] - phase["hbm_bytes"]) / 2**30
  assert f"{missing:.2f} more than the 15.75 there are" in text
  for knob in (
    "phase2.batch_size=",
    "optimizer.grad_accumulation=",
    "--topology=v5e:",
  ):
    assert knob in text


@pytest.mark.slow
def test_the_command_searches_and_only_the_report_is_printed(tmp_path):
  (tmp_path / "small.py").write_text(CONFIG)
  done = subprocess.run(
    [
      *(sys.executable, "-m", "bert_jax.plan", "--search"),
      *(f"--config={tmp_path}/small.py", "--topology=v5e:2x2"),
      "--max_candidates=2",
    ],
    env=os.environ | {"PYTHONPATH": os.getcwd()},
    capture_output=True,
    text=True,
    check=True,
  )
  lines = done.stdout.splitlines()
  assert [line.split()[0] for line in lines[:3]] == ["slice", *2 * ["v5e:2x2"]]
  assert lines[-4].startswith("fastest: v5e:2x2")
  assert re.search(r"--config\.mesh\.data=\d", lines[-3])
  assert all(line.startswith("plan: ") for line in done.stderr.splitlines())


def test_an_overflow_of_vector_memory_is_one_line_that_says_what_to_do():
  """The message is libtpu's, of a kernel with too many queries at once."""
  message = (
    "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory "
    "in memory space vmem while allocating on stack for %jvp__.1 = (bf16[1,"
    "1536,128]{2,1,0:T(8,128)(2,1)}) custom-call(%copy). Scoped allocation "
    "with size 21.19M and limit 16.00M exceeded scoped vmem limit by 5.19M."
  )
  with pytest.raises(
    UserError, match=r"phase2 on v5e:4x4.*21.19M of 16.00M.*128"
  ):
    step_plan._read_overflow(message, {}, "phase2 on v5e:4x4")
  assert step_plan._read_overflow("INTERNAL", {"memory_bytes": {}}, "") is None


def test_an_unknown_slice_is_one_error_and_a_table():
  done = subprocess.run(
    [
      *(sys.executable, "-m", "bert_jax.plan"),
      *("--topology=v5e:1x7", "--config=configs/bert_base.py"),
    ],
    env=os.environ,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert "v5litepod-4, 8, 16" in done.stderr
  assert "Traceback" not in done.stderr
