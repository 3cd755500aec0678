"""Generation beside Transformers, token by token: greedy and beam search with each setting, several texts, samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest
from helpers.hf_folders import load_checkpoint

from jaxlm.inference.generate import Hypothesis, generate
from jaxlm.inference.processors import warp
from jaxlm.models import FAMILIES, Model
from jaxlm.tasks.records import Generation

pytestmark = pytest.mark.parity
_ENCODER_DECODER = {
    "num_layers": 2, "d_model": 16, "num_heads": 4, "d_kv": 6, "d_ff": 32, "decoder_start_token_id": 0,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
}  # fmt: skip
_BART = {
    "encoder_layers": 2, "decoder_layers": 2, "d_model": 16, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "decoder_start_token_id": 0,
    "forced_eos_token_id": None,
}  # fmt: skip
SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 4, "n_positions": 64},
    "llama": {
        "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64, "tie_word_embeddings": False,
    },
    "t5": {**_ENCODER_DECODER, "feed_forward_proj": "relu"},
    **dict.fromkeys(("bart", "mbart", "marian", "pegasus"), _BART),
    "mt5": {**_ENCODER_DECODER, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}  # fmt: skip
V, ENDS, NEW = 64, [2, 9, 17, 33], 14
PROMPTS = [np.random.default_rng(i).integers(3, V, [1, 3, 4, 9, 12][i % 5]).tolist() for i in range(20)]
NAMES = {
    "eos_token_id": "eos_ids", "forced_bos_token_id": "forced_bos_id", "forced_eos_token_id": "forced_eos_id",
    "bad_words_ids": "bad_words",
}  # fmt: skip
PAIRS = [[a, b] for a in range(10, 30) for b in range(10, 40)]
CASES: list[dict[str, Any]] = [
    {},
    {
        "no_repeat_ngram_size": 3, "repetition_penalty": 1.3, "min_new_tokens": 4, "forced_eos_token_id": 2,
        "forced_bos_token_id": 7, "bad_words_ids": [[5], [6, 7], [9], *PAIRS],
    },
    {"num_beams": 4},
    {"num_beams": 4, "length_penalty": 2.0, "num_return_sequences": 4, "early_stopping": "never"},
    {"num_beams": 3, "length_penalty": -1.0, "early_stopping": True, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "repetition_penalty": 1.5, "min_new_tokens": 5, "bad_words_ids": [[5], [40, 41, 42], *PAIRS]},
    {
        "num_beams": 4, "forced_bos_token_id": 7, "forced_eos_token_id": 2, "early_stopping": True,
        "length_penalty": 0.0, "num_return_sequences": 2,
    },
]  # fmt: skip
"""Each setting, with what it may disturb."""
GREEDY, PROCESSED, N_BEST = 0, 1, 3
CASES_OF = {"gpt2": range(len(CASES)), "llama": (GREEDY, N_BEST), "t5": (PROCESSED, N_BEST), "mt5": (PROCESSED, N_BEST)}
"""Numbers of the cases of a family, of others the n-best texts alone: settings do not depend on the family."""
SLOW = ("mbart", "marian")
"""Between them BART and Pegasus have what these have."""
PAIRED = [
    pytest.param(family, case, marks=[pytest.mark.slow] * (family in SLOW))
    for family in SIZES
    for case in CASES_OF.get(family, (N_BEST,))
]


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """Tiny models compile for longer than they run."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Model, Any]:
    """Transformers' model, ours and its parameters; far from their first values, so that texts differ."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    ids = {"vocab_size": V, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(request.param, **ids, initializer_range=0.6, **SIZES[request.param])
    kind, head = AutoModelForCausalLM, "causal_lm"
    if FAMILIES[request.param].is_encoder_decoder:
        kind, head = AutoModelForSeq2SeqLM, "seq2seq_lm"
    theirs = kind.from_config(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim > 1 and parameter.requires_grad:  # positions that follow a formula learn nothing
                parameter.normal_(0, 0.6)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    model, loaded = load_checkpoint(folder, head)
    return theirs, model, loaded.params


def expected(theirs: Any, **settings: Any) -> tuple[list[list[list[int]]], list[list[float]]]:
    """Texts and scores of Transformers; prompts of one length together, so that nothing is padded."""
    import torch

    number = settings.get("num_return_sequences", 1)
    texts: list[Any] = [None] * len(PROMPTS)
    scores: list[Any] = [None] * len(PROMPTS)
    for length in {len(prompt) for prompt in PROMPTS}:
        chosen = [i for i, prompt in enumerate(PROMPTS) if len(prompt) == length]
        ids = torch.tensor([PROMPTS[i] for i in chosen])
        out = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), pad_token_id=0, max_new_tokens=NEW, eos_token_id=ENDS,
            return_dict_in_generate=True, output_scores=True, **settings,
        )  # fmt: skip
        before = 1 if theirs.config.is_encoder_decoder else length
        new = out.sequences[:, before:].reshape(len(chosen), number, -1).tolist()
        found = getattr(out, "sequences_scores", torch.zeros(len(chosen) * number)).reshape(-1, number).tolist()
        for row, i in enumerate(chosen):
            texts[i], scores[i] = new[row], found[row]
    return texts, scores


def ours(model: Model, params: Any, **settings: Any) -> list[list[Hypothesis]]:
    own = {NAMES.get(name, name): value for name, value in settings.items()}
    own["bad_words"] = tuple(map(tuple, own.get("bad_words", ())))
    wanted = Generation(max_new_tokens=NEW, eos_ids=tuple(ENDS), **own)
    if not model.family.is_encoder_decoder:
        return generate(model, params, PROMPTS, wanted)
    return generate(model, params, [[0]] * len(PROMPTS), wanted, encoder_inputs=PROMPTS)


@pytest.mark.parametrize(("models", "case"), PAIRED, indirect=["models"])
def test_texts_are_those_of_transformers(models, case):
    theirs, model, params = models
    case = CASES[case]
    texts, scores = expected(theirs, **case)
    written = ours(model, params, **case)
    lengths = set()
    for theirs_of_one, scores_of_one, ours_of_one in zip(texts, scores, written, strict=True):
        for text, score, own in zip(theirs_of_one, scores_of_one, ours_of_one, strict=True):
            assert text[: len(own.tokens)] == own.tokens
            assert set(text[len(own.tokens) :]) <= {0, ENDS[0]}  # what fills the row
            # A score of hundreds (length_penalty=-1) is of float32, too.
            assert own.score is None or own.score == pytest.approx(score, abs=1e-4, rel=1e-6)
            lengths.add(len(own.tokens))
    assert case or len(lengths) > 1


@pytest.mark.parametrize("settings", [
    {"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
])  # fmt: skip
def test_samples_are_drawn_from_the_scores_of_transformers(settings):
    import torch
    from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

    logits = np.random.default_rng(0).normal(0, 2, (50, V)).astype(np.float32)
    tiny = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=4, n_head=1, vocab_size=V))
    given = GenerationConfig(do_sample=True, **{"top_k": 0, **settings})
    given._eos_token_tensor = None
    processors = tiny._get_logits_processor(given, input_ids_seq_length=1, device="cpu", model_kwargs={})
    theirs = processors(torch.ones(50, 1, dtype=torch.long), torch.tensor(logits)).numpy()
    np.testing.assert_allclose(warp(jax.numpy.asarray(logits), Generation(**settings)), theirs, rtol=1e-6)
