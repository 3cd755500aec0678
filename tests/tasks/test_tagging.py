"""Tagging: schemes, alignment of words and tokens, windows, decoding, and what is refused."""

from __future__ import annotations

import itertools
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.conll_rows import read_conll
from jaxlm.data.sources.table import Table
from jaxlm.data.sources.text_files import BadRow
from jaxlm.errors import UserError
from jaxlm.metrics.entities import entities_of
from jaxlm.tasks.embedding_rows import EmbeddingConfig
from jaxlm.tasks.records import Context, Request
from jaxlm.tasks.tag_schemes import convert_tags, detect_scheme, tag_names, transition_scores, viterbi
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.tagging_config import TaggingConfig
from jaxlm.tasks.text_words import words_of_text
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.stand_in import word_tokenizer
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.training import train_tokenizer

TEXTS = ["Anna met Émile in New York", "the café 東京 opened", "שלום world 😀 e\u0301t"] * 2


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return train_tokenizer(TEXTS, TokenizerTrainingConfig(vocab_size=70, min_frequency=1, lowercase=True))


def task(tokenizer: Tokenizer, max_length: int = 64, data: dict[str, Any] | None = None, **settings: Any) -> Tagging:
    settings = {"labels": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"), **settings}
    context = Context(DataConfig(max_length=max_length, stride=4, **(data or {})), tokenizer)
    return Tagging.create(TaggingConfig(**settings), context, None)


def table(*rows: dict[str, Any]) -> Table:
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    return Table("t.conll", columns, rows, tuple(range(1, len(rows) + 1)))


def answered(made: Tagging, rows: Table, tags: list[list[int]]) -> list[dict[str, Any]]:
    """Predictions of a model that says `tags` of each row's words, right at the tokens that carry them."""
    examples = made.examples(rows, labelled=False, key="x").examples
    predictions = []
    for i, row in enumerate(rows.rows):
        parts = []
        for example in (e for e in examples if e.row == i):
            said = np.asarray([tags[i][word] if word >= 0 else 0 for word in example.host.words], np.int32)
            parts.append((example, made.decode(example, {"tags": said})))
        predictions.append(made.prediction(row, made.answer(row, parts)))
    return predictions


def test_schemes_are_told_and_converted_both_ways():
    rng = random.Random(0)
    for _ in range(200):
        entities, place = [], 0
        for _ in range(rng.randint(0, 4)):
            start = place + rng.randint(0, 2)
            place = start + rng.randint(1, 3)
            entities.append((rng.choice("AB"), start, place))
        plain = ["O"] * (place + 1)
        for label, start, end in entities:
            plain[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
        for scheme in ("iob1", "iobes", "bmes", "bio"):
            converted = convert_tags(plain, scheme)
            assert entities_of(converted) == entities_of(plain)
            assert convert_tags(converted, "bio") == plain
    assert detect_scheme([["B-A", "I-A", "O"]]) == "bio"
    assert detect_scheme([["I-A", "O", "B-A"], ["O"]]) == "iob1"
    assert detect_scheme([["B-A", "E-A"]]) == detect_scheme([["U-A", "O"]]) == "iobes"
    assert detect_scheme([["B-A", "M-A", "E-A"]]) == "bmes"
    assert detect_scheme([["NN", "O", "B-x"]]) == "bare"
    assert detect_scheme([["B-A", "I-A", "E-A"], *[["B-A", "I-A"]] * 20, ["M-A", "PER"]]) == "bio"  # odd ones
    assert convert_tags(["I-A", "I-A", "B-A"], "bio") == ["B-A", "I-A", "B-A"]


@pytest.mark.parametrize("scheme", ["bio", "iobes", "bmes"])
def test_viterbi_finds_the_best_legal_sequence(scheme):
    names = tag_names(("A", "B"), scheme)
    transitions = transition_scores(names, scheme)
    rng = np.random.default_rng(0)
    for length in (1, 2, 3):
        scores = rng.normal(size=(length, len(names))) * 2
        legal = [
            path
            for path in itertools.product(range(len(names)), repeat=length)
            if convert_tags([names[i] for i in path], scheme) == [names[i] for i in path]
        ]
        best = max(legal, key=lambda path: sum(scores[i, tag] for i, tag in enumerate(path)))
        assert tuple(viterbi(scores, transitions)) == best
    assert viterbi(np.zeros((0, len(names))), transitions).size == 0


@pytest.mark.parametrize("kind", ["wordpiece", "byte"])
def test_words_keep_their_tags_and_characters(kind, wordpiece):
    """Pre-split words and plain text, in scripts of several kinds."""
    tokenizer = wordpiece if kind == "wordpiece" else byte_tokenizer()
    made = task(tokenizer, 128)
    words = ["Anna", "met", "Émile", "in", "東京", ",", "שלום", "😀", "e\u0301t", "a\tb"]
    tags = [1, 0, 1, 0, 3, 0, 3, 4, 0, 0]
    rows = table({"tokens": words, "tags": [made.label_names[i] for i in tags]})
    examples = made.examples(rows, labelled=True, key="x")
    assert examples.labels[0].tolist() == tags
    [example] = examples.examples
    carried = example.arrays["weights"] > 0
    assert example.arrays["labels"][carried].tolist() == [tags[i] for i in example.host.words[carried]]
    [answer] = answered(made, rows, [tags])
    joined = " ".join(words)
    assert answer["tags"] == rows.rows[0]["tags"]
    assert [(e["label"], e["token_start"], e["token_end"]) for e in answer["entities"]] == [
        ("PER", 0, 1), ("PER", 2, 3), ("LOC", 4, 5), ("LOC", 6, 8)
    ]  # fmt: skip
    assert all(joined[e["start"] : e["end"]] == e["text"] for e in answer["entities"])

    text = "Anna met\r\n\tÉmile, in 東京."
    spans = [(0, 4, "PER"), (11, 16, "PER"), (21, 23, "LOC")]
    plain = task(tokenizer, 128, text="text")
    rows = table({"text": text, "entities": [{"start": a, "end": b, "label": label} for a, b, label in spans]})
    [gold] = plain.examples(rows, labelled=True, key="x").labels
    assert [plain.label_names[i] for i in gold] == "B-PER O B-PER O O B-LOC I-LOC O".split()
    [answer] = answered(plain, rows, [gold.tolist()])
    assert [(e["start"], e["end"], e["label"]) for e in answer["entities"]] == spans
    assert [e["text"] for e in answer["entities"]] == [text[a:b] for a, b, _ in spans]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cafe\u0301s de\u0301ja\u0300", ["cafe\u0301s", "de\u0301ja\u0300"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שָׁלוֹם!", ["שָׁלוֹם", "!"]),
        ("می\u200cخواهم تهران", ["می\u200cخواهم", "تهران"]),
        ("👨\u200d👩\u200d👧👍🏽❤\ufe0fok", ["👨\u200d👩\u200d👧", "👍🏽", "❤\ufe0f", "ok"]),
        ("🇩🇪🇫🇷x1\ufe0f\u20e3", ["🇩🇪", "🇫🇷", "x1\ufe0f\u20e3"]),
        ("東か\u3099x", ["東", "か\u3099", "x"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("U.S., \u0301", ["U", ".", "S", ".", ",", "\u0301"]),
    ],
)
def test_words_of_a_text_keep_their_marks(text, words):
    found = words_of_text(text, byte_tokenizer())
    assert [text[a:b] for a, b in found.spans] == words


def test_words_that_share_a_token_are_one(caplog):
    """Spans that split a token are widened; of two in one token the first stands; both are counted."""
    made = task(word_tokenizer(["Mr", "U.S.A.", "北京大学", "rose"]), text="text", scheme="iobes",
                labels=("O", "B-LOC", "I-LOC", "E-LOC", "S-LOC"))  # fmt: skip
    text = "Mr U.S.A. 北京大学 rose"
    spans = [(0, 5, "LOC"), (10, 12, "LOC"), (12, 14, "LOC")]
    rows = table({"text": text, "entities": [{"start": a, "end": b, "label": label} for a, b, label in spans]})
    with caplog.at_level(logging.INFO, "jaxlm"):
        found = made.examples(rows, labelled=True, key="x")
    assert found.counts["widened_entities"] == 2 and found.counts["entities_sharing_a_token"] == 1
    assert found.counts["words_without_tokens"] == 0 and "1 entities sharing a token" in caplog.text
    [answer] = answered(made, rows, [found.labels[0].tolist()])
    assert [e["text"] for e in answer["entities"]] == ["Mr U.S.A.", "北京大学"]


def test_a_text_is_tokenized_when_it_is_read_and_not_when_it_is_answered(monkeypatch):
    made = task(byte_tokenizer(), text="text")
    row = {"text": "Anna met"}
    [example] = made.examples(table(row), labelled=False, key="x").examples
    for name in ("encode_with_offsets", "encode_parts"):
        monkeypatch.setattr(type(made.context.tokenizer), name, None)
    kept = made.answer(row, [(example, np.asarray([1, 0]))])
    assert made.prediction(row, kept) == {"entities": [{"label": "PER", "start": 0, "end": 4, "text": "Anna"}]}


def test_a_word_without_tokens_goes_on_inside_an_entity(wordpiece):
    for decode in ("greedy", "viterbi"):
        made = task(wordpiece, decode=decode, text="text")
        rows = table({"tokens": ["anna", "\u200b", "met", "\u200b"]})
        said = [[1, 0, 2, 0]] if decode == "greedy" else [np.eye(5)[[1, 0, 2, 0]]]
        [example] = made.examples(rows, labelled=False, key="x").examples
        values = np.asarray([said[0][max(0, word)] for word in example.host.words])
        kept = made.answer(rows.rows[0], [(example, made.decode(example, {"any": values}))])
        assert made.prediction(rows.rows[0], kept)["tags"] == ["B-PER", "I-PER", "I-PER", "O"]


def test_every_word_is_answered_where_it_has_most_context(wordpiece):
    made = task(wordpiece, 12)
    words = ["anna", "met", "the", "world"] * 6
    tags = [i % 5 for i in range(len(words))]
    rows = table({"tokens": words, "tags": [made.label_names[0]] * len(words)})
    examples = made.examples(rows, labelled=True, key="x")
    assert len(examples.examples) > 2 and examples.counts["truncated"] == 1
    carried = np.concatenate([e.host.words[e.host.words >= 0] for e in examples.examples])
    assert sorted(carried.tolist()) == list(range(len(words)))
    assert sum(float(e.arrays["weights"].sum()) for e in examples.examples) == len(words)
    for example in examples.examples[1:]:
        assert (example.host.words[1:3] == -1).all()  # the first tokens of a window have no context before them
    rows = table({"tokens": words})
    [answer] = answered(made, rows, [tags])
    assert answer["tags"] == [made.label_names[i] for i in tags]


def test_conll_files():
    lines = (
        "-DOCSTART- -X- O\n\n# newdoc = 1\nAnna NNP B-PER\n# NN O\n\n# text = x y z\nin IN O\nParis  NNP\tB-LOC\n\n"
        "a\tb c\n\nlast NN O"
    )
    rows = list(read_conll(iter(lines.splitlines(keepends=True)), ("tokens", "pos", "tags")))
    assert rows[0] == (4, {"tokens": ["Anna", "#"], "pos": ["NNP", "NN"], "tags": ["B-PER", "O"]})
    assert isinstance(rows[1][1], BadRow) and "line 9 has 2 fields, expected 3" in rows[1][1].problem
    assert isinstance(rows[2][1], BadRow) and rows[2][0] == 11
    assert rows[3] == (13, {"tokens": ["last"], "pos": ["NN"], "tags": ["O"]})
    spaced = list(read_conll(iter(["New York\tB-LOC\n", "\ufeff\tO\r\n"]), ("tokens", "tags")))
    assert spaced == [(1, {"tokens": ["New York", "\ufeff"], "tags": ["B-LOC", "O"]})]
    untidy = ["a \t O \n", "-DOCSTART-\tO\n", "b\tB-X\n", "\n", "# newdoc\n", "c\tO\n"]
    assert [row["tags"] for _, row in read_conll(iter(untidy), ("tokens", "tags"))] == [["O"], ["B-X"], ["O"]]
    assert list(read_conll(iter(["a;B\n"]), ("tokens", "tags"), ";")) == [(1, {"tokens": ["a"], "tags": ["B"]})]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "1 tags for 2 tokens"),
        ({"tokens": ["a"], "tags": ["X-PER"]}, "tag 'X-PER' is not one of the 5 tags"),
        ({"tokens": ["a"], "tags": ["B-ORG"]}, "tags: tag 'B-ORG' is not one of"),
        ({"tokens": [], "tags": []}, "tokens: expected at least one token"),
        ({"tokens": [1], "tags": ["O"]}, "tokens: expected a list of tokens, found"),
        ({"tokens": ["a"], "tags": None}, "tags: expected a list of tags, words such as 'B-PER', found None"),
        ({"tokens": ["a", "b"], "tags": ["O", " "]}, "tags: the tag of token 2 is blank"),
    ],
)
def test_bad_rows_of_tokens(wordpiece, row, problem):
    with pytest.raises(UserError, match=r"t\.conll, row 1: .*" + problem.split("(")[0]):
        task(wordpiece).examples(table(row), labelled=True, key="x")
    skipped = task(wordpiece, data={"on_bad_row": "skip"}).examples(table(row), labelled=True, key="x")
    assert not skipped.examples and problem in skipped.errors[0]


