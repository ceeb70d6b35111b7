"""Golden table of how BERT-base and BERT-large are split on 16 devices."""

import importlib
import math
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from bert_jax.planning import slices, step_plan
from bert_jax.pretraining import run as run_lib
from bert_jax.sharding import mesh as mesh_lib

ROOT = pathlib.Path(__file__).parents[2]
# data x fsdp x model: 1x16, 4x4 (twice) and 2x2x4.
MESHES = ((16, 1, 1), (4, 4, 1), (4, 1, 4), (2, 2, 4))

# Parameter -> mesh axes of each dimension between the steps; "-" is whole.
# The data axis comes last where the optimizer's share (ZeRO-1) is cut.
AXES = {
  "bert/embeddings/word_embeddings": "model+data fsdp",
  "bert/embeddings/position_embeddings": "- fsdp+data",
  "bert/embeddings/token_type_embeddings": "- fsdp",
  "bert/encoder/layer_*/attention/self/query/kernel": "fsdp+data model",
  "bert/encoder/layer_*/attention/self/query/bias": "model",
  "bert/encoder/layer_*/attention/self/key/kernel": "fsdp+data model",
  "bert/encoder/layer_*/attention/self/key/bias": "model",
  "bert/encoder/layer_*/attention/self/value/kernel": "fsdp+data model",
  "bert/encoder/layer_*/attention/self/value/bias": "model",
  "bert/encoder/layer_*/attention/output/dense/kernel": "model fsdp+data",
  "bert/encoder/layer_*/attention/output/dense/bias": "-",
  "bert/encoder/layer_*/intermediate/dense/kernel": "fsdp model+data",
  "bert/encoder/layer_*/intermediate/dense/bias": "model",
  "bert/encoder/layer_*/output/dense/kernel": "model+data fsdp",
  "bert/encoder/layer_*/output/dense/bias": "-",
  "bert/pooler/dense/kernel": "fsdp+data -",
  "bert/pooler/dense/bias": "-",
  "cls/predictions/transform/dense/kernel": "fsdp+data -",
  "cls/predictions/transform/dense/bias": "-",
  "cls/predictions/bias": "model",
  "cls/seq_relationship/kernel": "fsdp -",
  "cls/seq_relationship/bias": "-",
  **dict.fromkeys(
    (
      f"{place}/LayerNorm/{name}"
      for place in (
        "bert/embeddings",
        "bert/encoder/layer_*/attention/output",
        "bert/encoder/layer_*/output",
        "cls/predictions/transform",
      )
      for name in ("scale", "bias")
    ),
    "-",
  ),
}
# (config, mesh) -> bytes of float32 parameters that each device keeps.
BYTES = {
  ("bert_base", (16, 1, 1)): 28_032_520,
  ("bert_base", (4, 4, 1)): 28_023_304,
  ("bert_base", (4, 1, 4)): 28_928_392,
  ("bert_base", (2, 2, 4)): 28_922_248,
  ("bert_large", (16, 1, 1)): 85_292_552,
  ("bert_large", (4, 4, 1)): 85_280_264,
  ("bert_large", (4, 1, 4)): 86_652_296,
  ("bert_large", (2, 2, 4)): 86_644_104,
}


def _create_run(name, mesh, devices=None):
  config = importlib.import_module(f"configs.{name}").get_config()
  config.mesh.update(dict(zip(mesh_lib.MESH_AXES, mesh, strict=True)))
  return run_lib.create_planned_run(config, devices or jax.devices())


def _text(spec):
  """Writes a PartitionSpec as `AXES` has it."""
  names = [(axes,) if isinstance(axes, str) else axes or "-" for axes in spec]
  return " ".join("+".join(axes) for axes in names)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", ["bert_base", "bert_large"])
def test_every_parameter_is_split_as_the_golden_table_says(name, mesh):
  table = step_plan.sharding_table(_create_run(name, mesh))
  found = {}
  for path, _, _, spec, _ in table:
    pattern = re.sub(r"layer_\d+", "layer_*", path)
    assert found.setdefault(pattern, _text(spec)) == _text(spec), path
  assert found == AXES


@pytest.mark.parametrize(("name", "mesh"), BYTES)
def test_every_device_keeps_as_many_bytes_as_the_golden_table_says(name, mesh):
  """The bytes are also those of the table, divided by hand."""
  table = step_plan.sharding_table(_create_run(name, mesh))
  assert sum(num_bytes for *_, num_bytes in table) == BYTES[name, mesh]
  sizes = dict(zip(mesh_lib.MESH_AXES, mesh, strict=True))
  for path, shape, _, _, num_bytes in table:
    axes = AXES[re.sub(r"layer_\d+", "layer_*", path)]
    used = [a for a in re.split(r"[ +]", axes) if a != "-"]
    parts = math.prod(sizes[axis] for axis in used)
    assert num_bytes * parts == math.prod(shape) * 4, path


_COMPILE = """
import importlib, sys
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 16)
from bert_jax.planning import step_plan
from bert_jax.pretraining import run as run_lib

for name, mesh in {cases}:
  config = importlib.import_module(f"configs.{{name}}").get_config()
  config.model.num_hidden_layers = 2
  config.phase1.batch_size = 32
  config.mesh.data, config.mesh.fsdp, config.mesh.model = mesh
  run = run_lib.create_planned_run(config, jax.devices())
  step_plan.compile_step(run, "phase1")
print("compiled", file=sys.stderr, flush=True)

# A program that the compiler is known to warn of.
mesh = jax.make_mesh((4, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
rows = NamedSharding(mesh, P(("a", "b"), None))
columns = NamedSharding(mesh, P(None, "b"))
x = jax.ShapeDtypeStruct((16, 16), "float32", sharding=rows)
known = lambda x: jax.lax.with_sharding_constraint(2 * x, columns)
jax.jit(known).lower(x).compile()
"""


@pytest.mark.slow
def test_no_array_is_gathered_whole_against_the_compilers_will():
  """XLA says so on standard error, and only there."""
  cases = [
    ("bert_base", (4, 4, 1)),
    ("bert_base", (4, 1, 4)),
    ("bert_large", (2, 2, 4)),
  ]
  done = subprocess.run(
    [sys.executable, "-c", _COMPILE.format(cases=cases)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  steps, known = done.stderr.split("compiled\n")
  assert "Involuntary full rematerialization" not in steps
  assert "Involuntary full rematerialization" in known


@pytest.mark.parametrize(
  ("slice_name", "mesh"),
  [("v5e:4x4", (4, 1, 4)), ("v5e:4x4", (2, 2, 4)), ("v4:2x2x4", (2, 2, 4))],
)
def test_the_model_axis_joins_neighbours_of_the_torus(slice_name, mesh):
  """They communicate in every layer: each has a link to another one."""
  devices = slices.describe_devices(slices.find_slice(slice_name))
  arranged = _create_run("bert_base", mesh, devices).mesh.devices
  for group in arranged.reshape(-1, mesh[-1]):
    coords = np.array([device.coords for device in group])
    hops = np.abs(coords[:, None] - coords[None]).sum(-1)
    assert (np.sort(hops)[:, 1] == 1).all()
