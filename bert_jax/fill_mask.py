"""Fills every [MASK] of texts with any pretrained model, without torch.

    python -m bert_jax.fill_mask --model=H --text='The [MASK] of the people.'
    python -m bert_jax.fill_mask --model=H --input=F --output=O

--text may be given several times. The input is a .txt file, a text on each
line, or .jsonl with "text"; the output has a JSON line for each text: "masks"
is a list for each [MASK] of the best tokens and their probabilities.
"""

from absl import flags

from bert_jax import command


def main(argv):
  """Runs the command."""
  from bert_jax.inference import fillings, json_lines

  del argv
  args = flags.FLAGS
  rows = json_lines.rows_of([(t, None) for t in args.text], args.input)
  found = fillings.iterate_fillings(args.model, rows, args.top_k)
  if args.output:
    number = json_lines.save(args.output, found)
    print(f"fill_mask: {number:,} texts are filled in {args.output}")
    return
  for record in found:
    print(record["text"])
    for number, best in enumerate(record["masks"], 1):
      if len(record["masks"]) > 1:
        print(f" [MASK] {number}")
      for filling in best:
        print(f"  {filling['probability']:6.1%}  {filling['token']}")


if __name__ == "__main__":
  flags.DEFINE_string("model", None, "Exported folder, workdir or any BERT.")
  flags.DEFINE_multi_string("text", [], "Text with a [MASK].")
  flags.DEFINE_string("input", None, "File of texts, .txt or .jsonl.")
  flags.DEFINE_string("output", None, "File for JSON lines.")
  flags.DEFINE_integer("top_k", 5, "Tokens for each [MASK].", lower_bound=1)
  command.run(main)
