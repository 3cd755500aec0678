"""What a run that writes exports: Transformers reads the same tokens from a text, and writes the same text."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.finetuning_runs import read_jsonl, run, write_jsonl
from helpers.seq2seq_folders import folder, marian
from helpers.tiny_models import weights
from helpers.writing_runs import write_pairs

from jaxlm.config.loading import load_config
from jaxlm.run.run_dir import RunDir
from jaxlm.setup.setup import make_setup
from jaxlm.training.export import export_trained

TEXTS = ["the dog", "the quick brown fox jumps over", "a lazy dog and the fox", "x"]


def exported(family: str, directory: Path) -> Path:
    """The model of a run before its first step, with parameters far from their first values."""
    kind, overrides = "text_to_text", []
    if family in ("mbart", "pegasus", "marian"):
        made = marian(directory / "tokenizer") if family == "marian" else folder(directory / "tokenizer", family)[0]
        overrides = [f"model.tokenizer={made}", "model.train_tokenizer=null"]
    if family == "mbart":
        kind = "translation"
        overrides += ["task.source_language=de_DE", "task.target_language=fr_XX"]
    written = write_pairs(directory, kind, family, generation={"num_beams": 2, "max_new_tokens": 8})
    config = load_config(written, overrides)
    setup = make_setup(config, splits=("train",))
    run_dir = RunDir(directory / "run")
    run_dir.path.mkdir()
    export_trained(run_dir, setup, setup.task, weights(setup.model))
    return run_dir.model


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
@pytest.mark.parametrize("family", ["t5", "bart", "mbart", "marian", "pegasus", "gpt2", "llama"])
def test_an_export_writes_the_same_texts_in_transformers(family, tmp_path, transformers):
    model = exported(family, tmp_path)
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    assert run("predict", "--run", model, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl") == 0
    found = [row["prediction"]["text"] for row in read_jsonl(tmp_path / "out.jsonl")]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    decoder = family in ("gpt2", "llama")
    auto = transformers.AutoModelForCausalLM if decoder else transformers.AutoModelForSeq2SeqLM
    theirs = auto.from_pretrained(model)
    for text, ours in zip(TEXTS, found, strict=True):
        # The run cuts texts at data.max_length=16.
        inputs = tokenizer(
            text, truncation=not decoder, max_length=16, return_tensors="pt", return_token_type_ids=False
        )
        written = theirs.generate(**inputs)[0][inputs.input_ids.shape[1] if decoder else 0 :]
        assert tokenizer.decode(written, skip_special_tokens=True).strip() == ours.strip(), text
