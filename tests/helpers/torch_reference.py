"""What others compute: Transformers beside us (extra `parity`), random configs and weights, batches in their form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from helpers.text_pairs import Pair
from helpers.tiny_models import Example, formula_tensor

from jaxlm.nn.layers import ACTIVATIONS


def random_config(family: str, seed: int) -> Any:
    """A random small Transformers config of an encoder family, for classification."""
    from transformers import AutoConfig

    rng = np.random.default_rng(seed)
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    heads = pick(1, 2, 4)
    width = heads * pick(4, 6, 10)
    act = sorted(ACTIVATIONS)[seed % len(ACTIVATIONS)]
    layers, mlp, eps = pick(1, 2, 3, 5), pick(8, 20, 33), pick(1e-12, 1e-5, 1e-2)
    labels = pick(1, 2, 5)
    problem = "regression" if labels == 1 else pick("single_label_classification", "multi_label_classification")
    common = {
        "vocab_size": pick(64, 71, 90),
        "max_position_embeddings": pick(16, 25, 40),
        "initializer_range": pick(0.02, 0.5),
        "num_labels": labels,
        "problem_type": problem,
        "pad_token_id": pick(0, 1, 3),
    }
    if family == "distilbert":
        return AutoConfig.for_model(
            family, **common, n_layers=layers, n_heads=heads, dim=width, hidden_dim=mlp, activation=act,
            seq_classif_dropout=pick(0, 0.2), sinusoidal_pos_embds=bool(seed % 2),
        )  # fmt: skip
    if family == "deberta-v2":
        return AutoConfig.for_model(
            family, **common, num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
            intermediate_size=mlp, hidden_act=act, layer_norm_eps=eps, type_vocab_size=pick(0, 2, 3),
            pooler_hidden_act=pick("gelu", "tanh"), pooler_dropout=pick(0, 0.1), cls_dropout=pick(None, 0, 0.3),
            relative_attention=True, pos_att_type=["p2c", "c2p"], share_att_key=bool(seed % 2 == 0 or pick(0, 1)),
            position_buckets=pick(-1, 4, 6), max_relative_positions=pick(-1, 7, 24),
            norm_rel_ebd=pick("none", "layer_norm"), position_biased_input=bool(pick(0, 0, 1)),
        )  # fmt: skip
    if family == "modernbert":
        rope = {"full_attention": 160.0, "sliding_attention": 10.0}
        return AutoConfig.for_model(
            family, **common, num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
            intermediate_size=mlp, hidden_activation=act, classifier_activation=pick("gelu", "relu"), norm_eps=eps,
            local_attention=pick(2, 4, 6), classifier_pooling=pick("cls", "mean"),
            layer_types=[pick("full_attention", "sliding_attention") for _ in range(layers)],
            mlp_dropout=pick(0.0, 0.1),
            rope_parameters={kind: {"rope_type": "default", "rope_theta": base} for kind, base in rope.items()},
        )  # fmt: skip
    if family == "mpnet":
        return AutoConfig.for_model(
            family, **common, num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
            intermediate_size=mlp, hidden_act=act, layer_norm_eps=eps, hidden_dropout_prob=pick(0, 0.1),
        )  # fmt: skip
    if family == "albert":
        return AutoConfig.for_model(
            family, **common, num_hidden_layers=layers, num_hidden_groups=min(layers, pick(1, 2, 3)), hidden_size=width,
            embedding_size=pick(width, 8, 30), num_attention_heads=heads, intermediate_size=mlp, hidden_act=act,
            layer_norm_eps=eps, type_vocab_size=pick(1, 2, 3), classifier_dropout_prob=pick(0, 0.3),
            hidden_dropout_prob=pick(0, 0.1),
        )  # fmt: skip
    own = {"embedding_size": pick(width, 8, 30)} if family == "electra" else {}
    return AutoConfig.for_model(
        family, **common, **own, num_hidden_layers=layers, num_attention_heads=heads, hidden_size=width,
        intermediate_size=mlp, hidden_act=act, layer_norm_eps=eps, type_vocab_size=pick(1, 2, 3),
        classifier_dropout=pick(None, 0, 0.3), hidden_dropout_prob=pick(0, 0.1),
    )  # fmt: skip


def randomise(model):
    """Replaces every weight: Transformers starts biases at zero and norm scales at one."""
    import torch

    model.load_state_dict({k: torch.from_numpy(formula_tensor(k, v.shape)) for k, v in model.state_dict().items()})
    return model.eval()


def torch_inputs(model, texts: list[Example]) -> dict[str, Any]:
    """A padded batch as Transformers takes it."""
    import torch

    length = max(len(text.tokens) for text in texts)
    padded = lambda rows, fill: torch.tensor([row + [fill] * (length - len(row)) for row in rows])  # noqa: E731
    arrays = {
        "input_ids": padded([text.tokens for text in texts], model.config.pad_token_id),
        "attention_mask": padded([[1] * len(text.tokens) for text in texts], 0),
    }
    if getattr(model.config, "type_vocab_size", 0) > 1:
        arrays["token_type_ids"] = padded([text.token_types for text in texts], 0)
    return arrays


def torch_logits(model, texts: list[Example]) -> np.ndarray:
    """Transformers' logits of a padded batch."""
    import torch

    with torch.no_grad():
        return model(**torch_inputs(model, texts)).logits.numpy()


