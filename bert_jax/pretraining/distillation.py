"""A larger model of the same vocabulary that a run learns from: the teacher.

`train --teacher=H` adds a third loss to those of pretraining: how far the
student's predictions of the masked tokens are from the teacher's
(`losses.distillation_loss`; Hinton et al. 2015, Sanh et al. 2019). The teacher
runs without dropout on the student's masked inputs.
"""

import dataclasses

import jax

from bert_jax.config import active_phases
from bert_jax.errors import UserError
from bert_jax.model.bert_config import BertConfig
from bert_jax.sharding import mesh as mesh_lib
from bert_jax.sharding import partitioning
from bert_jax.weights.parameters import checksum, fill_with_zeros
from bert_jax.weights.pretrained import load_init, print_report

_MASKED_LM = "cls/predictions"


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A trained model on the devices of a run.

  Attributes:
    bert_config: `BertConfig`, its dtype that of the run.
    params: parameters of `BertForPreTraining`, sharded as the run's are.
  """

  bert_config: BertConfig
  params: dict


def read_teacher(source):
  """Reads a model and checks that it predicts masked tokens of pairs.

  Args:
    source: what `load_init` takes.

  Returns:
    (`Pretrained` with all heads, those it lacks filled with zeros; checksum of
    its weights, int).

  Raises:
    UserError: no model, no vocabulary, no masked-LM head, or one token type.
  """
  found = load_init(source)
  found.check_pairs()
  params, added = fill_with_zeros(found.params, found.bert_config)
  lacks_head = any(path.startswith(_MASKED_LM) for path in added)
  if found.vocab is None or lacks_head:
    raise UserError(
      f"--teacher={source} has no vocabulary or no masked-LM head; expected "
      "both"
    )
  print_report(found, ())
  return dataclasses.replace(found, params=params), checksum(params)


def check_tokenizer(teacher, vocab, lowercase, strip_accents):
  """Checks that text gets the teacher's ids.

  Args:
    teacher: `Pretrained`.
    vocab: list of str, the run's.
    lowercase: whether the run lower-cases text.
    strip_accents: whether it strips accents, or None.

  Raises:
    UserError: a token or a rule differs.
  """
  for what, theirs, ours in (
    ("tokens", len(teacher.vocab), len(vocab)),
    ("lowercase", teacher.lowercase, lowercase),
    ("strip_accents", teacher.strip_accents, strip_accents),
  ):
    if theirs != ours:
      raise UserError(
        f"the vocabulary of this run has {what} {ours}; expected {theirs}, as "
        f"--teacher={teacher.source} has"
      )
  for number, pair in enumerate(zip(teacher.vocab, vocab, strict=True)):
    if pair[0] != pair[1]:
      raise UserError(
        f"token {number} of this run's vocabulary is {pair[1]!r}; expected "
        f"{pair[0]!r}, as in --teacher={teacher.source}"
      )


def create_teacher(pretrained, config, mesh):
  """Puts a teacher on the devices of a run.

  Args:
    pretrained: `Pretrained`, as `read_teacher` returns it.
    config: the run's settings.
    mesh: its `jax.sharding.Mesh`.

  Returns:
    `Teacher`.

  Raises:
    UserError: a phase is longer than the teacher's positions, or the mesh does
      not fit its heads.
  """
  bert_config = dataclasses.replace(
    pretrained.bert_config, dtype=config.model.dtype
  )
  positions = bert_config.max_position_embeddings
  for name in active_phases(config):
    length = config[name].max_seq_length
    if length > positions:
      raise UserError(
        f"config.{name}.max_seq_length is {length}; expected at most "
        f"{positions}, the positions of --teacher={pretrained.source}"
      )
  mesh_lib.check_heads(mesh, bert_config.num_attention_heads)
  shardings = partitioning.param_shardings(mesh, pretrained.params)
  params = jax.tree.map(
    lambda array, sharding: jax.make_array_from_callback(
      array.shape, sharding, array.__getitem__
    ),
    pretrained.params,
    shardings,
  )
  return Teacher(bert_config, params)
