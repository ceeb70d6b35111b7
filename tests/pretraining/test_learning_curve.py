"""The learning curve, as a picture and as text."""

from bert_jax.pretraining import learning_curve

ROWS = [
  {
    "step": step,
    "split": split,
    "phase": "phase1" if step <= 80 else "phase2",
    "mlm_loss": 9.0 - step / 20,
    "nsp_accuracy": None if step == 10 else 0.5 + step / 400,
  }
  for step in range(10, 101, 10)
  for split in (("train", "eval") if step % 50 == 0 else ("train",))
]


def test_the_text_starts_high_and_ends_low():
  lines = learning_curve.text_curve(ROWS).splitlines()
  assert lines[0].startswith("    8.50 |") and lines[0].count(".") == 2
  assert lines[11].startswith("    4.00 |") and lines[11].endswith("#")
  assert lines[0].index(".", 10) < lines[11].index("#")
  assert sum(line.count("#") for line in lines[:12]) == 2


def test_the_picture_is_a_png():
  assert learning_curve.plot_curve(ROWS).startswith(b"\x89PNG")


def test_phase_switches_are_marked_where_they_are():
  assert learning_curve._phase_switches(ROWS) == [80]
