"""jaxlm: pretrain, fine-tune, evaluate and export language models in JAX."""

__version__ = "0.1.0"
