"""How a model writes: the section over generation_config.json over defaults, and the file of an export."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.tiny_models import tiny
from pydantic import ValidationError

from jaxlm.config.generation import GenerationConfig
from jaxlm.config.schema import Config
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.models import FAMILIES, Model
from jaxlm.setup.generation import file_named, generation_json, make_generation
from jaxlm.setup.generation_checks import check_generation
from jaxlm.tasks.records import Generation
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer

FILE = {
    "num_beams": 4, "length_penalty": 2.0, "max_length": 20, "min_length": 5, "no_repeat_ngram_size": 3,
    "early_stopping": True, "eos_token_id": [2, 7], "forced_eos_token_id": 2, "bad_words_ids": [[5], [6, 7]],
    "transformers_version": "5.0", "typical_p": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a fox in"], TokenizerTrainingConfig(type="char", family="llama"))


@pytest.fixture
def checkpoint(tmp_path):
    config = {"model_type": "llama", **FAMILIES["llama"].to_hf(tiny("llama").config)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return HFCheckpoint(tmp_path)


def say(checkpoint: HFCheckpoint, text: str) -> HFCheckpoint:
    (checkpoint.directory / "generation_config.json").write_text(text)
    return HFCheckpoint(checkpoint.directory)


def config(**generation) -> Config:
    return Config(name="x", seed=3, generation=GenerationConfig(**generation))


def test_defaults_are_those_of_transformers(tokenizer, checkpoint):
    settings = make_generation(config(), tokenizer, None).limited(64)
    assert (settings.max_new_tokens, settings.do_sample, settings.top_k, settings.temperature) == (64, False, 50, 1.0)
    assert settings.eos_ids == (tokenizer.eos_id,) and settings.seed == 3
    assert json.loads(generation_json(settings, {"pad_token_id": 1})) == {
        "pad_token_id": 1, "eos_token_id": tokenizer.eos_id, "max_new_tokens": 64,
    }  # fmt: skip


def test_the_section_goes_before_the_file(tokenizer, checkpoint, caplog):
    said = say(checkpoint, json.dumps(FILE))
    settings = make_generation(config(), tokenizer, said)
    assert (settings.max_new_tokens, settings.max_length, settings.min_length) == (None, 20, 5)
    assert (settings.num_beams, settings.early_stopping, settings.eos_ids) == (4, True, (2, 7))
    assert settings.bad_words == ((5,), (6, 7)) and settings.forced_eos_id == 2
    assert "typical_p=0.9 is not supported" in caplog.text
    changed = make_generation(
        config(num_beams=1, max_new_tokens=9, eos_token_id=5, bad_words=("fox",), seed=8, stop_strings=("x",)),
        tokenizer, said,
    )  # fmt: skip
    assert (changed.num_beams, changed.max_new_tokens, changed.max_length, changed.seed) == (1, 9, None, 8)
    assert (changed.eos_ids, changed.no_repeat_ngram_size, changed.stop) == ((5,), 3, ("x",))
    fox = tuple(map(int, tokenizer.encode(["fox"], special_tokens=False)[0][0].ids))
    assert fox in changed.bad_words and (6, 7) in changed.bad_words


def test_without_the_file_config_json_says_it(tokenizer, checkpoint):
    path = checkpoint.directory / "config.json"
    path.write_text(json.dumps(checkpoint.config | {"num_beams": 6, "no_repeat_ngram_size": 2, "max_length": 20}))
    settings = make_generation(config(), tokenizer, HFCheckpoint(checkpoint.directory))
    assert (settings.num_beams, settings.no_repeat_ngram_size, settings.max_length) == (6, 2, 20)
    assert make_generation(config(), tokenizer, say(checkpoint, "{}")).num_beams == 1


def test_an_export_is_read_back(tokenizer, checkpoint):
    settings = make_generation(
        config(do_sample=True, top_p=0.9, num_return_sequences=2, min_new_tokens=3, stop_strings=("a", "b")),
        tokenizer, say(checkpoint, json.dumps(FILE)),
    )  # fmt: skip
    text = generation_json(settings, checkpoint.config)
    assert make_generation(config(), tokenizer, say(checkpoint, text)) == settings
    assert "top_k" not in json.loads(text) and json.loads(text)["forced_eos_token_id"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", r"generation_config\.json: expected a JSON object, found \[\]"),
        ("{", r"generation_config\.json: expected a JSON object"),
        ('{"num_beams": "4"}', r"num_beams: expected a whole number of 0 or more, found \"4\""),
        ('{"length_penalty": [1]}', r"length_penalty: expected a number"),
        ('{"length_penalty": NaN}', r"length_penalty: expected a number, found NaN"),
        ('{"early_stopping": 1}', r"early_stopping: expected true, false or never"),
        ('{"bad_words_ids": [5]}', r"bad_words_ids: expected a list of lists of token ids"),
    ],
)
def test_a_file_of_another_form_is_refused(text, message, tokenizer, checkpoint):
    with pytest.raises(UserError, match=message):
        make_generation(config(), tokenizer, say(checkpoint, text))


@pytest.mark.parametrize(
    "section",
    [
        {"max_new_tokens": 0}, {"temperature": 0}, {"top_p": 0}, {"num_beams": 0}, {"early_stopping": "always"},
        {"stop_strings": ("",)}, {"bad_words_ids": ((),)}, {"max_new_tokens": 4, "min_new_tokens": 5},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(section):
    with pytest.raises(ValidationError):
        GenerationConfig(**section)


def test_what_is_written_fits_the_model_behind_each_prompt():
    classifier, table = tiny("llama"), Table("t.jsonl", ("text",), ({"text": "a"}, {"text": "b"}), (1, 2))
    model = Model(classifier.family, classifier.config, "causal_lm", 0, classifier.compute)
    most = model.config.max_positions
    prompts = [np.zeros(length, np.int32) for length in (1, most - 8)]
    rows = [Example({"tokens": prompt}, row, prompt=prompt) for row, prompt in enumerate(prompts)]
    data = {"validation": RowDataset(Examples(table, rows, [None] * 2, {}), ())}
    for settings in (None, Generation(8), Generation(None, most)):
        check_generation(settings, model, data)
    check_generation(Generation(9), model, {"train": data["validation"]})
    with pytest.raises(
        UserError, match=rf"row 2: a prompt of {most - 8} tokens; generation.max_new_tokens=9 more do not"
    ):
        check_generation(Generation(9), model, data)
    for settings, message in (
        (Generation(None, most - 8), rf"row 2: a prompt has {most - 8} tokens: expected fewer than {most - 8}"),
        (Generation(4, num_return_sequences=2), "num_return_sequences=2"),
        (Generation(4, eos_ids=(64,)), "eos_token_id: 64 is outside"),
    ):
        with pytest.raises(UserError, match=message):
            check_generation(settings, model, data)
    check_generation(Generation(4, temperature=0.0), model, data)  # read by samples alone
    with pytest.raises(UserError, match="temperature=0"):
        check_generation(Generation(4, temperature=0.0, do_sample=True), model, data)


def test_bart_ends_texts_as_its_config_says_and_mbart_begins_them_with_a_language(tokenizer, tmp_path):
    config_json = {"model_type": "mbart", **FAMILIES["mbart"].to_hf(tiny("mbart").config)}

    def read(**changes):
        said = {key: value for key, value in (config_json | changes).items() if value != ""}
        (tmp_path / "config.json").write_text(json.dumps(said))
        checkpoint = HFCheckpoint(tmp_path)
        return checkpoint.model_config, make_generation(config(), tokenizer, checkpoint)

    assert read(forced_eos_token_id="")[1].forced_eos_id == 2  # which Transformers, too, takes where nothing is said
    assert read(forced_eos_token_id=None)[1].forced_eos_id is None
    assert read(forced_bos_token_id=9)[1].forced_bos_id == 9
    say(HFCheckpoint(tmp_path), json.dumps({"decoder_start_token_id": 5, "forced_bos_token_id": 7}))
    sizes, settings = read(forced_eos_token_id=3)
    assert (sizes.decoder_start_id, settings.forced_bos_id, settings.forced_eos_id) == (5, 7, None)
    written = json.loads(generation_json(settings, FAMILIES["mbart"].to_hf(sizes)))
    assert (written["decoder_start_token_id"], written["forced_bos_token_id"]) == (5, 7)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        (
            '{"num_beams": 0}',
            {},
            r"generation_config\.json: generation\.num_beams=0: expected at least 1; generation\.num_b",
        ),
        ('{"bad_words_ids": [[99]]}', {}, r"generation_config\.json: generation\.bad_words: 99 is outside"),
        ('{"num_return_sequences": 3}', {}, r"generation_config\.json: generation\.num_return_sequences=3: "),
        ('{"max_length": 1}', {}, r"generation_config\.json: generation\.max_length=1: expected at least 2"),
        ('{"num_beams": 4}', {"eos_token_id": 99}, r"^generation\.eos_token_id: 99 is outside"),
    ],
)
def test_an_error_names_the_file_that_says_the_setting(text, settings, message, tokenizer, checkpoint):
    classifier = tiny("llama")
    model = Model(classifier.family, classifier.config, "causal_lm", 0, classifier.compute)
    said, given = say(checkpoint, text), config(**settings)
    with pytest.raises(UserError, match=message), file_named(given, said):
        check_generation(make_generation(given, tokenizer, said), model, {})


def test_settings_that_are_not_supported_are_named_once(tokenizer, checkpoint, caplog):
    said = say(checkpoint, '{"token_healing": true, "typical_p": 1.0, "eos_token_id": 2}')
    assert said.model_config.eos_id == 2
    make_generation(config(), tokenizer, said)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "token_healing=true is not supported, and is left out"
    ]
