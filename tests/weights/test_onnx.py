"""The lines of docs/start_from.md that turn an export to ONNX."""

import re

import pytest
import transformers

from tests import commands
from tests.weights import tiny_bert

# What a reader does with the file, on a batch and a length of its own.
_COMPARE = """
import numpy, onnxruntime
session = onnxruntime.InferenceSession(output)
texts = ["the river 12 b", "c d", "x"]
inputs = transformers.AutoTokenizer.from_pretrained(folder)(
  texts, padding=True, return_tensors="pt")
feed = {i.name: inputs[i.name].numpy() for i in session.get_inputs()}
(found,) = session.run(None, feed)
with torch.no_grad():
  expected = model(**inputs).logits.numpy()
numpy.testing.assert_allclose(found, expected, atol=1e-5)
assert found.shape[:2] == inputs["input_ids"].shape
"""


@pytest.mark.slow
def test_the_documented_lines_give_the_logits_of_torch(tmp_path):
  page = (commands.ROOT / "docs" / "start_from.md").read_text()
  section = page.split("### ONNX")[1]
  lines = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
  folder = tmp_path / "hf"
  tiny_bert.save(
    folder, transformers.BertForMaskedLM, tiny_bert.make_vocab(["river"])
  )
  program = (
    f"folder, output = {str(folder)!r}, {str(tmp_path / 'model.onnx')!r}\n"
    f"{lines}\n{_COMPARE}"
  )
  done = commands.run_program(program)
  assert done.returncode == 0, done.stderr
