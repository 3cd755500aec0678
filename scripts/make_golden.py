"""Writes tests/golden/<family>.json: what Transformers computes for tiny configs whose weights follow a formula.

    python scripts/make_golden.py        (needs the `parity` extra)

Each file holds config.json, examples and logits; `formula_tensor` in tests/tiny.py gives the weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.append(str(TESTS))

from tiny import examples, formula_tensor  # noqa: E402

BERT_LIKE = {
    "vocab_size": 64, "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 20, "type_vocab_size": 2, "num_labels": 3, "layer_norm_eps": 1e-3,
}  # fmt: skip
CONFIGS = {
    "bert": {**BERT_LIKE, "hidden_act": "gelu"},
    "distilbert": {
        "vocab_size": 64,
        "n_layers": 3,
        "dim": 16,
        "n_heads": 4,
        "hidden_dim": 24,
        "max_position_embeddings": 20,
        "num_labels": 3,
        "activation": "gelu",
    },  # fmt: skip
    "electra": {**BERT_LIKE, "embedding_size": 12, "hidden_act": "relu"},
    "roberta": {**BERT_LIKE, "hidden_act": "gelu_new"},
    "xlm-roberta": {**BERT_LIKE, "type_vocab_size": 1, "pad_token_id": 3},
}


def main() -> None:
    for family, settings in CONFIGS.items():
        config = AutoConfig.for_model(family, **settings)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        model.load_state_dict({k: torch.from_numpy(formula_tensor(k, v.shape)) for k, v in model.state_dict().items()})
        texts = examples(6, seed=1)
        has_types = settings.get("type_vocab_size", 0) > 1
        logits = []
        for text in texts:
            types = {"token_type_ids": torch.tensor([text.token_types])} if has_types else {}
            with torch.no_grad():
                logits.append(model(input_ids=torch.tensor([text.tokens]), **types).logits[0].tolist())
        golden = {
            "transformers": transformers.__version__,
            "config": {"model_type": family, **settings, "pad_token_id": config.pad_token_id},
            "examples": [text._asdict() for text in texts],
            "logits": logits,
        }
        path = TESTS / "golden" / f"{family}.json"
        path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
        print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
