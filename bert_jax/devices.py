"""What the model may know of the devices it is traced for."""

import jax


def mesh_of_tpus():
  """Returns the abstract mesh in context if it is one of TPUs, or None.

  The steps put their mesh in context (`jax.sharding.use_abstract_mesh`); where
  none is, or another kind of device, the plain form of everything runs.
  """
  mesh = jax.sharding.get_abstract_mesh()
  device = mesh.abstract_device
  return mesh if device is not None and device.platform == "tpu" else None
