"""Examples, masks, dropout and losses at seed 0 are what they always were."""

import json

import numpy as np
import pytest

from tests import golden

STORED = json.loads(golden.PATH.read_text())


@pytest.fixture(scope="module", name="computed")
def _computed():
  return golden.compute()


def test_the_same_values_are_computed_as_are_stored(computed):
  assert computed.keys() == STORED.keys()


@pytest.mark.parametrize("name", sorted(STORED.keys() - {"losses"}))
def test_draws_are_those_of_every_run_before(computed, name):
  """A change here breaks the resume of every run that exists."""
  assert computed[name] == STORED[name]


def test_the_first_losses_are_those_of_every_run_before(computed):
  """To the rounding of float32, which differs between processors."""
  np.testing.assert_allclose(computed["losses"], STORED["losses"], rtol=1e-5)