def strict_load(directory: Path, auto: str = "AutoModelForSequenceClassification"):
    """Loads by an Auto class; nothing may be missing, left over or of another shape."""
    import transformers

    model, info = getattr(transformers, auto).from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def torch_rnn(config: dict[str, Any]):
    """`torch.nn.LSTM` or `torch.nn.GRU` of a config.json's sizes."""
    import torch

    network = getattr(torch.nn, config["model_type"].upper())
    return network(config["embedding_size"], config["hidden_size"], config["num_hidden_layers"], batch_first=True)


def recurrent_tensors(config: dict[str, Any], head: str, num_outputs: int = 3) -> dict[str, np.ndarray]:
    """The tensors of a recurrent checkpoint, by `formula_tensor`."""
    vocab, embed, hidden = (config[key] for key in ("vocab_size", "embedding_size", "hidden_size"))
    shapes = {"embedding.weight": (vocab, embed)}
    shapes |= {f"rnn.{key}": tuple(value.shape) for key, value in torch_rnn(config).state_dict().items()}
    width = embed if config["tie_word_embeddings"] else hidden
    if width != hidden:
        shapes |= {"projection.weight": (width, hidden), "projection.bias": (width,)}
    if head == "classification":
        shapes["score.weight"] = (num_outputs, width)
    elif not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    return {key: formula_tensor(key, shape) for key, shape in shapes.items()}


def attention_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors of a recurrent encoder-decoder's checkpoint, by `formula_tensor`."""
    vocab, embed, hidden, layers = (
        config[key] for key in ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers")
    )
    shapes = {"embedding.weight": (vocab, embed)}
    for name, network in zip(("encoder", "decoder"), attention_rnns(config), strict=True):
        shapes |= {f"{name}.{key}": tuple(value.shape) for key, value in network.state_dict().items()}
    shapes |= {"bridge.weight": (layers * hidden, hidden), "attention.query.weight": (hidden, hidden)}
    if config["attention"] == "additive":
        shapes |= {"attention.key.weight": (hidden, hidden), "attention.energy.weight": (1, hidden)}
    shapes["attention.combine.weight"] = (hidden, 2 * hidden)
    if config["tie_word_embeddings"] and embed != hidden:
        shapes["projection.weight"] = (embed, hidden)
    elif not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    return {key: formula_tensor(key, shape) for key, shape in shapes.items()}


def attention_rnns(config: dict[str, Any]) -> tuple[Any, Any]:
    """Torch's own modules of a recurrent encoder-decoder."""
    import torch

    network = getattr(torch.nn, config["model_type"].removesuffix("_seq2seq").upper())
    embed, hidden, layers = (config[key] for key in ("embedding_size", "hidden_size", "num_hidden_layers"))
    both = config["bidirectional"]
    encoder = network(embed, hidden // 2 if both else hidden, layers, batch_first=True, bidirectional=both)
    return encoder, network(embed + hidden * config["input_feeding"], hidden, layers, batch_first=True)


def attention_logits(config: dict[str, Any], tensors: Mapping[str, np.ndarray], pair: Pair) -> np.ndarray:
    """What a recurrent encoder-decoder computes, a token at a time, with torch's own LSTM or GRU: [U, V]."""
    import torch

    weights = {key: torch.from_numpy(value) for key, value in tensors.items()}
    encoder, decoder = attention_rnns(config)
    for name, network in (("encoder", encoder), ("decoder", decoder)):
        network.load_state_dict({k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")})
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    table, logits = weights["embedding.weight"], []
    with torch.no_grad():
        states = encoder(table[torch.tensor(pair.tokens)][None])[0][0]
        ends, half = states[-1], hidden // 2
        if config["bidirectional"]:
            ends = torch.cat([states[-1, :half], states[0, half:]])
        h = torch.tanh(weights["bridge.weight"] @ ends).reshape(layers, 1, hidden)
        state = (h, torch.zeros_like(h)) if isinstance(decoder, torch.nn.LSTM) else h
        fed = torch.zeros(hidden)
        for token in pair.decoder_tokens:
            read = torch.cat([table[token], fed]) if config["input_feeding"] else table[token]
            output, state = decoder(read[None, None], state)
            query = weights["attention.query.weight"] @ output[0, 0]
            if config["attention"] == "general":
                scores = states @ query
            else:
                keys = states @ weights["attention.key.weight"].T
                scores = torch.tanh(keys + query) @ weights["attention.energy.weight"][0]
            seen = torch.softmax(scores, 0) @ states
            fed = torch.tanh(weights["attention.combine.weight"] @ torch.cat([output[0, 0], seen]))
            y = weights["projection.weight"] @ fed if "projection.weight" in weights else fed
            logits.append(weights.get("lm_head.weight", table) @ y)
    return torch.stack(logits).numpy()


def recurrent_logits(config: dict[str, Any], tensors: Mapping[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    """What torch's own LSTM or GRU computes with a checkpoint's tensors: [T, V], or [C] with a classification head."""
    import torch

    weights = {key: torch.from_numpy(value) for key, value in tensors.items()}
    rnn = torch_rnn(config)
    rnn.load_state_dict({key.removeprefix("rnn."): value for key, value in weights.items() if key.startswith("rnn.")})
    with torch.no_grad():
        states = rnn(weights["embedding.weight"][torch.tensor(tokens)][None])[0][0]
        if "projection.weight" in weights:
            states = states @ weights["projection.weight"].T + weights["projection.bias"]
        if "score.weight" in weights:
            return (states[-1] @ weights["score.weight"].T).numpy()
        return (states @ weights.get("lm_head.weight", weights["embedding.weight"]).T).numpy()
