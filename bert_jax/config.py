"""Every setting of a run, its default and its rule.

The defaults are BERT-base as the paper trains it (Devlin et al. 2018, section
3.1 and appendix A.2). A file in `configs/` starts from `default_config()` and
edits; the command line edits that: `--config.phase1.batch_size=512`.
"""

import difflib
import math
import re

import ml_collections
from ml_collections import config_dict

from bert_jax.errors import UserError

# Four times the largest vocabulary in use (XLM-R, 250,002): a longer vocab.txt
# is some other file. Past 65,536 a token id takes four bytes in place of two.
MAX_VOCAB_SIZE = 1_000_000

# The phases of a run in their order: sections of the settings, of equal keys.
PHASES = ("phase1", "phase2", "phase3")
# Settings that may differ when a run is continued in its workdir; everything
# else shapes the examples, the model or the update and must stay. The step
# counts are here so that a finished run can be extended; that of a phase must
# stay once a later one has begun.
CHANGEABLE = (
  *(f"{name}.num_steps" for name in PHASES),
  "model.remat",  # the same numbers
  "corpus.dir",
  "corpus.vocab_file",  # the corpus holds what was in it
  "corpus.skip_bad_rows",
  "mesh",
  "eval",
  "checkpoint",
  "log",
)


def default_config():
  """Returns the settings of BERT-base, as an `ml_collections.ConfigDict`."""
  config = ml_collections.ConfigDict()

  # Seeds everything: weights, order of the examples, masks, dropout.
  config.seed = 0

  config.model = model = ml_collections.ConfigDict()
  model.hidden_size = 768
  model.num_hidden_layers = 12
  model.num_attention_heads = 12
  model.intermediate_size = 3072
  # "gelu" is exact (erf); "gelu_new" is the original code's tanh form.
  model.hidden_act = "gelu"
  model.hidden_dropout_prob = 0.1
  model.attention_probs_dropout_prob = 0.1
  model.max_position_embeddings = 512
  model.type_vocab_size = 2
  model.initializer_range = 0.02
  model.layer_norm_eps = 1e-12
  # Arithmetic of the layers; weights, LayerNorm statistics, softmax and
  # losses are float32 either way.
  model.dtype = "bfloat16"
  # Compute a layer's inner values again for its gradients and keep only its
  # input: less memory for more time, and the same numbers. BERT-base, 32,768 x
  # 128 on 16 chips of v5e, asks for 32.3 of 15.75 GiB without it and fits in
  # 13.4 with it.
  model.remat = False

  config.corpus = corpus = ml_collections.ConfigDict()
  # Comma-separated: "embedded", globs of files, "tfds:NAME[/CONFIG][:SPLIT]",
  # "hf:NAME[/CONFIG][:SPLIT]"; each may end in @LANGUAGE and *WEIGHT. The
  # formats and more stand in docs/text.md.
  corpus.source = "embedded"
  # Where the prepared corpus lies; "" means <workdir>/corpus.
  corpus.dir = ""
  # A WordPiece vocab.txt to use as it is; "" trains one on the text.
  corpus.vocab_file = ""
  corpus.vocab_size = 30_000
  corpus.lowercase = True
  # Remove combining marks, such as accents and the vowels of Hindi and Thai;
  # None does so in lower-cased text only, as transformers does.
  corpus.strip_accents = config_dict.placeholder(bool)
  # Cut words over 100 characters into shorter ones (Thai and other text
  # without spaces); otherwise each becomes [UNK].
  corpus.split_long_words = False
  # Share of the documents held out for evaluation, chosen by their hash.
  corpus.eval_fraction = 0.01
  # Key of the text in jsonl records and TensorFlow Datasets features.
  corpus.text_key = "text"
  # ISO 639 code for the sentence splitter, of sources without @LANGUAGE.
  corpus.language = "en"
  # How often the documents of a language are seen: by the share of its tokens
  # to this power. 1 takes the text as it is, 0.7 favours small languages.
  corpus.language_smoothing = 1.0
  # If true, each line is one sentence already and is not split further.
  corpus.one_sentence_per_line = False
  # If true, the text is wrapped at a column: line breaks are spaces, blank
  # lines part paragraphs.
  corpus.join_lines = False
  # If true, a text file is one document; otherwise blank lines part documents.
  corpus.file_is_document = False
  # Documents that are nearly the same as an earlier one: "report" or "drop".
  corpus.near_duplicates = "report"
  # Skip and count records and lines that can't be read; otherwise the first
  # one is an error.
  corpus.skip_bad_rows = False

  # 90 % of the steps at length 128, then 10 % at 512 (appendix A.2).
  config.phase1 = phase1 = ml_collections.ConfigDict()
  phase1.max_seq_length = 128
  phase1.num_steps = 900_000
  phase1.batch_size = 256  # sequences, over all devices
  phase1.max_predictions = 20  # 15 % of 128, rounded up

  config.phase2 = phase2 = ml_collections.ConfigDict()
  phase2.max_seq_length = 512
  phase2.num_steps = 100_000
  phase2.batch_size = 256
  phase2.max_predictions = 77  # 15 % of 512, rounded up

  # A third length, for those who want one: short sequences before 128, or more
  # than 512 positions after 512. BERT has none.
  config.phase3 = phase3 = ml_collections.ConfigDict()
  phase3.max_seq_length = 512
  phase3.num_steps = 0
  phase3.batch_size = 256
  phase3.max_predictions = 77

  config.masking = masking = ml_collections.ConfigDict()
  masking.rate = 0.15  # of the real tokens
  masking.mask_prob = 0.8  # of the chosen become [MASK]
  masking.random_prob = 0.1  # of the chosen become a random token
  # "different" never repeats the token it replaces nor draws a special one;
  # "any" may, as the original code does.
  masking.random_token = "different"
  masking.whole_word = False

  config.optimizer = optimizer = ml_collections.ConfigDict()
  optimizer.name = "adamw"  # or "lamb", for batches past 8k sequences
  optimizer.learning_rate = 1e-4  # the peak
  optimizer.warmup_steps = 10_000
  optimizer.weight_decay = 0.01  # not on biases and LayerNorms
  optimizer.beta1 = 0.9
  optimizer.beta2 = 0.999
  optimizer.eps = 1e-6
  optimizer.max_grad_norm = 1.0  # global norm
  optimizer.bias_correction = True  # the original code had none
  optimizer.grad_accumulation = 1  # micro-batches per step

  # Devices per axis; -1 takes what is left. See partitioning.py.
  config.mesh = mesh = ml_collections.ConfigDict()
  mesh.data = -1
  mesh.fsdp = 1
  mesh.model = 1

  config.eval = evaluation = ml_collections.ConfigDict()
  evaluation.every_steps = 10_000
  evaluation.num_batches = 40

  config.checkpoint = checkpoint = ml_collections.ConfigDict()
  # Whichever comes first; 0 seconds: no limit. A signal and an evaluation save
  # too.
  checkpoint.every_steps = 10_000
  checkpoint.every_seconds = 300.0
  checkpoint.keep = 3  # the latest ones; the best one is kept beside them
  # Every k-th step is saved and kept for good; 0: none.
  checkpoint.keep_every_steps = 0

  config.log = log = ml_collections.ConfigDict()
  # Whichever comes first; 0 seconds: no limit.
  log.every_steps = 1_000
  log.every_seconds = 10.0
  return config


