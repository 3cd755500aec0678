"""Config files as YAML: how scalars are read, and what is said of documents that are broken."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("written, number", [("1e-3", 0.001), ("1E-3", 0.001), ("+.5", 0.5), ("2.", 2.0), ("3", 3.0)])
def test_number_is_read_as_written(load, written, number):
    assert load(f"{{name: a, optimizer: {{learning_rate: {written}}}}}").optimizer.learning_rate == number


@pytest.mark.parametrize("word", ["no", "yes", "on", "off", "No", "y", "2024-01-01", "12:30:00", "1_000"])
def test_words_of_old_yaml_stay_text(load, word):
    config = load(f"{{name: a, task: {{labels: [{word}, other]}}, data: {{train: {{rows: [{{label: {word}}}]}}}}}}")
    assert config.task.labels == (word, "other")
    assert config.data.train is not None and config.data.train.rows == ({"label": word},)


def test_text_keys_take_scalars_as_written(load):
    config = load("{name: 2024, task: {labels: [0, 01, 1.50, true]}, model: {revision: 1e5}}")
    assert config.name == "2024"
    assert config.task.labels == ("0", "01", "1.50", "true")
    assert config.model.revision == "1e5"


def test_rows_keep_the_types_of_yaml(load):
    config = load("{name: a, data: {train: {rows: [{i: 010, h: 0x1F, f: 1.5, t: '7', b: true, z: null, 3: x}]}}}")
    row = {"i": 10, "h": 31, "f": 1.5, "t": "7", "b": True, "z": None, "3": "x"}
    assert config.data.train is not None and config.data.train.rows == (row,)
    assert [type(v) for v in config.data.train.rows[0].values()] == [type(v) for v in row.values()]


def test_whole_float_counts(load):
    assert load("{name: a, train: {steps: 1e4}}").train.steps == 10_000


def test_duplicate_keys(refused):
    text = "name: a\ntrain:\n  epochs: 1\n  steps: x\n  epochs: 2\n"
    assert refused(text) == [
        "c.yaml:5: epochs stands twice, first at c.yaml:3",
        'c.yaml:4: train.steps: expected integer > 0 or null, found "x"',
    ]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "c.yaml: the file is empty; expected a mapping with at least the key name"),
        ("# only a comment\n", "c.yaml: the file is empty; expected a mapping with at least the key name"),
        ("- a\n- b\n", 'c.yaml:1: expected a mapping of keys to values, found ["a", "b"]'),
        ("name: a\n---\nname: b\n", "c.yaml:2: not valid YAML: column 1, in the line '---': a second document begins"),
        ("name: a\nmodel: &m\n  config: *m\n", "c.yaml:3: an alias refers to what it stands in"),
        ("name: !!python/name:os.system a\n", "c.yaml:1: the tag tag:yaml.org,2002:python/name:os.system is not"),
        ("name: a\n[x]: 1\n", "c.yaml:2: expected a word as key, found a list or mapping"),
        ("name: a\n# caf\xe9\n".encode("latin-1"), "c.yaml:2: expected UTF-8, found byte 0xe9 at offset 13"),
    ],
)
def test_unreadable_files(refused, text, message):
    [line] = refused(text)
    assert line.startswith(message)


@pytest.mark.parametrize(
    ("text", "place", "line", "words"),
    [
        ("name:base\nseed: 1\n", "c.yaml:1: not valid YAML: column 5", "name:base", "expected a space after the colon"),
        (
            "name: a\nmodel:\n  init:x\n  seed: 1\n",
            "c.yaml:3: not valid YAML: column 7",
            "  init:x",
            "expected a space",
        ),
        ("name: a\ntrain:\n\tsteps: 1\n", "c.yaml:3: not valid YAML: column 1", "\\tsteps: 1", "indented with spaces"),
        (
            "name: a\ntrain:\n  steps: 1\n   x: 2\n",
            "c.yaml:4: not valid YAML: column 5",
            "   x: 2",
            "indented otherwise",
        ),
        ("- a\nname: b\n", "c.yaml:2: not valid YAML: column 1", "name: b", "indented otherwise"),
        ("name: @x\n", "c.yaml:1: not valid YAML: column 7", "name: @x", "must stand in quotes"),
        ("name: *x\n", "c.yaml:1: not valid YAML: column 7", "name: *x", "must stand in quotes"),
        ('name: "a\n', "c.yaml:2: not valid YAML: column 1", 'name: "a', "a quote that is opened is not closed"),
        ("train: [1\n", "c.yaml:2: not valid YAML: column 1", "train: [1", "a bracket that is opened is not closed"),
        ("name: a\ntrain\n", "c.yaml:3: not valid YAML: column 1", "train", "expected `key: value`"),
    ],
)
def test_broken_yaml_is_shown_and_told_in_plain_words(refused, text, place, line, words):
    [message] = refused(text)
    assert message.startswith(place) and f"the line {line!r}".replace("\\\\", "\\") in message and words in message
