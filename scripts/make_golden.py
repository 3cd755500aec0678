"""Writes tests/golden/<family>[-<head>].json: what Transformers (recurrent families: torch) computes for
tiny configs whose weights follow a formula.

    python scripts/make_golden.py [FAMILY ...]        (needs the `parity` extra)

Each file holds config.json, examples and logits (language models: at each text's last token); `formula_tensor` in
tests/helpers/tiny_models.py gives the weights.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
)

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path.append(str(TESTS))

from helpers.text_pairs import pairs, torch_pair_logits  # noqa: E402
from helpers.tiny_models import examples, formula_tensor  # noqa: E402
from helpers.torch_reference import (  # noqa: E402
    attention_logits,
    attention_tensors,
    recurrent_logits,
    recurrent_tensors,
)

BERT_LIKE = {
    "vocab_size": 64, "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
    "max_position_embeddings": 20, "type_vocab_size": 2, "num_labels": 3, "layer_norm_eps": 1e-3,
}  # fmt: skip
CONFIGS = {
    "albert": {**BERT_LIKE, "embedding_size": 12, "num_hidden_groups": 2, "hidden_act": "gelu_new"},
    "bert": {**BERT_LIKE, "hidden_act": "gelu"},
    "deberta-v2": {
        **BERT_LIKE,
        "type_vocab_size": 0,
        "hidden_act": "gelu",
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 6,
        "max_relative_positions": -1,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "pooler_hidden_act": "gelu",
    },  # fmt: skip
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
    "modernbert": {
        "vocab_size": 64,
        "num_hidden_layers": 4,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "intermediate_size": 24,
        "max_position_embeddings": 20,
        "num_labels": 3,
        "norm_eps": 1e-3,
        "local_attention": 4,
        "pad_token_id": 0,
        "classifier_pooling": "mean",
    },
    "mpnet": {key: value for key, value in BERT_LIKE.items() if key != "type_vocab_size"},
    "roberta": {**BERT_LIKE, "hidden_act": "gelu_new"},
    "xlm-roberta": {**BERT_LIKE, "type_vocab_size": 1, "pad_token_id": 3},
}

LLAMA_LIKE = {
    "vocab_size": 64, "num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 20, "num_labels": 3, "rms_norm_eps": 1e-3, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
DECODERS = {
    "gpt2": {
        "vocab_size": 64, "n_layer": 3, "n_embd": 16, "n_head": 4, "n_inner": 24, "n_positions": 20, "num_labels": 3,
        "layer_norm_epsilon": 1e-3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    },
    "llama": {
        **LLAMA_LIKE, "attention_bias": True, "mlp_bias": True, "rope_theta": 100.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    },
    "mistral": {**LLAMA_LIKE, "head_dim": 6, "sliding_window": 3},
    "qwen2": {**LLAMA_LIKE, "num_key_value_heads": 1, "tie_word_embeddings": True, "rope_theta": 100.0},
    "qwen3": {
        **LLAMA_LIKE, "head_dim": 8, "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
RECURRENT = {
    "vocab_size": 64, "num_hidden_layers": 3, "embedding_size": 12, "hidden_size": 16, "tie_word_embeddings": True,
}  # fmt: skip
_ATTENTION = {
    "vocab_size": 64, "num_hidden_layers": 2, "embedding_size": 12, "hidden_size": 16, "bidirectional": True,
}  # fmt: skip
ATTENTION = {
    "lstm_seq2seq": {**_ATTENTION, "attention": "additive", "input_feeding": True, "tie_word_embeddings": True},
    "gru_seq2seq": {**_ATTENTION, "attention": "general", "input_feeding": False, "tie_word_embeddings": False},
}
T5_LIKE = {
    "vocab_size": 64, "num_layers": 3, "num_decoder_layers": 2, "d_model": 16, "d_kv": 6, "num_heads": 4, "d_ff": 24,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6, "layer_norm_epsilon": 1e-3,
}  # fmt: skip
BART_LIKE = {
    "vocab_size": 64, "encoder_layers": 3, "decoder_layers": 2, "d_model": 16, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "max_position_embeddings": 24,
    "decoder_start_token_id": 0,
}  # fmt: skip
PAIRS = {
    "bart": {**BART_LIKE, "activation_function": "gelu"},
    "marian": {**BART_LIKE, "activation_function": "swish", "scale_embedding": True, "pad_token_id": 0},
    "mbart": {**BART_LIKE, "activation_function": "relu", "scale_embedding": True},
    "pegasus": {**BART_LIKE, "activation_function": "relu", "scale_embedding": True},
    "t5": {**T5_LIKE, "feed_forward_proj": "relu"},
    "t5-v1_1": {**T5_LIKE, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": {**T5_LIKE, "feed_forward_proj": "gated-gelu"},
}


def set_weights(model: Any) -> Any:
    """Gives every tensor the value of its key's formula, and tied ones that of the key they are stored under."""
    state = {k: torch.from_numpy(formula_tensor(k, v.shape)) for k, v in model.state_dict().items()}
    if model.config.model_type in ("marian", "pegasus"):  # whose positions are a formula of their own
        for stack in (model.model.encoder, model.model.decoder):
            stack.embed_positions.weight = torch.nn.Parameter(stack.embed_positions.create_weight(), False)
        state |= {key: value for key, value in model.state_dict().items() if "embed_positions" in key}
    tied = getattr(model, "_tied_weights_keys", None) or {}
    for key, source in tied.items() if model.config.tie_word_embeddings else ():
        state[key] = state[source]
    model.load_state_dict(state)
    return model.eval()


