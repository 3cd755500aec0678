"""Config files and overrides: what loads, what is refused, and that every refusal says where and what to do."""

from __future__ import annotations

import runpy

import pytest
import yaml
from helpers.paths import REPOSITORY

from jaxlm.config.loading import dump_config, load_config
from jaxlm.config.reference import schema_reference, sections_of, walk
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.optim.config import OptimizerConfig


def test_design_example_loads(load):
    config = load("""
        # the example of the design
        name: sst2-minilm
        seed: 0
        model: {init: models/minilm, dtype: float32}
        task: {kind: classification, text: [premise, hypothesis], label: label}
        data:
          train: {path: data/sst2/train.tsv, columns: [sentence, label]}
          test: {tfds: glue/sst2, split: test}
          max_length: 128
          packing: true
        optimizer: {learning_rate: 5e-5, weight_decay: 0.01, schedule: linear, warmup: 0.1, clip_norm: 1.0}
        train: {batch_size: 32, epochs: 1, eval_every: 100, metric: accuracy, early_stopping: {patience: 3}}
        mesh: {preset: fsdp, data: -1, fsdp: 1, tensor: 1}
        checkpoint: {every: 200, keep: 2}
        logging: {every: 10}
        """)
    assert config.optimizer.learning_rate == 0.00005
    assert config.task.text == ("premise", "hypothesis")
    assert config.data.train is not None and config.data.train.columns == ("sentence", "label")
    assert config.data.validation is None
    assert config.train.early_stopping is not None and config.train.early_stopping.patience == 3


BAD = """\
name: my run
seed: -1
model: {init: x, dtype: bf16}
train:
  batch_sise: 16
  steps: 10
  eval_every: 1.5
  batch_size: true
optimizer: {learning_rate: '1e-3',
            warmup: .inf}
task:
  text: [a, b, c]
learning_rate: 3
epocs: 4
data:
  train: {path: x, tfds: y}
  validation: {rows: [1]}
  packing: no
  clean:
"""


def test_every_mistake_is_reported_at_its_line(refused):
    assert sorted(refused(BAD)) == sorted(
        [
            "c.yaml:1: name: expected letters from a to z, digits, `.`, `_` and `-`, a letter or digit first; "
            'found "my run"',
            "c.yaml:2: seed: expected integer >= 0 and < 2147483648, found -1",
            'c.yaml:3: model.dtype: expected one of float32, bfloat16, found "bf16"',
            "c.yaml:5: unknown key train.batch_sise; did you mean train.batch_size?",
            "c.yaml:7: train.eval_every: expected integer > 0 or epoch, found 1.5",
            "c.yaml:8: train.batch_size: expected integer > 0, found true",
            'c.yaml:9: optimizer.learning_rate: expected number > 0, found "1e-3"',
            "c.yaml:10: optimizer.warmup: expected number >= 0, found Infinity",
            'c.yaml:12: task.text: expected text or list of 2 texts, found ["a", "b", "c"]',
            "c.yaml:13: unknown key learning_rate; did you mean optimizer.learning_rate?",
            "c.yaml:14: unknown key epocs; known keys: name, seed, model, task, data, optimizer, generation, train, "
            "mesh, checkpoint, logging",
            "c.yaml:16: data.train: expected exactly one of path, rows, tfds, builtin, fraction, mixture; found path, "
            "tfds",
            "c.yaml:17: data.validation.rows.0: expected data.validation.rows to be list of mappings or null, found 1",
            'c.yaml:18: data.packing: expected true or false, found "no"',
            "c.yaml:19: data.clean: expected section, found null",
        ]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "optimizer: {learning_rate: 1e39}",
            "optimizer.learning_rate: expected 0 or a number between 1.2e-38 and 3.4e",
        ),
        ("optimizer: {eps: 1e-60}", "optimizer.eps: expected 0 or a number between"),
        ("model: {family: bert, config: {dropout: 1e300}}", "model.config: expected 0 or a number between"),
        ("data: {max_length: 99999999999999999999}", "data.max_length: expected an integer of at most 64 bits"),
        (f"seed: {'9' * 5000}", "an integer of 5000 digits; expected at most 64 bits"),
        (f"model: {'[' * 3000}", "lists or mappings are nested too deeply"),
    ],
)
def test_numbers_that_nothing_can_hold_are_refused(refused, text, message):
    [line] = refused(f"name: a\n{text}")
    assert line.startswith("c.yaml:") and message in line


