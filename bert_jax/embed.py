"""Turns text into vectors with any pretrained BERT (section 5.3's features).

    python -m bert_jax.embed --init=H_or_W --input=F --output=O \\
      [--layers=last|last4|0,3,-1] [--pooling=mean|cls|tokens]

Reads one text a line (.txt), or records (.jsonl) with text under --text_key
and, for pairs, a second one under "text_pair". Writes, by the ending:

  .npz, .safetensors  `embeddings` float32 [rows, D]; with --pooling=tokens
                      [tokens of all rows, D], beside `lengths` [rows] and
                      `input_ids` [tokens of all rows]
  .jsonl              one object a row: "embedding", or with --pooling=tokens
                      "tokens" and "embeddings"

Rows are in the order of the input. Layer 0 is the embeddings, 1 the first
block, -1 the last; several are concatenated, so that D is a multiple of the
hidden size. A folder of sentence-transformers brings its own pooling and
length.

Several files, --input='docs/part-*.jsonl', are shared among the processes of a
slice, and a start after an interruption goes on with the files that are not
done. The first one's vectors are in O-00000-of-00128.npz.
"""

from absl import flags

from bert_jax import command
from bert_jax.distributed import rehearsal


def main(argv):
  """Runs the command."""
  from bert_jax.inference import embedding

  del argv
  args = flags.FLAGS
  init, step = command.path("init"), command.checkpoint_step()
  source, output = command.path("input"), command.path("output")
  rehearsal.rehearse_if_asked()
  embedding.embed_files(
    init,
    step,
    source,
    output,
    text_key=args.text_key,
    layers=args.layers,
    pooling=args.pooling,
    max_length=args.max_length,
    batch_size=args.batch_size,
  )


if __name__ == "__main__":
  flags.DEFINE_string(
    "init", None, "Workdir, Hugging Face folder or TF1 model."
  )
  command.define_step_flag()
  flags.DEFINE_string("input", None, "Text, .txt or .jsonl; or a pattern.")
  flags.DEFINE_string("output", None, "File to write.")
  flags.DEFINE_string("layers", "last", "last, last4 or such as 0,3,-1.")
  flags.DEFINE_enum(
    "pooling",
    None,
    ("mean", "cls", "tokens"),
    "What becomes of the tokens; default: as the folder says, or mean.",
  )
  flags.DEFINE_string("text_key", "text", "Key of the text in .jsonl.")
  flags.DEFINE_integer("max_length", None, "Longest row; default: the model's.")
  flags.DEFINE_integer(
    "batch_size", 64, "Rows at a time, over all devices of a process."
  )
  rehearsal.define_flags()
  command.run(main)