def test_odd_marks_are_bad_rows(wordpiece):
    """A tag outside the scheme of the others neither changes the scheme nor is learned."""
    rows = [{"tokens": ["a", "b"], "tags": ["B-PER", "I-PER"]}] * 11
    for odd in ("E-PER", "M-PER", "S-PER"):
        bad = table(*rows, {"tokens": ["a", "b"], "tags": ["B-PER", odd]})
        with pytest.raises(UserError, match=rf"row 12: tags: tag '{odd}' is not of the scheme .* bio \(marks B, I\)"):
            task(wordpiece).examples(bad, labelled=True, key="x")
    other = table(*[{"tokens": ["a", "b"], "tags": ["B-PER", "E-PER"]}] * 2)  # a file of another scheme
    assert task(wordpiece).examples(other, labelled=True, key="x").labels[0].tolist() == [1, 2]


def test_tags_that_are_no_words_are_named(wordpiece):
    bad = table({"tokens": ["a", "b"], "tags": [3, 0]})
    sources = TableSources({"train": bad}, {}, ("tokens",))
    with pytest.raises(UserError, match=r"t\.conll, row 1: tags: expected a list of tags, .* found \[3, 0\]"):
        Tagging.create(TaggingConfig(), Context(DataConfig(), wordpiece), sources)


