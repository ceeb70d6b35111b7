"""Arithmetic that a training step needs, and what a device could do.

"Model FLOPs": the matrix products of the forward pass, times three for
forward and backward, whatever the program really executes. Only matrix
products count, a multiply-add as two. Their ratio to a device's peak is the
model FLOPs utilisation (Chowdhery et al. 2022, appendix B).
"""

# Dense bfloat16 FLOP/s of one jax device, from the vendors' data sheets, by
# `device_kind`. A device of v2, v3 or TPU7x is one of a chip's two cores; one
# of v4 or v5p is a whole chip.
PEAK_FLOPS = {
  "TPU v2": 46e12 / 2,
  "TPU v3": 123e12 / 2,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v5p": 459e12,
  "TPU v6 lite": 918e12,
  "TPU v6e": 918e12,
  "TPU7x": 2307e12 / 2,
  "NVIDIA A100-SXM4-40GB": 312e12,
  "NVIDIA A100-SXM4-80GB": 312e12,
  "NVIDIA H100 80GB HBM3": 989e12,
  "NVIDIA H200": 989e12,
}


def count_train_flops(config, batch_size, max_seq_length, max_predictions):
  """Counts the model FLOPs of one pretraining step.

  Args:
    config: `BertConfig`; its real vocabulary is counted, without padding.
    batch_size: sequences, over all devices.
    max_seq_length: slots a sequence; padding counts, as it is computed.
    max_predictions: positions a sequence at which the head runs.

  Returns:
    float, FLOPs of forward and backward pass.
  """
  hidden, wide = config.hidden_size, config.intermediate_size
  projections = 4 * hidden**2 + 2 * hidden * wide
  attention = 2 * max_seq_length * hidden
  layers = config.num_hidden_layers * max_seq_length
  head = hidden**2 + hidden * config.vocab_size
  pooler_and_pairs = hidden**2 + 2 * hidden
  multiply_adds = (
    layers * (projections + attention)
    + max_predictions * head
    + pooler_and_pairs
  )
  return 3.0 * 2 * batch_size * multiply_adds


def peak_flops(device):
  """Looks up a device's bfloat16 peak.

  Args:
    device: `jax.Device`.

  Returns:
    float, FLOP/s, or None where the device is not known.
  """
  return PEAK_FLOPS.get(device.device_kind)