def test_missing_name(refused):
    assert refused("seed: 1\n") == ["c.yaml:1: name is missing; expected text"]


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "{name: a, train: {steps: 1, epochs: 1}}",
            "c.yaml:1: train: expected steps or epochs, not both; "
            "set the other to null (train.epochs=null or train.steps=null)",
        ),
        ("{name: a, model: {init: x, preset: s}}", "c.yaml:1: model: preset: only for random weights, without init"),
        (
            "name: a\ndata: {max_length: 32, long_text: window}",
            "c.yaml:2: data: expected stride below max_length (32), found 32",
        ),
        (
            "name: a\ndata: {test: {}}",
            "c.yaml:2: data.test: expected exactly one of path, rows, tfds, builtin, fraction, mixture; found none",
        ),
    ],
)
def test_contradictions(refused, text, message):
    assert refused(text) == [message]


def test_the_home_folder_may_be_written_as_in_a_shell(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "c.yaml"
    path.write_text("name: a\nmodel: {init: ~/m}\ndata: {train: {path: [~/x.csv, y~.csv]}, token_cache: ~/t}\n")
    config = load_config(path, ["logging.directory=~/runs"])
    assert config.data.train is not None and config.data.train.path == (f"{tmp_path}/x.csv", "y~.csv")
    paths = (config.model.init, config.data.token_cache, config.logging.directory)
    assert paths == (f"{tmp_path}/m", f"{tmp_path}/t", f"{tmp_path}/runs")


def test_no_file_or_a_directory(tmp_path):
    with pytest.raises(UserError, match=r"none\.yaml: no such config file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="expected a YAML file, found a folder"):
        load_config(tmp_path)


SMALL = "name: a\ntask: {text: [x, y]}\ndata:\n  train: {rows: [{text: p, label: 1}, {text: q, label: 0}]}\n"


def test_overrides_reach_everywhere(load):
    config = load(
        SMALL,
        "optimizer.learning_rate=1e-3",
        "optimizer.clip_norm=null",
        "train.early_stopping.patience=7",  # a section that the file does not have
        "task.text.1=z",
        "data.train.rows.0.text=a=b",
        "data.train.rows.1={text: no, label: 2}",
        "data.test={path: t.tsv}",
        "data.test.limit=5",
        "name=b",
        "name=c",
    )
    assert config.name == "c"
    assert config.optimizer == OptimizerConfig(learning_rate=0.001, clip_norm=None)
    assert config.train.early_stopping is not None and config.train.early_stopping.patience == 7
    assert config.task.text == ("x", "z")
    assert config.data.train is not None
    assert config.data.train.rows == ({"text": "a=b", "label": 1}, {"text": "no", "label": 2})
    assert config.data.test is not None and (config.data.test.path, config.data.test.limit) == ("t.tsv", 5)


def test_override_reaches_below_null(load):
    early = load("{name: a, train: {early_stopping: null}}", "train.early_stopping.patience=7").train.early_stopping
    assert early is not None and early.patience == 7


def test_override_replaces_or_conflicts_with_a_source(load, refused):
    assert load(SMALL, "data.train={path: x}").data.train == load("{name: a, data: {train: {path: x}}}").data.train
    with pytest.raises(
        UserError, match=r"override 'data.train=\{path:x\}': in braces a space stands behind each colon"
    ):
        load(SMALL, "data.train={path:x}")
    assert refused(SMALL, "data.train.path=x") == [
        "c.yaml:4 with override 'data.train.path=x': data.train: expected exactly one of path, rows, tfds, builtin, "
        "fraction, mixture; found path, rows"
    ]


@pytest.mark.parametrize(
    "override, message",
    [
        ("train.epochs=-1", "override 'train.epochs=-1': train.epochs: expected number > 0 or null, found -1"),
        (
            "model.lora.target=[q]",
            "override 'model.lora.target=[q]': unknown key model.lora.target; did you mean "
            "model.lora.targets or task.target?",
        ),
        ("train.epoch=1", "override 'train.epoch=1': unknown key train.epoch; did you mean train.epochs?"),
        ("name", "override 'name': expected key.path=value"),
        ("=1", "override '=1': expected key.path=value"),
        ("train..epochs=1", "override 'train..epochs=1': expected key.path=value"),
        (
            "train.epochs=[1",
            "override 'train.epochs=[1': not valid YAML: column 3, in the line '[1': a bracket that is "
            "opened is not closed (quote the value?)",
        ),
        ("name.x=1", "override 'name.x=1': there is no x in name, which is \"a\""),
        ("task.text.2=z", "override 'task.text.2=z': there is no 2 in task.text, which is a list of 2"),
        ("train.restart=", "override 'train.restart=': train.restart: expected true or false, found null"),
    ],
)
def test_refused_override_is_named(refused, override, message):
    [line] = refused(SMALL, override)
    assert line.startswith(message)


def test_kinds_of_task_have_keys_of_their_own(load, refused):
    config = load("{name: a, task: {kind: masked_lm, mask_rate: 0.3}}")
    assert config.task.kind == "masked_lm" and config.task.mask_rate == 0.3
    assert load(dump_config(config)) == config
    assert load("{name: a, task: {label: y}}").task.kind == "classification"
    assert refused("{name: a, task: {kind: masked_lm, mask_rat: 0.3}}") == [
        "c.yaml:1: unknown key task.mask_rat; did you mean task.mask_rate?"
    ]
    assert refused("{name: a, task: {kind: causal_lm, label: y}}")[0].startswith("c.yaml:1: unknown key task.label")
    assert refused("{name: a, task: {kind: masked_lm, mask_rate: 2}}") == [
        "c.yaml:1: task.mask_rate: expected number > 0 and < 1, found 2"
    ]
    assert refused("{name: a, task: {kind: maskedlm}}") == [
        "c.yaml:1: task.kind: expected one of classification, tagging, question_answering, multiple_choice, embedding, "
        "text_to_text, translation, summarization, causal_lm, prefix_lm, masked_lm, span_corruption, replaced_tokens, "
        "found \"maskedlm\"; did you mean 'masked_lm'?"
    ]


def test_mixtures_hold_sources(load, refused):
    config = load("{name: a, data: {train: {mixture: [{path: a.txt, weight: 2}, {path: ['b*.txt', c.txt]}]}}}")
    assert config.data.train is not None and config.data.train.mixture is not None
    assert [part.weight for part in config.data.train.mixture] == [2.0, 1.0]
    [line] = refused("{name: a, data: {train: {mixture: [{mixture: [{path: a}]}]}}}")
    assert line.endswith("expected sources in a mixture, found another mixture")


def test_dump_loads_back_equal(load):
    awkward = ["no", "yes", "1e-3", "0x1F", "~", "null", "", " x ", "a: b", "#", "line\nfeed", "07", "é中", "=", ".inf"]
    config = Config.model_validate(
        {
            "name": "1e3",
            "task": {"labels": awkward, "text": ("a", "b")},
            "model": {"config": {"num_layers": 2, "deep": {"x": [1, 2.5, None]}}},
            "data": {"train": {"rows": [{"text": text, "label": 1e-7} for text in awkward]}},
            "optimizer": {"learning_rate": 1e-5, "clip_norm": None},
        }
    )
    text = dump_config(config)
    assert load(text) == config
    assert yaml.safe_load(text)["task"]["labels"] == awkward  # other YAML readers agree on the texts


def test_reference_is_up_to_date():
    page = REPOSITORY / "docs" / "config.md"
    assert page.read_text(encoding="utf-8") == schema_reference(), (
        "run python -m jaxlm.config.reference > docs/config.md"
    )


def test_every_key_and_section_is_described():
    assert [key for key, field in walk() if not field.description] == []
    sections = {section for _, field in walk() for section in sections_of(field.annotation)}
    assert [section.__name__ for section in sections if not section.__dict__.get("__doc__")] == []


def test_the_rows_of_the_table_of_effects_are_configs():
    rows = runpy.run_path(str(REPOSITORY / "scripts" / "effects.py"))["rows"]()
    names = [(row.setting, row.folder) for row in rows]
    assert len(set(names)) == len(names) > 40
    for row in rows:
        _, path, *overrides = row.command
        load_config(REPOSITORY / path, overrides)


def test_shipped_configs_load():
    folder = REPOSITORY / "configs"
    files = sorted(folder.rglob("*.yaml"))
    assert files
    for file in files:
        load_config(file)