def active_phases(config):
  """Returns the names of the phases that have steps, in their order."""
  return [name for name in PHASES if config[name].num_steps]


def phase_of_step(config, step):
  """Returns the name of the phase that makes a step, counted from 1.

  Step 0, before the first one, belongs to the first phase that has steps.
  """
  end = 0
  for name in active_phases(config):
    end += config[name].num_steps
    if step <= end:
      break
  return name


def num_train_steps(config):
  """Returns the steps of the whole run: all phases, one schedule."""
  return sum(config[name].num_steps for name in PHASES)


def flatten(config):
  """Returns {"model.hidden_size": 768, ...} of a nested config or dict."""
  flat = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      flat.update({f"{key}.{k}": v for k, v in flatten(value).items()})
    else:
      flat[key] = value
  return flat


def suggest_key(key, known):
  """Returns the one of the known config keys nearest to `key`, such as "lr"."""
  near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
  if near:
    return near[0]
  last = key.rsplit(".", 1)[-1]
  by_name = {}
  for k in known:
    name = k.rsplit(".", 1)[-1]
    initials = "".join(word[0] for word in name.split("_"))
    by_name |= {name: k, initials: k}
  near = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.0)
  return by_name[near[0]]


def differing_keys(config, saved, changeable=CHANGEABLE):
  """Compares a run's settings with those its workdir was begun with.

  Args:
    config: the settings asked for.
    saved: the settings kept in the workdir, nested dicts.
    changeable: keys and sections that may differ.

  Returns:
    list of (key, saved value, asked value) that may not differ.
  """
  asked, kept = flatten(config), flatten(saved)
  missing = object()

  def may_change(key):
    return any(key == c or key.startswith(c + ".") for c in changeable)

  return [
    (key, kept.get(key), asked.get(key))
    for key in sorted(asked.keys() | kept.keys())
    if kept.get(key, missing) != asked.get(key, missing) and not may_change(key)
  ]


