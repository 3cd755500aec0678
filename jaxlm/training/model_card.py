"""The model card of an export: README.md as the hub reads it, made from a run's summary and config."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from jaxlm import __version__
from jaxlm.config.schema import Config
from jaxlm.data.config import SourceConfig
from jaxlm.report.format import format_name, format_number, format_score, headline_metrics
from jaxlm.tasks import TASKS

CARD = "README.md"
_MARK = re.compile(r"<!-- Written by jaxlm; kept as it is once it is changed\. ([0-9a-f]{16}) -->\n")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_LABELS = 100
"""Most labels that are listed."""
_PIPELINES = {
    "classification": "text-classification",
    "tagging": "token-classification",
    "question_answering": "question-answering",
    "multiple_choice": "multiple-choice",
    "embedding": "sentence-similarity",
    "translation": "translation",
    "summarization": "summarization",
    "causal_lm": "text-generation",
    "prefix_lm": "text-generation",
    "masked_lm": "fill-mask",
}
"""What the hub calls a task; others have no name there."""
_UNKNOWN = "unknown: say it here before you publish the model"


class Base(NamedTuple):
    """The model that a run started from, as far as it is known.

    Attributes:
      name: a hub id; None where the run started from random parameters, or from a folder that names none.
      facts: of its card: license, license_name, license_link, language.
    """

    name: str | None
    facts: Mapping[str, Any]


def base_of(init: str | None, folder: Path | None) -> Base:
    """Finds what is known of a base.

    Args:
      init: `model.init`.
      folder: where its files lie; None: there is no base.
    """
    if init is None or folder is None:
        return Base(None, {})
    text = ""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (folder / CARD).read_text(encoding="utf-8")
    facts = _front_matter(text)
    kept = {key: facts[key] for key in ("license", "license_name", "license_link", "language") if facts.get(key)}
    if not Path(init).expanduser().exists():
        return Base(init, kept)
    if _MARK.search(text):  # of a run: its base is ours, too
        name = facts.get("base_model")
    else:
        with contextlib.suppress(OSError, ValueError):
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            facts = config if isinstance(config, dict) else {}
        name = facts.get("_name_or_path")
    return Base(name if isinstance(name, str) and "/" in name and _HUB_ID.fullmatch(name) else None, kept)


def _front_matter(text: str) -> dict[str, Any]:
    found = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    with contextlib.suppress(yaml.YAMLError):
        facts = yaml.safe_load(found[1]) if found else {}
        return facts if isinstance(facts, dict) else {}
    return {}


def library_of(family: str, kind: str) -> str:
    """Returns what loads an export of a family and a kind of task."""
    if family.startswith(("lstm", "gru")):  # Transformers has none
        return "jaxlm"
    return "sentence-transformers" if kind == "embedding" else "transformers"


def make_card(summary: Mapping[str, Any], config: Config, base: Base, *, library: str = "transformers") -> str:
    """Returns the card of a run's export.

    Args:
      summary: as in summary.json.
      library: what loads the folder: transformers, sentence-transformers, peft, or jaxlm.
    """
    metadata = _metadata(summary, config, base, library)
    parts = [
        f"# {summary['name']}",
        _opening(summary, config, base),
        *_section("Scores", _scores(summary)),
        *_section("Data", _data(summary, config)),
        *_section("Labels", _labels(summary)),
        "## Intended use",
        _use(summary),
        "## Limits",
        "\n".join(f"- {line}" for line in _limits(summary, config)),
        "## How it was made",
        _made(summary, config),
    ]
    body = "\n\n".join(parts) + "\n"
    return _sealed(f"---\n{metadata}\n---\n", body)


def write_card(path: Path, card: str) -> bool:
    """Writes a card, unless a README.md stands there that somebody wrote or changed; returns whether it did."""
    if path.exists():
        found = path.read_text(encoding="utf-8", errors="replace")
        mark = _MARK.search(found)
        if mark is None or mark[1] != _digest(_MARK.sub("", found, count=1)):
            return False
    path.write_text(card, encoding="utf-8")
    return True


def _sealed(head: str, body: str) -> str:
    """The card with the mark by which `write_card` knows that it is as it was written."""
    return f"{head}<!-- Written by jaxlm; kept as it is once it is changed. {_digest(head + body)} -->\n{body}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]


def _metadata(summary: Mapping[str, Any], config: Config, base: Base, library: str) -> str:
    """The lines between the two `---`, as the hub reads them."""
    from huggingface_hub import EvalResult, ModelCardData

    kind = str(summary.get("task", {}).get("kind", ""))
    headlines = headline_metrics(summary)
    sources = _sources(config)
    results = [
        EvalResult(
            task_type=_PIPELINES.get(kind, kind.replace("_", "-")),
            dataset_type=sources.get(split, "data"),
            dataset_name=sources.get(split, "data"),
            dataset_split=split,
            metric_type=name,
            metric_name=format_name(name),
            metric_value=round(float(values[name]), 6),
        )
        for split, values in summary.get("scores", {}).items()
        for name in headlines
        if math.isfinite(values.get(name, math.nan))
    ]
    languages = [
        code.split("_")[0]
        for key in ("source_language", "target_language")
        if re.fullmatch(r"[a-z]{2,3}(_\w+)?", code := str(getattr(config.task, key, None) or ""))
    ]
    named = [source.tfds or source.builtin for source in _parts(config.data.train)]
    known: dict[str, Any] = {"language": list(dict.fromkeys(languages)) or None, **base.facts}
    data = ModelCardData(
        **known,
        base_model=base.name,
        base_model_relation="adapter" if library == "peft" and base.name else "finetune" if base.name else None,
        library_name=library,
        pipeline_tag=_PIPELINES.get(kind),
        tags=["jaxlm"],
        datasets=[name for name in named if name] or None,
        metrics=[name for name in headlines if name != "loss"] or None,
        model_name=str(summary["name"]) if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _parts(source: SourceConfig | None) -> Sequence[SourceConfig]:
    return () if source is None else source.mixture or (source,)


def _sources(config: Config) -> dict[str, str]:
    """What the config calls the data of each split."""

    def name(source: SourceConfig) -> str:
        if source.rows is not None:
            return f"{len(source.rows)} rows of the config"
        path = source.path
        files = [*path.values()] if isinstance(path, dict) else [path] if isinstance(path, str) else path or ()
        return ", ".join(map(str, files)) or str(source.tfds or source.builtin)

    named = {split: getattr(config.data, split) for split in ("train", "validation", "test")}
    return {split: ", ".join(map(name, _parts(source))) for split, source in named.items() if source is not None}


def _opening(summary: Mapping[str, Any], config: Config, base: Base) -> str:
    problem = format_name(str(summary.get("problem") or ""))
    model = summary.get("model", {})
    size = f"a {model.get('family')} model of {(model.get('parameters') or 0) / 1e6:,.1f} M parameters"
    if base.name:
        start = f"fine-tuned from [{base.name}](https://huggingface.co/{base.name})"
    elif config.model.init:
        start = f"started from `{Path(config.model.init).name}`"
    else:
        start = "trained from random parameters"
    licence = f"License of the base: {base.facts.get('license', _UNKNOWN)}." if config.model.init else ""
    return f"{problem[:1].upper()}{problem[1:]}: {size}, {start}, with jaxlm {__version__}. {licence}".rstrip()


def _section(title: str, lines: Iterator[str]) -> list[str]:
    found = list(lines)
    return [f"## {title}", *found] if found else []


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int) -> str:
    """A table in Markdown; columns from `numbers` on hold numbers."""
    rule = ["---" if i < numbers else "---:" for i in range(len(header))]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, rule, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _scores(summary: Mapping[str, Any]) -> Iterator[str]:
    scores = summary.get("scores", {})
    names = [name for name in headline_metrics(summary) if any(name in values for values in scores.values())]
    if not names:
        return
    rows = [[format_name(name), *(format_score(values.get(name)) for values in scores.values())] for name in names]
    yield _table(["Metric", *scores], rows, 1)
    metric, step = summary.get("metric"), summary.get("best_step")
    chosen = f"The checkpoint of step {step}, the best by {format_name(metric)}" if metric and step else "The last step"
    yield f"{chosen}; the run trained {format_number(summary.get('steps'))} steps and scored it with this command:"
    yield f"```bash\n{summary.get('command') or 'jaxlm finetune --config config.yaml'}\n```"


def _data(summary: Mapping[str, Any], config: Config) -> Iterator[str]:
    counts = summary.get("data", {})
    rows = []
    for split, source in _sources(config).items():
        known = counts.get(split) if isinstance(counts.get(split), Mapping) else {}
        said = [f"{format_name(key)} {format_number(n)}" for key, n in known.items() if key != "rows" and n]
        rows.append([split, f"`{source}`", "; ".join(map(str, said)) or "–", format_number(known.get("rows"))])
    if rows:
        yield _table(["Split", "Source", "Counted", "Rows"], rows, 3)


def _labels(summary: Mapping[str, Any]) -> Iterator[str]:
    names, counts = summary.get("label_names") or [], summary.get("label_counts") or {}
    if not names or summary.get("problem") == "regression":
        return
    rows = [[i, f"`{name}`", format_number(counts.get(name))] for i, name in enumerate(names[:_LABELS])]
    yield _table(["Id", "Label", "Training rows"], rows, 2)
    if len(names) > _LABELS:
        yield f"{len(names) - _LABELS} more stand in config.json."
    if (positive := summary.get("positive_label")) is not None:
        yield f"The positive label, that precision, recall and F1 are of, is `{positive}`."


def _use(summary: Mapping[str, Any]) -> str:
    task = summary.get("task", {})
    if (kind := task.get("kind")) in TASKS and TASKS[kind].reads == "corpus":
        more = " `jaxlm generate --run FOLDER_OR_HUB_ID` continues texts." if kind == "causal_lm" else ""
        return f"To be fine-tuned: `model.init: FOLDER_OR_HUB_ID` in a config of `jaxlm finetune`.{more}"
    columns = task.get("text") or []
    columns = [columns] if isinstance(columns, str) else list(columns)
    reads = f" It reads the column{'s' * (len(columns) > 1)} {', '.join(f'`{c}`' for c in columns)}." if columns else ""
    problem = format_name(str(summary.get("problem") or "the task")).lower()
    command = "jaxlm predict --run FOLDER_OR_HUB_ID --input rows.jsonl --output predictions.jsonl"
    return f"Texts like those that it was trained on, for {problem}.{reads}\n\n```bash\n{command}\n```"


def _limits(summary: Mapping[str, Any], config: Config) -> Iterator[str]:
    yield "It was scored on the data named above alone; texts of another kind, language or time may fare worse."
    yield f"It was trained on at most {config.data.max_length} tokens of a text (`data.max_length`)."
    if not summary.get("scores"):
        yield "It was not scored: the run had neither validation nor test rows."
    elif "test" not in summary["scores"]:
        yield "The validation rows that its scores are of also chose the checkpoint, so that they flatter it."
    yield "Nobody has checked it for bias, or for what it has learned by heart."
    yield from map(str, summary.get("remarks") or [])


def _made(summary: Mapping[str, Any], config: Config) -> str:
    where = summary.get("environment", {})
    versions = ", ".join(f"{name} {where[name]}" for name in ("jaxlm", "jax", "flax") if name in where)
    rows = [
        ("Steps", format_number(summary.get("steps"))),
        ("Learning rate", format_number(config.optimizer.learning_rate)),
        ("Seed", str(config.seed)),
        ("Devices", str(where.get("devices", "–"))),
        ("Versions", versions or "–"),
    ]
    return _table(["", ""], rows, 2)
