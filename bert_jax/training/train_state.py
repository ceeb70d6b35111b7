"""What a run carries from step to step, and all that a checkpoint restores."""

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TrainState:
  """The state of a run.

  Attributes:
    step: int32 scalar, updates made or skipped so far.
    params: nested dict of float32 arrays.
    opt_state: optax state.
    skipped_steps: int32 scalar, updates skipped in a row because something
      was not finite.
  """

  step: jax.Array
  params: dict
  opt_state: tuple
  skipped_steps: jax.Array


def create_train_state(params, optimizer):
  """Returns the `TrainState` before the first step."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    skipped_steps=jnp.zeros((), jnp.int32),
  )
