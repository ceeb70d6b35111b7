"""Says how likely one text follows another, by the next-sentence head.

    python -m bert_jax.judge_next --model=H \\
      --text='calculus is a branch of math' \\
      --next='it was developed by newton and leibniz'
    python -m bert_jax.judge_next --model=H --input=F --output=O

The input has a pair on each line, parted by a tab (.txt), or "text" and
"text_pair" (.jsonl); the output has a JSON line for each pair.
"""

from absl import flags

from bert_jax import command
from bert_jax.errors import UserError


def main(argv):
  """Runs the command."""
  from bert_jax.inference import json_lines, next_sentence

  del argv
  args = flags.FLAGS
  if (args.text is None) != (args.next is None):
    raise UserError("expected --text and --next together, or --input")
  pairs = [] if args.text is None else [(args.text, args.next)]
  rows = json_lines.rows_of(pairs, args.input)
  found = next_sentence.iterate_judgements(args.model, rows)
  if args.output:
    number = json_lines.save(args.output, found)
    print(f"judge_next: {number:,} pairs are judged in {args.output}")
    return
  for record in found:
    print(f"{record['probability']:6.1%}  {record['text']} | {record['next']}")


if __name__ == "__main__":
  flags.DEFINE_string("model", None, "Exported folder, workdir or any BERT.")
  flags.DEFINE_string("text", None, "First text.")
  flags.DEFINE_string("next", None, "Text that may follow it.")
  flags.DEFINE_string("input", None, "File of pairs, .txt or .jsonl.")
  flags.DEFINE_string("output", None, "File for JSON lines.")
  command.run(main)