def write(name: str, family: str, settings: dict[str, Any], config: Any, texts: list[Any], logits: Any) -> None:
    golden = {
        "transformers": transformers.__version__,
        "config": {"model_type": family, **settings, "pad_token_id": config.pad_token_id},
        "examples": [text._asdict() for text in texts],
        "logits": logits,
    }
    path = TESTS / "golden" / f"{name}.json"
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
    print(path, path.stat().st_size, "bytes")


def logits_of(model: Any, text: Any, has_types: bool) -> torch.Tensor:
    types = {"token_type_ids": torch.tensor([text.token_types])} if has_types else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([text.tokens]), **types).logits[0]


def main() -> None:
    chosen = sys.argv[1:] or [*CONFIGS, *DECODERS, "lstm", "gru", *ATTENTION, *PAIRS]
    for family in filter(chosen.__contains__, CONFIGS):
        settings = CONFIGS[family]
        config = AutoConfig.for_model(family, **settings)
        has_types = settings.get("type_vocab_size", 0) > 1
        texts = examples(6, seed=1)
        model = set_weights(AutoModelForSequenceClassification.from_config(config))
        write(family, family, settings, config, texts, [logits_of(model, t, has_types).tolist() for t in texts])

        texts = texts[:3]
        model = set_weights(AutoModelForMaskedLM.from_config(config))
        last = [[round(x, 6) for x in logits_of(model, text, has_types)[-1].tolist()] for text in texts]
        write(f"{family}-masked_lm", family, settings, config, texts, last)
        if family == "electra":
            model = set_weights(AutoModelForPreTraining.from_config(config))
            tokens = [logits_of(model, text, has_types).tolist() for text in texts]
            write("electra-replaced_tokens", family, settings, config, texts, tokens)

    for family in filter(chosen.__contains__, DECODERS):
        settings = DECODERS[family]
        config = AutoConfig.for_model(family, **settings)
        texts = examples(6, seed=1)
        model = set_weights(AutoModelForSequenceClassification.from_config(config))
        write(family, family, settings, config, texts, [logits_of(model, t, False).tolist() for t in texts])
        texts = texts[:3]
        model = set_weights(AutoModelForCausalLM.from_config(config))
        last = [[round(x, 6) for x in logits_of(model, text, False)[-1].tolist()] for text in texts]
        write(f"{family}-causal_lm", family, settings, config, texts, last)

    for family in filter(chosen.__contains__, ("lstm", "gru")):  # against torch's own modules
        config = {"model_type": family, **RECURRENT}
        texts = examples(6, seed=1)
        tensors = recurrent_tensors(config, "classification")
        outputs = [recurrent_logits(config, tensors, text.tokens).tolist() for text in texts]
        write(family, family, RECURRENT, SimpleNamespace(pad_token_id=0), texts, outputs)
        tensors = recurrent_tensors(config, "causal_lm")
        last = [[round(float(x), 6) for x in recurrent_logits(config, tensors, t.tokens)[-1]] for t in texts[:3]]
        write(f"{family}-causal_lm", family, RECURRENT, SimpleNamespace(pad_token_id=0), texts[:3], last)

    for family in filter(chosen.__contains__, ATTENTION):
        config = {"model_type": family, **ATTENTION[family]}
        tensors, texts = attention_tensors(config), pairs(3, seed=1)
        last = [[round(float(x), 6) for x in attention_logits(config, tensors, text)[-1]] for text in texts]
        write(f"{family}-seq2seq_lm", family, ATTENTION[family], SimpleNamespace(pad_token_id=0), texts, last)

    for name in filter(chosen.__contains__, PAIRS):
        family = name.split("-")[0]
        config = AutoConfig.for_model(family, **PAIRS[name])
        model = set_weights(AutoModelForSeq2SeqLM.from_config(config))
        if name in ("t5-v1_1", "mt5"):  # a head of its own, as the published ones have; Transformers 5 ties new models
            own = formula_tensor("lm_head.weight", (config.vocab_size, config.d_model))
            model.lm_head.weight = torch.nn.Parameter(torch.from_numpy(own))
        texts = pairs(3, seed=1)
        last = [[round(float(x), 6) for x in torch_pair_logits(model, [text])[0][-1]] for text in texts]
        write(f"{name}-seq2seq_lm", family, PAIRS[name], config, texts, last)


if __name__ == "__main__":
    main()
