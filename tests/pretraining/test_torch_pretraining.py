"""Training agrees with transformers under torch, and with the original's rules.

See `tests/torch_pretraining.py`, which shows the same over more steps.
"""

import numpy as np
import pytest
import torch

from bert_jax.data.corpus import open_corpus
from bert_jax.data.preparation import prepare
from tests import texts, torch_pretraining
from tests.closeness import assert_close

NUM_STEPS = 50


@pytest.fixture(scope="module", name="corpus")
def _corpus(tmp_path_factory):
  """Made-up text with something to learn, 200 pieces of vocabulary."""
  folder = tmp_path_factory.mktemp("corpus")
  texts.write_text(folder / "a.txt", texts.make_documents(60, 12))
  config = torch_pretraining.create_config(
    **{
      "corpus.source": str(folder / "a.txt"),
      "corpus.vocab_size": 200,
      "corpus.eval_fraction": 0.1,
    }
  )
  return open_corpus(prepare(config, folder / "run"))


@pytest.mark.slow
def test_losses_follow_torch_adamw(corpus):
  """One layer, 20 steps: within 1e-4 of each loss."""
  config = torch_pretraining.create_config(**{"model.num_hidden_layers": 1})
  losses = torch_pretraining.compare(config, corpus, 20)
  np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_losses_follow_torch_adamw_while_it_learns(corpus, seed):
  """300 steps: within 1e-3, and far below the first loss."""
  config = torch_pretraining.create_config(seed=seed)
  losses = torch_pretraining.compare(config, corpus, 300)
  np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-3)
  assert losses[-20:].mean() < 0.6 * losses[0].mean()


def _compare_one_layer(corpus, num_steps, **changes):
  config = torch_pretraining.create_config(
    **{"model.num_hidden_layers": 1, **changes}
  )
  return torch_pretraining.compare(config, corpus, num_steps)


@pytest.mark.slow
def test_bfloat16_changes_the_losses_no_more_than_torchs(corpus):
  """Over 100 steps, by the root mean square of the differences to float32."""
  float32, bfloat16 = (
    _compare_one_layer(corpus, 100, **{"model.dtype": dtype})
    for dtype in ("float32", "bfloat16")
  )
  ours, theirs = torch_pretraining.rounding(bfloat16, float32)
  assert 0 < ours < 2 * theirs


@pytest.mark.slow
def test_three_runs_with_dropout_are_as_good_as_torchs(corpus):
  """Means of the last 50 of 150 losses, within 2 %."""
  dropped = [
    _compare_one_layer(corpus, 150, seed=seed, **torch_pretraining.DROPOUT)
    for seed in range(3)
  ]
  ours, theirs = np.mean(
    [torch_pretraining.last_means(losses) for losses in dropped], axis=0
  )
  assert ours == pytest.approx(theirs, rel=0.02)


def _numpy_adamw(settings, model, inputs, moments, number):
  """One update by the original's rules in float64; returns the loss."""
  model.zero_grad()
  loss = torch_pretraining.torch_loss(model, inputs)
  loss.backward()
  grads = {n: p.grad.numpy() for n, p in model.named_parameters()}
  norm = np.sqrt(sum((grad**2).sum() for grad in grads.values()))
  scale = settings.max_grad_norm / max(norm, settings.max_grad_norm)
  rate = torch_pretraining.learning_rate(settings, number, NUM_STEPS)
  for name, parameter in model.named_parameters():
    mean, square = moments.get(name, (0.0, 0.0))
    grad, value = grads[name] * scale, parameter.detach().numpy()
    mean = settings.beta1 * mean + (1 - settings.beta1) * grad
    square = settings.beta2 * square + (1 - settings.beta2) * grad**2
    moments[name] = mean, square
    update = mean / (np.sqrt(square) + settings.eps)
    if torch_pretraining.is_decayed(name):
      update = update + settings.weight_decay * value
    parameter.data = torch.tensor(value - rate * update)
  return float(loss.detach())


@pytest.mark.slow
def test_the_originals_rules_are_numpys_adamw_in_float64(corpus):
  """No bias correction, gelu_new and any random token, over 50 steps.

  The gradients of the reference are torch's in float64.
  """
  config = torch_pretraining.create_config(
    **{
      "model.hidden_act": "gelu_new",
      "masking.random_token": "any",
      "optimizer.bias_correction": False,
      "optimizer.learning_rate": 1e-3,
    }
  )
  ours = torch_pretraining.Ours(config, corpus, NUM_STEPS)
  model = torch_pretraining.create_torch_model(
    ours, len(corpus.vocab), torch.float64
  )
  moments = {}
  for number in range(NUM_STEPS):
    inputs = ours.inputs(number)
    expected = _numpy_adamw(config.optimizer, model, inputs, moments, number)
    assert ours.step(inputs)["loss"] == pytest.approx(expected, rel=1e-5)
  theirs = model.state_dict()
  for name, tensor in ours.tensors().items():
    # The keys' bias has no gradient: softmax does not depend on it.
    assert_close(tensor, theirs[name].numpy(), 1e-4, name, noise=1e-6)
