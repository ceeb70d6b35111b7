"""Settings of every test: offline, on sixteen devices of the CPU."""

import os
import signal

import jax

os.environ["HF_HUB_OFFLINE"] = "1"
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 16)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell's background job ignores Ctrl-C, and so would every process that a
# test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