@pytest.mark.parametrize(
    ("spans", "problem"),
    [
        ([(0, 4, "PER"), (2, 6, "LOC")], "overlap at character 2"),
        ([(0, 40, "PER")], "does not lie in the text of 13 characters"),
        ([(3, 3, "PER")], "does not lie in the text"),
        ([(4, 5, "PER")], "holds no word"),
        ([(0, 2, "PER"), (2, 4, "LOC")], "share the word at character 0"),
        ([(0, 4, "")], "expected whole numbers and a name"),
        ([(0, 4, "ORG")], "tag 'B-ORG' is not one of"),
    ],
)
def test_bad_spans(wordpiece, spans, problem):
    entities = [{"start": a, "end": b, "label": label} for a, b, label in spans]
    with pytest.raises(UserError, match="row 1: entities: .*" + problem):
        task(wordpiece, text="text").examples(
            table({"text": "Anna met York", "entities": entities}), labelled=True, key="x"
        )


def test_spans_as_doccano_writes_them(wordpiece):
    rows = table({"text": "Anna met York", "entities": [[0, 4, "PER"], [9, 13, "LOC"]]})
    assert task(wordpiece, text="text").examples(rows, labelled=True, key="x").labels[0].tolist() == [1, 0, 3]


def test_spans_inside_words_are_widened_and_counted(wordpiece):
    entities = [{"start": 1, "end": 5, "label": "PER"}, {"start": 9, "end": 13, "label": "LOC"}]
    made = task(wordpiece, text="text").examples(
        table({"text": "Anna met York", "entities": entities}), labelled=True, key="x"
    )
    assert made.counts["widened_entities"] == 1 and made.labels[0].tolist() == [1, 0, 3]