def require(holds, key, value, expected):
  """Raises UserError on the setting `key` unless its rule holds."""
  if not holds:
    raise UserError(
      f"config.{key} is {value!r}; expected {expected} (set --config.{key})"
    )


# The range of every number, whatever the others are.
_POSITIVE = (lambda x: x > 0, "more than 0")
_NOT_NEGATIVE = (lambda x: x >= 0, "0 or more")
_SHARE = (lambda x: 0 <= x <= 1, "0 to 1")
_BELOW_1 = (lambda x: 0 <= x < 1, "at least 0 and less than 1")
_AXIS = (lambda x: x == -1 or x > 0, "a positive size, or -1 for what is left")
_RANGES = {
  "seed": (lambda x: 0 <= x < 2**32, "0 to 2**32 - 1"),
  "model.hidden_size": _POSITIVE,
  "model.num_hidden_layers": _POSITIVE,
  "model.num_attention_heads": _POSITIVE,
  "model.intermediate_size": _POSITIVE,
  "model.max_position_embeddings": _POSITIVE,
  "model.hidden_dropout_prob": _BELOW_1,
  "model.attention_probs_dropout_prob": _BELOW_1,
  "model.type_vocab_size": (lambda x: x >= 2, "at least 2, for A and B"),
  "model.initializer_range": _POSITIVE,
  "model.layer_norm_eps": (lambda x: 0 < x < 1, "more than 0, less than 1"),
  "corpus.vocab_size": (
    lambda x: 100 <= x <= MAX_VOCAB_SIZE,
    f"100 to {MAX_VOCAB_SIZE:,}",
  ),
  "corpus.eval_fraction": (
    lambda x: 0 < x < 0.5,
    "more than 0 and less than 0.5",
  ),
  "corpus.language_smoothing": _SHARE,
  **{f"{name}.num_steps": _NOT_NEGATIVE for name in PHASES},
  "masking.rate": (lambda x: 0 < x < 1, "more than 0 and less than 1"),
  "masking.mask_prob": _SHARE,
  "masking.random_prob": _SHARE,
  "optimizer.learning_rate": _POSITIVE,
  "optimizer.warmup_steps": _NOT_NEGATIVE,
  "optimizer.weight_decay": _NOT_NEGATIVE,
  "optimizer.beta1": _BELOW_1,
  "optimizer.beta2": _BELOW_1,
  "optimizer.eps": _POSITIVE,
  "optimizer.max_grad_norm": _POSITIVE,
  "optimizer.grad_accumulation": _POSITIVE,
  "mesh.data": _AXIS,
  "mesh.fsdp": _AXIS,
  "mesh.model": _AXIS,
  "eval.every_steps": _POSITIVE,
  "eval.num_batches": _POSITIVE,
  "checkpoint.every_steps": _POSITIVE,
  "checkpoint.every_seconds": _NOT_NEGATIVE,
  "checkpoint.keep": _POSITIVE,
  "checkpoint.keep_every_steps": _NOT_NEGATIVE,
  "log.every_steps": _POSITIVE,
  "log.every_seconds": _NOT_NEGATIVE,
}
# What a setting in words may be.
_CHOICES = {
  "model.hidden_act": ("gelu", "gelu_new"),
  "model.dtype": ("float32", "bfloat16"),
  "corpus.near_duplicates": ("report", "drop"),
  "masking.random_token": ("different", "any"),
  "optimizer.name": ("adamw", "lamb"),
}


