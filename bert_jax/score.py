"""Scores how likely texts are to a BERT: the pseudo-log-likelihood.

    python -m bert_jax.score --model=H --input=F --output=O

The input is a .txt file, a text on each line, or .jsonl with "text". The output
has a JSON line for each text: "score", the sum over its tokens of the natural
log probability of the token when it alone is masked (Salazar et al. 2020),
beside "tokens" and "token_scores". Texts longer than the model's positions are
read through overlapping windows.
"""

from absl import flags

from bert_jax import command


def main(argv):
  """Runs the command."""
  from bert_jax.inference import json_lines, pseudo_likelihood

  del argv
  args = flags.FLAGS
  rows = json_lines.rows_of([], command.path("input"))
  output = command.path("output")
  found = pseudo_likelihood.iterate_scores(args.model, rows, args.batch_size)
  number = json_lines.save(output, found)
  print(f"score: {number:,} texts are scored in {output}")


if __name__ == "__main__":
  flags.DEFINE_string("model", None, "Exported folder, workdir or any BERT.")
  flags.DEFINE_string("input", None, "File of texts, .txt or .jsonl.")
  flags.DEFINE_string("output", None, "File for JSON lines.")
  flags.DEFINE_integer(
    "batch_size", 64, "Masked copies at a time.", lower_bound=1
  )
  command.run(main)
