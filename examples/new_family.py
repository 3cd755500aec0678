"""A new model family from outside the package: BERT under another name, with a small preset of its own.

python scripts/finetune.py --plugin examples/new_family.py --config my.yaml

with `model: {family: toy_bert, preset: toy}` in the config.
"""

from __future__ import annotations

from dataclasses import replace

from jaxlm.models import FAMILIES, register
from jaxlm.models.base import override

BERT = FAMILIES["bert"]
TOY = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64}

register(replace(BERT, name="toy_bert", presets={"toy": override(BERT.config(), TOY)}))