def test_words_that_the_tokenizer_keeps_nothing_of_are_outside(wordpiece):
    made = task(wordpiece)
    rows = table({"tokens": ["anna", "\u200b", "met"], "tags": ["B-PER", "O", "O"]})
    assert made.examples(rows, labelled=True, key="x").counts["words_without_tokens"] == 1
    [answer] = answered(made, table({"tokens": ["anna", "\u200b", "met"]}), [[1, 1, 0]])
    assert answer["tags"] == ["B-PER", "O", "O"]


@pytest.mark.parametrize(
    ("rows", "settings", "problem"),
    [
        ([{"text": "Anna", "tags": [[0, 4]]}], {"text": "text", "entities": "tags"},
         r"row 1: tags: expected an entity such as .*found \[0, 4\]"),
        ([{"tokens": ["Anna"], "tags": [1]}], {}, r"row 1: tags: .*found \[1\]; numbers have names where task.l"),
        ([{"text": "Anna", "entities": []}], {"text": "text"}, "no row of t.conll has an entity in its column 'ent"),
        ([{"tokens": "Anna", "tags": "B-PER"}, {"tokens": "slept", "tags": "O"}], {},
         r"each of its 2 rows has a single word; .* set data\.train\.format=conll"),
    ],
)  # fmt: skip
def test_training_rows_without_anything_to_learn(wordpiece, rows, settings, problem):
    sources = TableSources({"train": table(*rows)}, {}, ())
    with pytest.raises(UserError, match=problem):
        Tagging.create(TaggingConfig(**settings), Context(DataConfig(), wordpiece), sources)


