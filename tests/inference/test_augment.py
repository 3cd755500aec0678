"""`jaxlm augment`: copies whose words a masked language model chose, and copies that two translators wrote."""

from __future__ import annotations

import re
import string
from dataclasses import replace
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from helpers.finetuning_runs import read_jsonl, rows, write_config, write_jsonl
from helpers.hf_folders import write_checkpoint
from helpers.tiny_models import tiny

from jaxlm import cli
from jaxlm.config.loading import load_config
from jaxlm.data.augmentation.pieces import join_pieces, split_pieces
from jaxlm.data.augmentation.rewriting import Draft
from jaxlm.inference.masked_words import open_masked_words
from jaxlm.models import FAMILIES
from jaxlm.nn.layers import ComputeConfig
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer

WORDS = "alpha bravo charlie delta echo foxtrot golf hotel india juliett kilo lima".split()
SENTENCE = 'Alpha, bravo "charlie" DELTA echo-foxtrot golf; hotel india juliett kilo lima.'


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A masked language model of whole words, and a translator, both random."""
    made = tmp_path_factory.mktemp("models")
    for family, head, kind, changes in (
        ("bert", "masked_lm", "wordpiece", {"vocab_size": 200}),
        ("t5", "seq2seq_lm", "char", {"vocab_size": 160}),
    ):
        model = tiny(family, **changes)
        to_hf = FAMILIES[family].to_hf(model.config)
        architecture = FAMILIES[family].heads[head].architecture
        write_checkpoint(made / family, {"model_type": family, "architectures": [architecture], **to_hf}, head)
        size = {"vocab_size": 200} if kind == "wordpiece" else {}
        settings = TokenizerTrainingConfig.model_validate({"type": kind, "family": family, **size})
        train_tokenizer([" ".join(WORDS)] * 9, settings).save(made / family)
    return made


def draft(text: str, kept=(), seed: int = 0) -> Draft:
    return Draft(tuple(split_pieces(text, kept)[0]), np.random.default_rng(seed))


def test_words_become_other_words_and_all_else_stays(folders):
    rewriter = open_masked_words(str(folders / "bert"), share=0.3, top_k=5)
    inside = SENTENCE.index("golf"), SENTENCE.index("golf") + 4
    drafts = [draft(SENTENCE, [inside], seed) for seed in range(30)] + [draft("12 ... !"), draft("")]
    written = rewriter.rewrite(drafts)
    assert written[30:] == [list(drafts[30].pieces), []]
    changes = []
    for before, after in zip(drafts[:30], written[:30], strict=True):
        text, spans = join_pieces(after)
        assert [text[start:end] for start, end in spans] == ["golf"]
        assert [p.gap for p in after] == [p.gap for p in before.pieces]
        changed = [(a.text, b.text) for a, b in zip(before.pieces, after, strict=True) if a != b]
        changes += changed
        assert changed
    for old, new in changes:
        assert old.strip('",;.').casefold() != new.strip('",;.').casefold()
        assert new.strip('",;.').casefold() in (*WORDS, *string.ascii_lowercase)  # all words of the vocabulary
        assert re.sub("[A-Za-z-]", "", old) == re.sub("[A-Za-z-]", "", new)
        assert old.isupper() == new.isupper() or not old.isalpha()
    assert 0.15 < len(changes) / (30 * 9) < 0.45
    assert [join_pieces(p) for p in rewriter.rewrite([draft(SENTENCE, [inside], s) for s in range(30)])] == [
        join_pieces(p) for p in written[:30]
    ]


def test_candidates_are_the_likeliest_words_of_the_model(folders):
    rewriter = open_masked_words(str(folders / "bert"), share=1e-9, top_k=3)  # one word of each text
    setup = rewriter.trained.setup
    tokenizer = setup.tokenizer
    plain = replace(setup.model, compute=ComputeConfig())
    for seed in range(6):
        text = " ".join(np.random.default_rng(seed).choice(WORDS, 6, replace=False))
        [pieces] = rewriter.rewrite([draft(text, seed=seed)])
        new = [piece.text for piece in pieces]
        [place] = [i for i, word in enumerate(text.split()) if word != new[i]]
        known = [tokenizer.id(word) for word in text.split()]
        known[place] = tokenizer.mask_id
        ids = np.asarray([tokenizer.cls_id, *known, tokenizer.sep_id], np.int32)
        column = int(np.flatnonzero(ids == tokenizer.mask_id)[0])
        batch = {
            "tokens": ids[None], "segment_ids": np.ones_like(ids)[None],
            "positions": np.arange(len(ids), dtype=np.int32)[None], "slot_positions": np.asarray([[column]], np.int32),
        }  # fmt: skip
        params, arrays = jax.tree.map(jnp.asarray, (jax.device_get(rewriter.trained.params), batch))
        outputs = plain.apply(params, arrays, None)
        logits = np.asarray(outputs.logits())[0, 0]
        words = [tokenizer.tokens([i])[0] for i in np.argsort(-logits).tolist()]
        best = [word for word in words if word.isalpha() and word != text.split()[place]][:3]
        assert new[place] in best


def test_every_word_of_a_text_longer_than_the_model_may_be_replaced(folders):
    rewriter = open_masked_words(str(folders / "bert"), share=1.0, top_k=3)
    text = " ".join(np.random.default_rng(0).choice(WORDS, 70))
    [pieces] = rewriter.rewrite([draft(text)])
    assert len(pieces) == 70 and all(a != b.text for a, b in zip(text.split(), pieces, strict=True))


@pytest.fixture
def config(tmp_path):
    train = [{"text": " ".join(words), "label": label} for words, label in zip(pairwise(WORDS), "ab" * 6, strict=False)]
    write_jsonl(tmp_path / "train.jsonl", [{**row, "id": i} for i, row in enumerate(train)])
    write_jsonl(tmp_path / "validation.jsonl", rows(4))
    return write_config(tmp_path)


def test_the_rows_are_not_written_over(config, folders, tmp_path, capsys):
    for name in ("train", "validation"):
        path = tmp_path / f"{name}.jsonl"
        before = path.read_bytes()
        given = ["augment", "--config", str(config), "--output", str(path), "--by", "masked_lm", "--model"]
        assert cli.main([*given, str(folders / "bert")]) == 2
        assert f"it is a file of data.{name}, which would be lost" in capsys.readouterr().err
        assert path.read_bytes() == before


@pytest.mark.slow
def test_the_file_holds_rows_and_copies_and_is_read_in_their_place(config, folders, tmp_path, capsys):
    output = tmp_path / "more.jsonl"
    given = ["augment", "--config", str(config), "--output", str(output), "--by"]
    masked = [*given, "masked_lm", "--model", str(folders / "bert")]
    assert cli.main([*masked, "--copies", "2", "--share", "0.5"]) == 0
    written, train = read_jsonl(output), read_jsonl(tmp_path / "train.jsonl")
    assert written[:11] == train and len(written) == 33
    for copy in (written[11:22], written[22:]):
        assert [{**row, "text": ""} for row in copy] == [{**row, "text": ""} for row in train]
        assert all(a["text"] != b["text"] for a, b in zip(copy, train, strict=True))
    assert [row["text"] for row in written[11:22]] != [row["text"] for row in written[22:]]
    changed = load_config(config, [f"data.train={{path: {output}}}"])
    assert changed.data.train is not None and str(changed.data.train.path) == str(output)
    first = output.read_bytes()
    assert cli.main([*masked, "--copies", "2", "--share", "0.5"]) == 0 and output.read_bytes() == first
    assert cli.main([*masked, "--copies", "2", "--share", "0.5", "seed=1"]) == 0 and output.read_bytes() != first

    translated = [*given, "back_translation", "--model", str(folders / "t5"), "--back-model", str(folders / "t5")]
    drawn = ["--generation", "do_sample=true", "--generation", "max_new_tokens=8"]
    assert cli.main([*translated, "--copies", "2", "--only-copies", *drawn]) == 0
    copies = read_jsonl(output)
    assert len(copies) > 2 and all(row["text"] != train[row["id"]]["text"] for row in copies)
    assert all(row["label"] == train[row["id"]]["label"] for row in copies)
    texts = {row["id"]: [other["text"] for other in copies if other["id"] == row["id"]] for row in copies}
    assert any(len(set(found)) == 2 for found in texts.values())  # both copies of a row, drawn apart


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["back_translation", "--model", "{t5}"], "--back-model: expected the model that translates back"),
        (["back_translation", "--model", "{bert}", "--back-model", "{t5}"], "masked_lm head"),
        (["masked_lm", "--model", "{t5}"], "--model .*a t5 fills no masks"),
        (["masked_lm", "--model", "./nowhere"], "--model"),
        (["masked_lm", "--model", "{bert}", "--back-model", "{t5}"], "--back-model: only with"),
        (["masked_lm", "--model", "{bert}", "data.keep_labels={a: 0.5}"], "data.keep_labels"),
        (["masked_lm", "--model", "{bert}", "train.folds=3", "data.validation=null"], "folds"),
        (["masked_lm", "--model", "{bert}", "data.validation={fraction: 0.2}"], "data.validation.fraction"),
        (["back_translation", "--model", "{t5}", "--back-model", "{t5}", "--generation", "beams=2"], "beams"),
    ],
)
def test_what_cannot_be_is_said(arguments, said, config, folders, tmp_path, capsys):
    places = {"{t5}": str(folders / "t5"), "{bert}": str(folders / "bert")}
    filled = [places.get(argument, argument) for argument in arguments]
    output = tmp_path / "no.jsonl"
    assert cli.main(["augment", "--config", str(config), "--output", str(output), "--by", *filled]) == 2
    assert re.search(said, capsys.readouterr().err) and not output.exists()


def test_labels_inside_of_texts_stay_where_they_are_found(folders, tmp_path, capsys):
    tagged = [{"tokens": WORDS[:6], "ner_tags": ["O", "B-x", "I-x", "O", "O", "O"]} for _ in range(4)]
    write_jsonl(tmp_path / "train.jsonl", tagged)
    write_jsonl(tmp_path / "validation.jsonl", tagged)
    path = tmp_path / "config.yaml"
    config = yaml.safe_load(write_config(tmp_path).read_text())
    path.write_text(yaml.safe_dump({**config, "task": {"kind": "tagging", "tags": "ner_tags"}}))
    output = tmp_path / "more.jsonl"
    given = ["augment", "--config", str(path), "--output", str(output), "--model", str(folders / "bert"), "--by"]
    assert cli.main([*given, "masked_lm", "--share", "0.9"]) == 0
    for row in read_jsonl(output)[4:]:
        assert row["tokens"][1:3] == WORDS[1:3] and row["tokens"] != WORDS[:6]
        assert list(row["ner_tags"]) == ["O", "B-x", "I-x", "O", "O", "O"]
    capsys.readouterr()
    translate = ["back_translation", "--back-model", str(folders / "t5")]
    assert cli.main([*given, *translate]) == 2
    assert "words of the text carry the labels" in capsys.readouterr().err
