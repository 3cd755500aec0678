"""Rows of the pretraining objectives, by hand and by their statistics, and their losses."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.dataset import CorpusDataset, CorpusSources
from jaxlm.data.corpus.row_plan import Segment
from jaxlm.errors import UserError
from jaxlm.nn.heads import FactoredLogits
from jaxlm.objectives.language_model import measure_replaced_tokens, replaced_tokens_loss
from jaxlm.tasks.base import Task
from jaxlm.tasks.causal_lm import CausalLM, CausalLMConfig
from jaxlm.tasks.language_model import token_metrics
from jaxlm.tasks.masked_lm import MaskedLM, MaskedLMConfig
from jaxlm.tasks.prefix_lm import PrefixLM, PrefixLMConfig
from jaxlm.tasks.records import Context
from jaxlm.tasks.replaced_tokens import ReplacedTokens, ReplacedTokensConfig
from jaxlm.tasks.span_corruption import SpanCorruption, SpanCorruptionConfig
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.tokenizer.training import train_tokenizer
from jaxlm.tokenizer.vocabulary import continues_word

TEXT = ["the quick brown fox jumps over the lazy dog and runs away from the other foxes"] * 3


def generator(seed=0):
    return np.random.default_rng(seed)


def segments(*tokens: list[int]) -> list[Segment]:
    return [Segment(np.asarray(ids, np.int32)) for ids in tokens]


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train_tokenizer(TEXT, TokenizerTrainingConfig(vocab_size=80, min_frequency=1))


@pytest.fixture(scope="module")
def t5(shared_data) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizers" / "t5-base")


def task_of(kind: type[Task], config: object, tokenizer: Tokenizer, length: int):
    return kind.create(config, Context(DataConfig(max_length=length), tokenizer), None)


def padded_with(pad_id: int) -> Tokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.pad_id = pad_id
    return tokenizer


def test_causal_row_by_hand():
    task = task_of(CausalLM, CausalLMConfig(), padded_with(9), 8)
    row = task.row(segments([1, 2, 3, 4], [5, 6, 7]), generator())
    assert {key: value.tolist() for key, value in row.items()} == {
        "tokens": [1, 2, 3, 5, 6, 9, 9, 9],
        "segment_ids": [1, 1, 1, 2, 2, 0, 0, 0],
        "positions": [0, 1, 2, 0, 1, 0, 0, 0],
        "labels": [2, 3, 4, 6, 7, 0, 0, 0],
        "weights": [1, 1, 1, 1, 1, 0, 0, 0],
    }
    assert task.row([], generator())["weights"].sum() == 0
    with pytest.raises(ValueError, match="9 tokens do not fit a row of 8"):
        task.row(segments(list(range(10))), generator())


def test_prefix_row_asks_for_what_follows_the_prefix():
    task = task_of(PrefixLM, PrefixLMConfig(), padded_with(0), 8)
    sizes = []
    for seed in range(400):
        row = task.row(segments([1, 2, 3, 4, 5], [6, 7]), generator(seed))
        assert row["tokens"].tolist() == [1, 2, 3, 4, 6, 0, 0, 0]
        assert row["labels"].tolist() == [2, 3, 4, 5, 7, 0, 0, 0]
        size = int(row["prefix"][:4].sum())
        sizes.append(size)
        assert row["prefix"].tolist() == [1] * size + [0] * (4 - size) + [1, 0, 0, 0]
        # The last token of the prefix predicts the first behind it.
        assert row["weights"].tolist() == [0] * (size - 1) + [1] * (5 - size) + [1, 0, 0, 0]
    shares = np.bincount(sizes, minlength=5)[1:] / 400
    assert np.abs(shares - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 400)


def test_masked_row(wordpiece):
    task = task_of(MaskedLM, MaskedLMConfig(mask_rate=0.25), wordpiece, 16)
    ordinary = [i for i in range(wordpiece.vocab_size) if i not in wordpiece.special_ids]
    first, second = ordinary[3:8], ordinary[10:13]
    row = task.row(segments(first, second), generator(3))
    cls, sep = wordpiece.cls_id, wordpiece.sep_id
    original = [cls, *first, sep, cls, *second, sep, 0, 0, 0, 0]
    assert row["segment_ids"].tolist() == [1] * 7 + [2] * 5 + [0] * 4
    assert row["positions"].tolist() == [*range(7), *range(5), 0, 0, 0, 0]
    real = row["weights"] > 0
    assert real.sum() == 2 == round(0.25 * 8) and real[:2].all() and len(real) == task.rows.slots == 4
    columns = row["slot_positions"][real]
    assert row["labels"][real].tolist() == [original[c] for c in columns]
    others = [c for c in range(16) if c not in columns]
    assert row["tokens"][others].tolist() == [original[c] for c in others]
    assert "original_tokens" not in row
    assert task.row([], generator())["weights"].sum() == 0


def test_masks_follow_the_generator_alone(wordpiece):
    task = task_of(MaskedLM, MaskedLMConfig(), wordpiece, 64)
    text = segments([i for i in range(wordpiece.vocab_size) if i not in wordpiece.special_ids][:50])
    first, again, other = (task.row(text, generator(seed)) for seed in (1, 1, 2))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert (first["slot_positions"] != other["slot_positions"]).any()


def test_replaced_tokens_masks_without_random_tokens(wordpiece):
    task = task_of(ReplacedTokens, ReplacedTokensConfig(mask_rate=0.5), wordpiece, 64)
    ordinary = [i for i in range(wordpiece.vocab_size) if i not in wordpiece.special_ids][:50]
    masked = kept = 0
    for seed in range(200):
        row = task.row(segments(ordinary), generator(seed))
        hidden = row["tokens"][row["slot_positions"][row["weights"] > 0]]
        same = hidden == row["labels"][row["weights"] > 0]
        assert ((hidden == wordpiece.mask_id) | same).all()
        masked, kept = masked + (~same).sum(), kept + same.sum()
        assert row["original_tokens"][1:51].tolist() == ordinary
    assert abs(masked / (masked + kept) - 0.85) < 5 * math.sqrt(0.85 * 0.15 / (masked + kept))
    assert task.model_overrides(task.config) == {"generator_size": 0.25}


def test_span_rows_fill_encoder_and_decoder(t5):
    task = task_of(SpanCorruption, SpanCorruptionConfig(), t5, 512)
    assert task.longest == 568 and task.target_length == 120  # 114 in T5's own computation, to a multiple of 8
    row = task.row(segments(list(range(100, 668))), generator())
    assert row["tokens"].shape == (512,) and row["labels"].shape == (120,)
    assert (row["segment_ids"] == 1).all()
    target = row["labels"][row["weights"] > 0]
    assert len(target) == 114 and target[-1] == t5.eos_id
    assert row["decoder_tokens"][0] == t5.pad_id
    np.testing.assert_array_equal(row["decoder_tokens"][1:114], target[:-1])
    assert t5.tokens(target[:1]) == ["<extra_id_0>"]
    # Short segments: whatever fits by their cost fits both sides.
    lengths = generator().integers(1, 60, 200)
    costs = task.cost(np.arange(61))
    assert (np.diff(costs) >= 0).all()
    chosen, row_length = [], 512
    for n in lengths:
        if costs[n] <= row_length:
            chosen.append(list(range(100, 100 + int(n))))
            row_length -= costs[n]
    row = task.row(segments(*chosen), generator())
    assert row["segment_ids"].max() == row["decoder_segment_ids"].max() == len(chosen) > 5
    # Each segment of the decoder begins with its start token.
    context = dataclasses.replace(task.context, decoder_start_id=7)
    other = dataclasses.replace(task, context=context).row(segments(*chosen), generator())
    first = np.flatnonzero(np.diff(row["decoder_segment_ids"], prepend=0) > 0)
    assert (other["decoder_tokens"][first] == 7).all() and (row["decoder_tokens"][first] == t5.pad_id).all()
    np.testing.assert_array_equal(np.delete(other["decoder_tokens"], first), np.delete(row["decoder_tokens"], first))


def test_span_corruption_counts_its_sentinels(t5):
    with pytest.raises(UserError, match="a row has up to .* spans, the tokenizer 100 sentinels"):
        task_of(SpanCorruption, SpanCorruptionConfig(mean_span=1.0), t5, 2048)


def test_tokenizers_without_the_tokens_are_refused(wordpiece, t5):
    with pytest.raises(UserError, match="no <extra_id_0>"):
        task_of(SpanCorruption, SpanCorruptionConfig(), _with_eos(wordpiece), 64)
    with pytest.raises(UserError, match="task.kind=masked_lm: the tokenizer has no mask token"):
        task_of(MaskedLM, MaskedLMConfig(), t5, 64)


def _with_eos(tokenizer: Tokenizer) -> Tokenizer:
    other = Tokenizer(tokenizer._files)
    other.eos_id = other.sep_id
    return other


def test_which_tokens_continue_a_word(wordpiece, t5, shared_data):
    gpt2 = load_tokenizer(shared_data / "tokenizers" / "gpt2")
    for tokenizer, text, expected in (
        (gpt2, " tokenization of things", {"Ġtoken": False, "ization": True, "Ġthings": False}),
        (t5, "unbelievable things", {"▁things": False}),
    ):
        [[encoded]] = tokenizer.encode([text], special_tokens=False)
        flags = dict(zip(tokenizer.tokens(encoded.ids), continues_word(tokenizer)[encoded.ids].tolist(), strict=True))
        assert expected.items() <= flags.items()
    tokens = wordpiece.tokens(range(wordpiece.vocab_size))
    assert [t for t, c in zip(tokens, continues_word(wordpiece), strict=True) if c] == [
        t for t in tokens if t.startswith("##")
    ]


class Outputs(NamedTuple):
    """As the network of `models.electra` returns."""

    generator: FactoredLogits
    discriminator: jax.Array
    replaced: jax.Array


def replaced_case():
    # One row of four tokens, the last of them padding; two were asked for, at uniform logits over 2 tokens.
    outputs = Outputs(
        FactoredLogits(jnp.zeros((1, 3, 2)), jnp.zeros((2, 2))),
        jnp.log(jnp.asarray([[3.0, 1 / 3, 3.0, 99.0]])),  # p(replaced) = 3/4, 1/4, 3/4
        jnp.asarray([[True, True, False, True]]),
    )
    batch = {
        "labels": jnp.asarray([[0, 1, 0]], jnp.int32),
        "weights": jnp.asarray([[1.0, 1.0, 0.0]]),
        "segment_ids": jnp.asarray([[1, 1, 1, 0]], jnp.int32),
    }
    return outputs, batch


def test_replaced_tokens_loss_by_hand():
    outputs, batch = replaced_case()
    total, weight = replaced_tokens_loss(discriminator_weight=50.0, mask_rate=0.5)(outputs, batch)
    discriminator = -math.log(3 / 4) - math.log(1 / 4) - math.log(1 / 4)
    assert float(weight) == 2.0
    assert float(total) == pytest.approx(2 * math.log(2) + 50 * 0.5 * discriminator, rel=1e-6)


def test_replaced_tokens_metrics_by_hand(wordpiece):
    outputs, batch = replaced_case()
    sums = {k: float(v) for k, v in measure_replaced_tokens(outputs, batch).items()}
    task = task_of(ReplacedTokens, ReplacedTokensConfig(), wordpiece, 8)
    scores = task.scores(sums, (), task.empty_dataset())
    discriminator = (math.log(4 / 3) + 2 * math.log(4)) / 3
    assert scores == pytest.approx(
        {
            "loss": math.log(2) + 50 * discriminator,
            "generator_loss": math.log(2),
            "generator_accuracy": 0.5,  # of equal logits the first is the highest
            "discriminator_loss": discriminator,
            "replaced_accuracy": 1 / 3,
            "replaced_precision": 1 / 2,
            "replaced_recall": 1 / 2,
        },
        rel=1e-6,
    )


def test_bits_per_byte_by_hand():
    sums = {"nll": 150 * math.log(2), "tokens": 150.0, "correct": 30.0}
    scores = {"loss": math.log(2), "perplexity": 2.0, "accuracy": 0.2}
    assert token_metrics(sums, 600) == pytest.approx({**scores, "bits_per_byte": 0.25})
    assert token_metrics(sums) == pytest.approx(scores)


@pytest.mark.parametrize(
    ("bos", "across", "expected"),
    [
        (True, False, (3, 0)),  # <s> is no text
        (False, False, (3, 3)),  # a byte of each document
        (False, True, (1, 1)),
        (True, True, (1, 0)),
    ],
)
def test_the_text_that_nothing_stands_before_is_not_counted(tmp_path, bos, across, expected):
    """Bits per byte of a model that knows nothing, log2 of the alphabet's size a token, whatever is left out."""
    source = {"rows": [{"text": text} for text in ("é, long enough", "b", "cc")]}
    config = DataConfig.model_validate({"validation": source, "concat_documents": across, "max_length": 8})
    tokenizer = byte_tokenizer(bos=bos, eos=False)
    task = CausalLM(CausalLMConfig(), Context(config, tokenizer))
    dataset = task.datasets(CorpusSources(config, ("validation",), "text", tmp_path, 0, lambda: None))["validation"]
    assert isinstance(dataset, CorpusDataset) and dataset.unpredicted(tokenizer) == expected
    text = len("é, long enough".encode()) + 3
    predicted = text + 3 * bos - expected[0]
    sums = {"nll": 8 * math.log(2) * predicted, "tokens": float(predicted), "correct": 0.0}
    bits = task.scores(sums, (), dataset)["bits_per_byte"]
    assert bits == pytest.approx(8 * predicted / (text - expected[1]))