def test_a_missing_column_is_told_with_the_key_that_names_it(wordpiece):
    rows = TableSources({"train": table({"tokens": ["Anna", "met"], "ner_tags": [1, 0]})}, {}, ())
    with pytest.raises(UserError, match=r"no column 'tags', which task\.tags asks for"):
        Tagging.create(TaggingConfig(), Context(DataConfig(), wordpiece), rows)
    data = DataConfig.model_validate({"train": {"rows": [{"words": ["Anna"], "tags": ["O"]}]}})
    with pytest.raises(UserError, match=r"no column 'tokens', which task\.tokens asks for"):
        Tagging.open(TaggingConfig(), Request(data, ("train",), Path()))
    assert EmbeddingConfig(text=("a", "b")).key_of("b") == "task.text"


def test_tags_as_numbers(wordpiece):
    made = Tagging.create(
        TaggingConfig(labels=("O", "B-PER", "I-PER")),
        Context(DataConfig(), wordpiece),
        TableSources({"train": table({"tokens": ["Anna", "met"], "tags": [1, 0]})}, {}, ()),
    )
    assert made.scheme == "bio"
    assert made.examples(table({"tokens": ["a", "b"], "tags": [1, 2]}), labelled=True, key="x").labels[0].tolist() == [
        1,
        2,
    ]
    with pytest.raises(UserError, match="found tags from 1 to 3; task.labels names 0 to 2"):
        made.examples(table({"tokens": ["a", "b"], "tags": [1, 3]}), labelled=True, key="x")


def settled(tokenizer: Tokenizer, *rows: dict[str, Any], known: list[str] | None = None, **settings: Any) -> Tagging:
    """The task of a run that learns from rows, from a checkpoint with the tags `known` if there are any."""
    hf_config = None if known is None else {"id2label": known}
    sources = TableSources({"train": table(*rows)}, {}, ())
    return Tagging.create(TaggingConfig(**settings), Context(DataConfig(), tokenizer, hf_config), sources)


def test_tags_of_rows_and_checkpoint(wordpiece, caplog):
    """Those of the checkpoint where they are the rows' own, in whatever scheme; else those of the rows."""
    row = {"tokens": ["a", "b", "c"], "tags": ["B-PER", "E-PER", "S-LOC"]}
    bio = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    made = settled(wordpiece, row, known=bio)
    assert (made.scheme, made.label_names) == ("bio", tuple(bio))
    assert made.examples(table(row), labelled=True, key="x").labels[0].tolist() == [1, 2, 3]
    assert settled(wordpiece, row, labels=bio).scheme == "bio"
    placeholders = [f"LABEL_{i}" for i in range(9)]
    assert settled(wordpiece, row, known=placeholders).label_names == settled(wordpiece, row).label_names
    assert "checkpoint's labels" not in caplog.text
    assert settled(wordpiece, row, known=["O", "B-ORG", "I-ORG"]).scheme == "iobes"
    assert "the checkpoint's labels (O, B-ORG, I-ORG) are not those of the training rows (O, B-LOC" in caplog.text
    spans = {"text": "Anna", "entities": [{"start": 0, "end": 4, "label": "PER"}]}
    assert settled(wordpiece, spans, known=bio, text="text").label_names == tuple(bio)
    assert settled(wordpiece, {"tokens": ["a", "b"], "tags": ["B_PER", "O"]}).scheme == "bare"
    assert "write 'B-PER' for them" in caplog.text


def test_rows_with_tokens_and_text(wordpiece):
    """The model's own of the two is read."""
    row = {"tokens": ["x"], "tags": ["O"], "text": "a b", "entities": []}
    for settings, words in (({}, 1), ({"text": "text"}, 2)):
        [gold] = task(wordpiece, **settings).examples(table(row), labelled=True, key="x").labels
        assert len(gold) == words


def test_settings_that_do_not_fit(wordpiece):
    with pytest.raises(UserError, match=r"expected at least two different tags"):
        task(wordpiece, labels=("O",))
    with pytest.raises(UserError, match=r"t\.conll: tags: expected at least two different tags, found NN"):
        settled(wordpiece, {"tokens": ["a"], "tags": ["NN"]})
    with pytest.raises(UserError, match=r"task\.labels: the name 'O' stands for more than one label"):
        task(wordpiece, labels=("O", "O", "B-PER"))
    with pytest.raises(ValueError, match="scheme=bare is for tags of tokens"):
        TaggingConfig(text="text", scheme="bare")
    short = task(wordpiece, 3).examples(table({"tokens": ["anna", "met"]}), labelled=False, key="x").examples
    assert [len(example.tokens) for example in short] == [3] * len(short)
