"""Compiles our step and the peer's for one slice and reads both alike.

    python -m venv peer
    peer/bin/pip install transformers==4.57.6 jax==J libtpu==L flax optax
    python -m tests.planning.peer_plan --topology=v5e:4x4 \\
      --python=peer/bin/python

The peer is the last transformers with Flax: FlaxBertForPreTraining in
bfloat16, with the loss, the optimizer and the batch of its own example for
masked language modelling and the next-sentence loss added, under `jax.jit` over
all devices. It must have the same jax and libtpu as we (J and L). Programs are
kept in `--hlo`.
"""

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import optax
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bert_jax.hlo import cost as cost_lib
from bert_jax.hlo import memory as memory_lib
from bert_jax.planning import slices

_FIELDS = (
  ("step ms", "step_seconds", 1e3),
  ("work ms", "compute_seconds", 1e3),
  ("collectives ms", "collective_seconds", 1e3),
  ("of them exposed", "exposed_collective_seconds", 1e3),
  ("temporaries GB", "temporary_bytes", 1e-9),
)


def compile_peer(planned, batch_size, max_seq_length):
  """Compiles the peer's step; returns jax's compiled program."""
  import transformers  # of the peer's own environment

  devices = slices.describe_devices(planned)
  mesh = Mesh(devices, ("data",))
  whole = NamedSharding(mesh, PartitionSpec())
  rows = NamedSharding(mesh, PartitionSpec("data"))
  model = transformers.FlaxBertForPreTraining(
    transformers.BertConfig(), dtype=jnp.bfloat16, _do_init=False
  )
  schedule = optax.linear_schedule(1e-4, 0.0, 1_000_000)
  optimizer = optax.adamw(schedule, weight_decay=0.01, mask=_decayed)

  def create_state(key):
    params = model.init_weights(key, (1, max_seq_length))
    return params, optimizer.init(params), key

  def train_step(state, batch):
    params, opt_state, key = state
    dropout_key, key = jax.random.split(key)
    loss, grads = jax.value_and_grad(_peer_loss)(
      params, model, batch, dropout_key
    )
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, key), loss

  def on(sharding, tree):
    return jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), tree
    )

  state = on(whole, jax.eval_shape(create_state, jax.random.PRNGKey(0)))
  ids = jax.ShapeDtypeStruct((batch_size, max_seq_length), jnp.int32)
  names = ("input_ids", "token_type_ids", "attention_mask", "labels")
  batch = dict.fromkeys(names, ids)
  batch["next_sentence_label"] = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  step = jax.jit(train_step, donate_argnums=0, out_shardings=whole)
  return step.lower(state, on(rows, batch)).compile()


def _decayed(params):
  return jax.tree.map_with_path(
    lambda path, _: path[-1].key not in ("bias", "scale"), params
  )


def _peer_loss(params, model, batch, dropout_key):
  outputs = model(
    batch["input_ids"],
    attention_mask=batch["attention_mask"],
    token_type_ids=batch["token_type_ids"],
    params=params,
    dropout_rng=dropout_key,
    train=True,
  )
  logits = outputs.prediction_logits
  labels = batch["labels"]
  hot = jax.nn.one_hot(labels, logits.shape[-1])
  counted = jnp.where(labels > 0, 1.0, 0.0)
  mlm = optax.softmax_cross_entropy(logits, hot) * counted
  pairs = jax.nn.one_hot(batch["next_sentence_label"], 2)
  nsp = optax.softmax_cross_entropy(outputs.seq_relationship_logits, pairs)
  return mlm.sum() / counted.sum() + nsp.mean()


def read_program(text, temporary_bytes, planned):
  """Reads any program as `plan` reads ours."""
  torus = planned.torus(slices.describe_devices(planned))
  cost = cost_lib.estimate(text, planned.rates, torus)
  return {
    "step_seconds": cost.seconds,
    "compute_seconds": cost.compute_seconds,
    "collective_seconds": cost.collective_seconds,
    "exposed_collective_seconds": cost.exposed_seconds,
    "temporary_bytes": temporary_bytes,
  }


def _plan_ours(options):
  command = [sys.executable, "-m", "bert_jax.plan", "--json"]
  command += [
    "--config=configs/bert_base.py",
    "--config.corpus.vocab_size=30522",
    f"--config.phase1.batch_size={options.batch_size}",
    f"--config.phase1.max_seq_length={options.max_seq_length}",
    f"--config.phase1.max_predictions={options.max_seq_length * 3 // 20 + 1}",
    "--config.phase2.num_steps=0",
    f"--topology={options.topology}",
    f"--hlo={options.hlo}/ours",
  ]
  done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
  report = json.loads(done.stdout)["phases"]["phase1"]
  memory = report["memory_bytes"]
  made = memory["activations"] + memory["temporaries"]
  return report | {"temporary_bytes": made}


def _plan_peer(options):
  command = [options.python, "-m", "tests.planning.peer_plan", "--peer"]
  command += [
    f"--{name}={getattr(options, name)}"
    for name in ("topology", "batch_size", "max_seq_length", "hlo")
  ]
  done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
  return json.loads(done.stdout.splitlines()[-1])


def main(argv):
  """Runs the comparison or, with --peer, the peer's half of it."""
  del argv
  options = flags.FLAGS
  if options.peer:
    jax.config.update("jax_platforms", "cpu")
    planned = slices.find_slice(options.topology)
    sizes = options.batch_size, options.max_seq_length
    compiled = compile_peer(planned, *sizes)
    text = compiled.as_text()
    folder = pathlib.Path(options.hlo, "peer")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.txt").write_text(text)
    made = memory_lib.count_step_bytes(compiled, "tpu")
    print(json.dumps(read_program(text, made, planned)))
    return
  peer, ours = _plan_peer(options), _plan_ours(options)
  print(f"{'':16}{'peer':>10}{'ours':>10}{'ratio':>8}")
  for title, field, unit in _FIELDS:
    a, b = peer[field], ours[field]
    print(f"{title:16}{a * unit:10.2f}{b * unit:10.2f}{a / b:8.2f}")


if __name__ == "__main__":
  flags.DEFINE_string("python", None, "Python that has transformers 4.57.6.")
  flags.DEFINE_string("topology", "v5e:4x4", "Slice.")
  flags.DEFINE_integer("batch_size", 256, "Sequences, over all devices.")
  flags.DEFINE_integer("max_seq_length", 128, "Slots a sequence.")
  flags.DEFINE_string("hlo", "peer_hlo", "Folder to keep the programs in.")
  flags.DEFINE_bool("peer", False, "Only the peer, as JSON.")
  app.run(main)
