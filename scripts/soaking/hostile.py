"""Hostile checkpoints, tokenizers and configs: read, or refused in words; no panic, no hang."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import jax
from helpers.finetuning_runs import run, write_config
from helpers.saved_states import tree_digest

from jaxlm.config.loading import load_config
from jaxlm.hf.checkpoint import HFCheckpoint, load_params
from jaxlm.models import Model
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.tokenizer.training import train_tokenizer
from soaking.damage import mutate
from soaking.outcomes import Outcomes

CHECKPOINTS, TOKENIZERS = 200, 500


def soak_checkpoint_files(folder: Path, outcomes: Outcomes) -> None:
    config = write_config(folder, train={"batch_size": 16, "epochs": None, "steps": 1})
    if run("finetune", "--config", config):
        outcomes.fault("an undisturbed run", "failed")
        return
    sound, rng = folder / "runs/tiny/model", random.Random(4)
    expected = _open(sound)
    for number in range(CHECKPOINTS):
        copy = folder / "copy"
        shutil.copytree(sound, copy)
        name = ("model.safetensors", "model.safetensors.index.json", "config.json")[number % 3]
        _damage(copy, name, rng)
        what = f"{name} {number}"
        read, problem = outcomes.attempt(what, lambda: _open(copy))  # noqa: B023
        if problem is None and name != "config.json" and read != expected:
            outcomes.fault(what, "other parameters are read")
        else:
            outcomes.add(name, problem or "read")
        shutil.rmtree(copy)
    jax.clear_caches()


def _open(directory: Path) -> str:
    """A digest of the parameters."""
    checkpoint = HFCheckpoint(directory)
    sizes = checkpoint.model_config
    model = Model(checkpoint.family, sizes, "classification", 2)
    return tree_digest(load_params(checkpoint, model, jax.random.key(0)).params)


def _damage(directory: Path, name: str, rng: random.Random) -> None:
    path = directory / name
    if name.endswith("index.json"):  # two files, of which the index says which tensor is where
        whole = directory / "model.safetensors"
        names = json.loads(whole.read_bytes()[8 : 8 + int.from_bytes(whole.read_bytes()[:8], "little")])
        names.pop("__metadata__", None)
        whole.rename(directory / "model-00001-of-00001.safetensors")
        weights = dict.fromkeys(names, "model-00001-of-00001.safetensors")
        path.write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    content = path.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little") if name == "model.safetensors" else len(content)
    path.write_bytes(mutate(content[:size], rng) + content[size:])


def soak_tokenizers_and_configs(folder: Path, outcomes: Outcomes) -> None:
    rng = random.Random(5)
    texts = ["the film was a story of and with acting in it"] * 20
    config = write_config(folder)
    folders = {}
    for kind in ("wordpiece", "unigram", "byte_bpe", "bpe"):
        settings = TokenizerTrainingConfig(type=kind, vocab_size=400, min_frequency=1)
        folders[kind] = folder / kind
        train_tokenizer(texts, settings).save(folders[kind])
    choices = [(kind, path) for kind, directory in folders.items() for path in sorted(directory.iterdir())]
    for number in range(TOKENIZERS):
        if number % 3 == 0:
            mutated = folder / "mutated.yaml"
            mutated.write_bytes(mutate(config.read_bytes(), rng))
            _, problem = outcomes.attempt(f"yaml {number}", lambda: load_config(mutated))  # noqa: B023
            outcomes.add("yaml", problem or "read")
            continue
        kind, path = choices[rng.randrange(len(choices))]
        copy = folder / "copy"
        shutil.copytree(folders[kind], copy)
        alone = rng.random() < 0.5 and path.name not in ("tokenizer.json", "tokenizer_config.json")
        if alone:  # so that the file is what the tokenizer is read from
            (copy / "tokenizer.json").unlink()
        (copy / path.name).write_bytes(mutate(path.read_bytes(), rng))
        _, problem = outcomes.attempt(f"{kind} {path.name} {number}", lambda: _encode(copy))  # noqa: B023
        outcomes.add(path.name, problem or "read")
        shutil.rmtree(copy)


def _encode(directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    [[pieces]] = tokenizer.encode(["the film was é 三\n a"], max_length=16)
    tokenizer.decode(pieces.ids)
