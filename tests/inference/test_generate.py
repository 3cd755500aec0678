"""Generation: greedy and sampled text against a loop written out, distributions of samples, ends, batches, meshes."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import FAST, tiny, token_logits, weights

from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.sources.table import Table
from jaxlm.errors import RunFailure, UserError
from jaxlm.inference import evaluator, slots
from jaxlm.inference import generate as generation
from jaxlm.inference.processors import warp
from jaxlm.inference.slot_steps import run
from jaxlm.models import FAMILIES, Model
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules
from jaxlm.tasks.records import Generation
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer

WRITERS = ("gpt2", "mistral")
PROMPTS = [[5], [7, 9, 30, 11, 8], [20, 21, 22], [3, 60, 40, 41, 50, 51, 52, 10]]


@functools.cache
def causal(family: str, compute: ComputeConfig | None = None) -> Model:
    model = tiny(family)
    return Model(model.family, model.config, "causal_lm", 0, compute or ComputeConfig())


def generate(model: Model, params, prompts, *, eos_id=(), pad_id: int = 0, batch_size: int = 32, **settings):
    """The best continuations with the settings by name, sampled."""
    ends = (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    wanted = Generation(**({"do_sample": True, "eos_ids": ends} | settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "SLOTS", batch_size)
        return [texts[0].tokens for texts in generation.generate(model, params, prompts, wanted, pad_id=pad_id)]


def next_logits(model: Model, params, text: list[int], prefix: int = 0) -> np.ndarray:
    """Of the whole text at once, without a cache; rows are padded on the right to one shape."""
    length = len(text)
    tokens = np.zeros((1, 24), np.int32)
    tokens[0, :length] = text
    inside = (np.arange(24)[None] < length).astype(np.int32)
    batch = {"tokens": tokens, "segment_ids": inside, "positions": np.arange(24, dtype=np.int32)[None] * inside}
    if prefix:
        batch["prefix"] = (np.arange(24)[None] < prefix).astype(np.int32)
    return token_logits(model, params, batch)[0, length - 1]


def greedily(model: Model, params, prompt: list[int], num: int, prefix: bool = False) -> list[int]:
    text = list(prompt)
    for _ in range(num):
        text.append(int(next_logits(model, params, text, len(prompt) if prefix else 0).argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("family", WRITERS)
def test_greedy_text_is_that_of_a_loop_without_a_cache(family, prefix):
    model = causal(family)
    params = weights(model, seed=3)
    expected = [greedily(model, params, prompt, 10, prefix) for prompt in PROMPTS]
    assert generate(model, params, PROMPTS, max_new_tokens=10, do_sample=False, prefix=prefix) == expected
    assert len({tuple(text) for text in expected}) == len(PROMPTS)  # the prompts matter
    assert sum(len(set(text)) > 2 for text in expected) > 1  # and so does what was written


def test_a_text_ends_with_its_end_token_and_the_others_go_on():
    model = causal("gpt2")
    params = weights(model, seed=3)
    texts = [greedily(model, params, prompt, 10) for prompt in PROMPTS]
    end = texts[1][4]
    assert not any(2 in text for text in texts)
    cut = [text[: text.index(end) + 1] if end in text else text for text in texts]
    assert {len(text) for text in cut} > {10}  # some end, some do not
    settings = {"max_new_tokens": 10, "do_sample": False}
    assert generate(model, params, PROMPTS, eos_id=end, **settings) == cut
    assert generate(model, params, PROMPTS, eos_id=[2, end], pad_id=end, **settings) == cut
    firsts = sorted({text[0] for text in texts})
    assert generate(model, params, PROMPTS, eos_id=firsts, **settings) == [text[:1] for text in texts]
    assert generate(model, params, PROMPTS, max_new_tokens=1, do_sample=False) == [text[:1] for text in texts]
    assert generate(model, params, [], max_new_tokens=1) == []


def chi_squared(drawn: np.ndarray, probs: np.ndarray) -> float:
    counts = np.bincount(drawn, minlength=len(probs))
    assert counts[probs == 0].sum() == 0
    kept = probs > 0
    return float(((counts[kept] - len(drawn) * probs[kept]) ** 2 / (len(drawn) * probs[kept])).sum())


LOGITS = np.asarray([1.0, 0.2, -0.5, 2.0, 0.0, -1.0, 1.5, 0.7])


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"temperature": 0.5}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"top_k": 3}, [0, 3, 6]),
        ({"top_k": 100, "temperature": 2.0}, [0, 1, 2, 3, 4, 5, 6, 7]),
        # The likeliest hold .38, .23, .14, .10 ...: the first two fall short of .7, three do not.
        ({"top_p": 0.7}, [0, 3, 6]),
        ({"top_p": 0.01}, [3]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4, 5, 6, 7]),
        # Of the three kept by top_k, the first two hold .81 of what they hold together.
        ({"top_k": 3, "top_p": 0.8}, [3, 6]),
        # A tenth of .38 is less likely than all but tokens 2 and 5.
        ({"min_p": 0.1}, [0, 1, 3, 4, 6, 7]),
        ({"min_p": 0.1, "top_k": 4, "temperature": 0.5}, [0, 3, 6]),
        ({"top_k": 0}, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_samples_follow_their_distribution(settings, kept):
    temperature = settings.get("temperature", 1.0)
    weight = np.exp(LOGITS / temperature) * np.isin(np.arange(8), kept)
    probs = weight / weight.sum()
    logits = jnp.tile(jnp.asarray(LOGITS, jnp.float32)[None], (4000, 1))
    drawn = jax.random.categorical(jax.random.key(0), warp(logits, Generation(**settings)))
    assert chi_squared(np.asarray(drawn), probs) < 29.9  # 7 degrees of freedom at most: p = 1e-4


def test_the_first_tokens_of_samples_follow_the_model():
    """Four thousand rows of one prompt, each with random numbers of its own; the second token given the first, too."""
    model = causal("gpt2")
    params = weights(model)
    drawn = np.asarray(generate(model, params, [[5, 6]] * 4096, max_new_tokens=2, temperature=2.0, batch_size=2048))
    for place, given, rows in ((0, [], drawn), (1, [int(np.bincount(drawn[:, 0]).argmax())], None)):
        rows = drawn if rows is not None else drawn[drawn[:, 0] == given[0]]
        logits = next_logits(model, params, [5, 6, *given]).astype(np.float64) / 2.0
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        assert len(rows) > 100
        # The rarest tokens together, so that every class is expected a few times.
        order = np.argsort(-probs)
        classes = np.minimum(np.argsort(order), 11)
        merged = np.bincount(classes, weights=probs, minlength=12)
        assert chi_squared(classes[rows[:, place]], merged) < 37.4  # 11 degrees of freedom, p = 1e-4


def test_samples_depend_on_index_and_seed_not_on_the_batch():
    model = causal("mistral")
    params = weights(model)
    settings = {"max_new_tokens": 8, "temperature": 1.5, "top_k": 40, "top_p": 0.95}
    texts = generate(model, params, PROMPTS, seed=1, **settings)
    assert texts == generate(model, params, PROMPTS, seed=1, **settings)
    assert texts == generate(model, params, PROMPTS, seed=1, batch_size=1, **settings)
    assert texts[:2] == generate(model, params, [*PROMPTS[:2], [1] * 15], seed=1, **settings)[:2]
    assert texts != generate(model, params, PROMPTS, seed=2, **settings)
    twice = generate(model, params, [PROMPTS[0]] * 2, seed=1, **settings)
    assert twice[0] == texts[0] != twice[1]


def test_lengths_and_rows_are_rounded_so_that_few_shapes_compile():
    model = causal("gpt2")
    params = weights(model)
    generate(model, params, PROMPTS, max_new_tokens=7, do_sample=False)
    before = run._cache_size()
    for prompts, num in ((PROMPTS[:3], 16), (PROMPTS, 1), ([[1] * 9, [2], [3]], 12)):
        assert [len(text) for text in generate(model, params, prompts, max_new_tokens=num, do_sample=False)] == (
            [num] * len(prompts)
        )
    assert run._cache_size() == before


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("gpt2", {"fsdp": 2, "tensor": 2}),
        ("qwen3", {"context": 2, "tensor": 2}),  # context splits prompts and leaves single tokens whole
    ],
)
def test_a_mesh_changes_no_text(family, sizes):
    params = weights(causal(family), seed=3)
    settings = {"max_new_tokens": 6, "temperature": 0.7, "top_k": 5}
    expected = generate(causal(family), params, PROMPTS[:3], **settings)
    rules = Rules(make_mesh("ddp", data=2, **sizes))
    model = causal(family, ComputeConfig(rules=rules))
    placed = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
    assert generate(model, placed, PROMPTS[:3], **settings) == expected


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"do_sample": True, "temperature": 0.7}, {"num_beams": 2}])
def test_a_mesh_changes_no_text_of_an_encoder_decoder(settings):
    wanted = Generation(max_new_tokens=6, eos_ids=(1,), **settings)

    def write(compute: ComputeConfig, place: bool) -> list[list[int]]:
        model = Model(FAMILIES["t5"], tiny("t5").config, "seq2seq_lm", 0, compute)
        params = weights(Model(model.family, model.config, "seq2seq_lm", 0, ComputeConfig()), seed=3)
        if place:
            params = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
        texts = generation.generate(model, params, [[0]] * len(PROMPTS), wanted, encoder_inputs=PROMPTS)
        return [text[0].tokens for text in texts]

    expected = write(ComputeConfig(), False)
    rules = Rules(make_mesh("ddp", data=2, fsdp=2, tensor=2))
    assert write(ComputeConfig(rules=rules), True) == expected
    assert len({tuple(text) for text in expected}) > 1


def test_a_prompt_may_fill_the_positions_to_the_last():
    model = causal("gpt2")  # of 24 positions
    params = weights(model)
    prompt = list(range(4, 26))
    assert generate(model, params, [prompt], max_new_tokens=2, do_sample=False) == [greedily(model, params, prompt, 2)]


def test_text_in_bfloat16_is_text():
    texts = generate(
        causal("mistral", ComputeConfig(dtype=jnp.bfloat16)), weights(causal("mistral")), PROMPTS, max_new_tokens=9
    )
    assert all(len(text) == 9 and 0 <= min(text) <= max(text) < 64 for text in texts)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ([[4], []], {}, r"prompt 1 is empty; expected at least one token"),
        ([[4] * 20], {}, r"prompt 0 has 20 tokens: with generation.max_new_tokens=5 more"),
        ([[4, 64]], {}, r"prompt 0 has a token outside the model's vocabulary of 64"),
        ([[4, -1]], {}, r"prompt 0 has a token outside"),
        ([[4]], {"max_new_tokens": 0}, r"max_new_tokens=0: expected at least 1"),
        ([[4]], {"temperature": 0.0}, r"temperature=0\.0: expected more than 0 \(do_sample=false"),
        ([[4]], {"top_k": -1}, r"top_k=-1: expected 0 \(all tokens\) or more"),
        ([[4]], {"min_p": 1.5}, r"min_p=1\.5: expected from 0 to 1"),
        ([[4]], {"num_return_sequences": 2, "do_sample": False}, r"expected do_sample=true or num_beams of at least"),
        ([[4]], {"num_return_sequences": 3, "num_beams": 2}, r"=3: expected at most num_beams=2"),
        ([[4]], {"min_new_tokens": 6}, r"min_new_tokens=6: expected at most max_new_tokens=5"),
        ([[4]], {"eos_id": 64}, r"eos_token_id: 64 is outside the model's vocabulary of 64"),
        ([[4]], {"bad_words": ((4, 64),)}, r"bad_words: 64 is outside"),
        ([[4] * 9], {"max_new_tokens": None, "max_length": 9}, r"prompt 0 has 9 tokens: expected fewer than"),
        ([[4]], {"top_p": 0.0}, r"top_p=0\.0: expected more than 0 and at most 1"),
        ([[4]], {"top_p": 1.1}, r"top_p=1\.1: expected more than 0 and at most 1"),
    ],
)
def test_mistakes_are_named(prompts, settings, message):
    model = causal("gpt2")
    with pytest.raises(UserError, match=message):
        generate(model, None, prompts, **{"max_new_tokens": 5, **settings})


def test_models_that_cannot_write_say_so():
    with pytest.raises(UserError, match="a model with a classification head cannot continue texts"):
        generate(tiny("gpt2"), None, PROMPTS, max_new_tokens=5)
    with pytest.raises(UserError, match="model family 'bert' cannot generate text"):
        model = tiny("bert")
        generate(Model(FAMILIES["bert"], model.config, "causal_lm", 0), None, PROMPTS, max_new_tokens=5)


def test_nothing_reads_the_cache_beyond_what_was_written():
    """Garbage there changes nothing."""
    model = causal("gpt2")
    params = weights(model)
    cache = model.init_cache(1, 24)
    dirty = cache._replace(keys=cache.keys + 1e3, values=cache.values - 1e3)
    step = jax.jit(lambda p, t, s, q, c: model.decode(p, t, s, q, c)[0].logits(), compiler_options=FAST)
    arrays = (jnp.asarray([PROMPTS[1]], jnp.int32), jnp.ones((1, 5), jnp.int32), jnp.arange(5, dtype=jnp.int32)[None])
    np.testing.assert_array_equal(step(params, *arrays, cache), step(params, *arrays, dirty))


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.3, "num_beams": 2},
        pytest.param({"do_sample": False}, marks=pytest.mark.slow),
        pytest.param({"do_sample": False, "num_beams": 3}, marks=pytest.mark.slow),
    ],
)
def test_texts_that_retire_and_slots_that_are_refilled_change_nothing(settings, monkeypatch):
    """Twenty-two texts through four slots: the columns of the cache become more, and are shifted, too."""
    done = []
    monkeypatch.setattr(generation, "_first_columns", lambda width, room, most: width + 6)
    for name in ("widen", "shift"):
        step = getattr(slots, name)
        monkeypatch.setattr(slots, name, lambda *a, name=name, step=step, **kw: done.append(name) or step(*a, **kw))
    model = causal("mistral")
    params = weights(model, seed=3)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 64, length).tolist() for length in [*range(3, 9), 3, 3, 8, 4, 5] * 2]
    settings = {"max_new_tokens": 14, "eos_id": range(20, 40, 3), **settings}
    apart = generate(model, params, prompts, batch_size=32, **settings)
    together = generate(model, params, prompts, batch_size=4, **settings)
    assert together == apart and len({len(text) for text in apart}) > 2
    assert set(done) == {"widen", "shift"}


def test_a_drawn_text_depends_on_the_number_of_its_prompt_alone():
    model, settings = causal("gpt2"), Generation(6, do_sample=True)
    params = weights(model, seed=3)
    together = generation.generate(model, params, [PROMPTS[1]] * 4, settings)
    assert len({tuple(text.tokens) for [text] in together}) > 2
    again = generation.generate(model, params, [PROMPTS[1]] * 4, settings, numbers=[2, 7, 2, 1])
    assert again[0] == again[2] == together[2] and again[3] == together[1]


def test_a_row_keeps_its_number_where_rows_before_it_are_bad(monkeypatch):
    examples = [Example({"tokens": np.ones(2, np.int32)}, row, prompt=np.ones(1, np.int32)) for row in (0, 2)]
    rows = tuple({"text": str(i)} for i in range(3))
    split = Examples(Table("t", ("text",), rows, (1, 4, 5), numbers=(1, 4, 5)), examples, [None] * 3, {})
    asked = []
    monkeypatch.setattr(evaluator, "generate", lambda *_, numbers, **__: asked.extend(numbers) or [])
    parts = SimpleNamespace(model=causal("gpt2"), layout=SimpleNamespace(pad_id=0))
    list(evaluator.Evaluator._generated(parts, None, split, Generation()))  # pyright: ignore[reportArgumentType]
    assert asked == [0, 4]


def test_a_text_ends_with_the_token_that_completes_a_stop_string():
    model = causal("gpt2")
    params = weights(model, seed=3)
    letters = [chr(ord("a") + i) for i in range(26)] + [chr(ord("A") + i) for i in range(26)] + list("0123456789")
    tokenizer = train_tokenizer(["".join(letters[:58])], TokenizerTrainingConfig(type="char", family="gpt2"))
    settings = {"max_new_tokens": 10, "do_sample": False}
    texts = generate(model, params, PROMPTS, **settings)
    spelled = [tokenizer.tokens(text) for text in texts]
    # The last of one prompt and the first of its text; two tokens of another; nothing that is written.
    across = tokenizer.tokens([PROMPTS[0][-1]])[0] + spelled[0][0]
    stop = (across, "".join(spelled[1][3:5]), "§")

    def cut(prompt: list[int], text: list[int]) -> list[int]:
        for end in range(1, len(text) + 1):
            if "".join(tokenizer.tokens([*prompt, *text[:end]])).endswith(stop):
                return text[:end]
        return text

    expected = [cut(prompt, text) for prompt, text in zip(PROMPTS, texts, strict=True)]
    assert len(expected[0]) == 1 and len(expected[1]) <= 5
    assert generate(model, params, PROMPTS, stop=stop, tokenizer=tokenizer, **settings) == expected


@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 2}])
def test_scores_that_are_no_numbers_are_said(settings):
    model = causal("gpt2")
    damaged = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), weights(model))
    with pytest.raises(RunFailure, match="scores of the next token are not finite"):
        generation.generate(model, damaged, [[5], [7, 9]], Generation(4, eos_ids=(2,), **settings))