def _validate_alone(config):
  """Checks the settings that have a rule of their own."""
  flat = flatten(config)
  for key, (holds, expected) in _RANGES.items():
    value = flat[key]
    require(math.isfinite(value) and holds(value), key, value, expected)
  for key, choices in _CHOICES.items():
    expected = f"one of {', '.join(choices)}"
    require(flat[key] in choices, key, flat[key], expected)
  source, language = config.corpus.source, config.corpus.language
  require(source, "corpus.source", source, "a text source")
  require(
    re.fullmatch(r"[a-z]{2,3}(-\w+)?", language),
    "corpus.language",
    language,
    "an ISO 639 code of two or three letters, such as en",
  )


def _validate_phase(config, name):
  phase = config[name]
  if phase.num_steps == 0:
    return
  require(
    8 <= phase.max_seq_length <= config.model.max_position_embeddings,
    f"{name}.max_seq_length",
    phase.max_seq_length,
    "at least 8 and at most model.max_position_embeddings = "
    f"{config.model.max_position_embeddings}",
  )
  accumulation = config.optimizer.grad_accumulation
  require(
    phase.batch_size > 0 and phase.batch_size % accumulation == 0,
    f"{name}.batch_size",
    phase.batch_size,
    f"a positive multiple of optimizer.grad_accumulation = {accumulation}",
  )
  rate = config.masking.rate
  enough = max(1, math.floor(round(rate * phase.max_seq_length, 9) + 0.5))
  require(
    enough <= phase.max_predictions <= phase.max_seq_length,
    f"{name}.max_predictions",
    phase.max_predictions,
    f"{enough} to {phase.max_seq_length}, as masking.rate = {rate} of "
    f"{phase.max_seq_length} tokens needs",
  )


def validate(config):
  """Checks every setting that can be checked without looking at files.

  Args:
    config: settings with the keys of `default_config()`.

  Raises:
    UserError: the first setting found wrong, its value, and what it takes.
  """
  _validate_alone(config)
  model, masking = config.model, config.masking
  require(
    model.hidden_size % model.num_attention_heads == 0,
    "model.hidden_size",
    model.hidden_size,
    f"a multiple of model.num_attention_heads = {model.num_attention_heads}",
  )
  for name in PHASES:
    _validate_phase(config, name)
  total = num_train_steps(config)
  require(total > 0, "phase1.num_steps", 0, "steps in a phase")
  require(
    config.optimizer.warmup_steps < total,
    "optimizer.warmup_steps",
    config.optimizer.warmup_steps,
    f"less than the run's {total} steps",
  )
  require(
    masking.mask_prob + masking.random_prob <= 1,
    "masking.mask_prob",
    masking.mask_prob,
    "mask_prob + random_prob at most 1",
  )
  sizes = [config.mesh[axis] for axis in ("data", "fsdp", "model")]
  require(sizes.count(-1) <= 1, "mesh", tuple(sizes), "at most one size of -1")
