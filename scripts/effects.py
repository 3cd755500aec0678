"""Measures what each knob against over-fitting and imbalance does, and writes the table into docs/results.md.

    python scripts/effects.py [--only TEXT ...] [--list]     (needs data/ and models/minilm; hours on two cores)

Each row is one `jaxlm finetune` with `train.seeds`, beside the plain run of its setting. Runs that are finished are not
run again, and one that was stopped goes on: call it as often as you like. With TEXT, only rows that hold one of the
texts, such as `sst2-100` or `lora`. The table has the rows that are finished.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "results.md"
RUNS = Path("runs/effects")
BEGIN, END = "<!-- effects: scripts/effects.py writes what follows -->", "<!-- effects: end -->"
PLAIN = "plain"


class Setting(NamedTuple):
    """A data set on which knobs are compared.

    Attributes:
      config: name in configs/finetune.
      overrides: that make it of it.
      metric: the score that is shown, of the test split, or of validation where there is no other.
      seeds: how many runs.
    """

    config: str
    overrides: tuple[str, ...]
    metric: str
    seeds: int = 5


# Batches of nearly the same number of tokens, in rows of one length, let all seeds share one or two compiled steps.
_EVEN = ("data.batch_order=balanced", "data.row_length=128")
# Few training rows have few validation rows beside them.
_FEW = ("data.validation.limit=200", "train.batch_size=20", "train.metric=accuracy", _EVEN[0], "data.row_length=72")
SETTINGS = {
    "sst2-100": Setting(
        "sst2", ("data.train.limit=100", "train.epochs=10", "optimizer.learning_rate=2e-4", *_FEW), "accuracy"
    ),
    "sst2-500": Setting(
        "sst2", ("data.train.limit=500", "train.epochs=5", "optimizer.learning_rate=1e-4", *_FEW), "accuracy"
    ),
    "spam-skewed": Setting(
        "sms_spam",
        ("data.train.limit=1500", "data.keep_labels={spam: 0.1}", "task.baselines=false", *_EVEN),
        "f1_macro",
    ),
    "wnut17-500": Setting(
        "wnut17",
        ("data.train.limit=500", "data.validation.limit=300", "train.batch_size=20", *_EVEN),
        "f1",
    ),
    "sst2-2000": Setting("sst2", ("data.train.limit=2000", "train.epochs=2"), "accuracy", 3),
    "sst2-all": Setting("sst2", (), "accuracy", 3),
    "tnews-skewed": Setting(
        "tnews",
        ("data.keep_labels={news_car: 0.1, news_edu: 0.1, news_game: 0.1, news_house: 0.1, news_travel: 0.1}",
         "train.metric=f1_macro", "task.baselines=false"),
        "f1_macro", 3,
    ),
}  # fmt: skip

_DECAY = {"weight decay 0.1": ("optimizer.weight_decay=0.1",), "L2 0.01": ("optimizer.l2=0.01",)}
_DROPOUT = {
    "no dropout": ("model.dropout=0.0",),
    "dropout 0.2": ("model.dropout=0.2",),
    "attention dropout 0.2": ("model.attention_dropout=0.2",),
    "classifier dropout 0.3": ("model.classifier_dropout=0.3",),
    "layers skipped 0.1": ("model.layer_drop=0.1",),
}
_FREEZING = {
    "embeddings and layers 0-2 frozen": ('model.freeze=[embeddings, "layers.0-2"]',),
    "gradual unfreezing": ("train.unfreeze_every=6",),
    "mixout 0.3": ("model.mixout=0.3",),
    "top layer new": ("model.reinit_layers=1",),
    "rates by layer 0.9": ("optimizer.layer_decay=0.9",),
}
_SMOOTHING = {
    "label smoothing 0.1": ("train.label_smoothing=0.1",),
    "average of the weights": ("train.ema=0.95",),
    "R-Drop": ("train.r_drop=1.0",),
    "mixup 0.4": ("train.mixup=0.4",),
    "FGM": ("train.fgm=1.0",),
    "early stopping": ("train.early_stopping={patience: 2}",),
}
_FEW_PARAMETERS = {
    "LoRA 8": ("model.lora={rank: 8}", "optimizer.learning_rate=2e-3"),
    "DoRA 8": ("model.lora={rank: 8, dora: true}", "optimizer.learning_rate=2e-3"),
    "IA3": ("model.ia3={}", "optimizer.learning_rate=5e-3"),
    "BitFit": ("model.bitfit=true", "optimizer.learning_rate=2e-3"),
}
_IMBALANCE = {
    "class weights, inverse": ("task.class_weights=inverse",),
    "class weights, sqrt": ("task.class_weights=sqrt",),
    "class weights, effective": ("task.class_weights=effective",),
    "focal loss": ("task.loss=focal", "task.focal_gamma=2"),
    "logit adjustment": ("task.logit_adjustment=1.0",),
}
_SAMPLING = {
    "sampling, balanced": ("data.sampling=balanced",),
    "sampling, sqrt": ("data.sampling=sqrt",),
    "sampling, temperature 4": ("data.sampling={temperature: 4}",),
    "sampling, under": ("data.sampling=under",),
}
_AUGMENTATION = {
    "copies, words left out and moved": ("data.augment={delete: 0.1, swap: 0.1, insert: 0.1}",),
    "copies, case and slips": ("data.augment={case: 0.1, typo: 0.1}",),
    "copies, tokens cut off": ("data.augment={cutoff: 0.15}",),
}
_THRESHOLD = {"threshold, tuned": ("task.threshold=tuned",)}
_CALIBRATION = {"calibration": ("task.calibration=temperature",)}
_SIX = {
    "weight decay 0.1": _DECAY["weight decay 0.1"],
    "dropout 0.2": _DROPOUT["dropout 0.2"],
    "rates by layer 0.9": _FREEZING["rates by layer 0.9"],
    "average of the weights": _SMOOTHING["average of the weights"],
    "R-Drop": _SMOOTHING["R-Drop"],
    "LoRA 8": ("model.lora={rank: 8}", "optimizer.learning_rate=1e-3"),
}
_EVERY_KERNEL = {
    f"LoRA {rank}, every kernel": (f"model.lora={{rank: {rank}, targets: [all]}}", "optimizer.learning_rate=1e-3")
    for rank in (4, 8)
}


def _twice(epochs: int) -> dict[str, tuple[str, ...]]:
    """What to hold against copies: as many steps as they take, without them."""
    return {"no copies, twice the epochs": (f"train.epochs={2 * epochs}",)}


KNOBS: dict[str, dict[str, tuple[str, ...]]] = {
    "sst2-100": {**_FREEZING, **_FEW_PARAMETERS, **_AUGMENTATION, **_twice(10)},
    "sst2-500": {**_DECAY, **_DROPOUT, **_SMOOTHING, **_CALIBRATION},
    "spam-skewed": {**_IMBALANCE, **_SAMPLING, **_THRESHOLD},
    "wnut17-500": {**_IMBALANCE, **_AUGMENTATION, **_twice(5)},
    "sst2-2000": _SIX,
    "sst2-all": {**_SIX, **_EVERY_KERNEL},
    "tnews-skewed": {
        **_IMBALANCE,
        "sampling, balanced": _SAMPLING["sampling, balanced"],
        "copies, characters left out and moved": ("data.augment={delete: 0.1, swap: 0.1}",),
        **_twice(3),
    },
}
"""Of each setting the knobs for its symptom: name -> overrides."""


class Row(NamedTuple):
    """One run of the table."""

    setting: str
    knob: str
    overrides: tuple[str, ...]

    @property
    def folder(self) -> str:
        return "-".join("".join(c if c.isalnum() else " " for c in self.knob).split()).lower()

    @property
    def command(self) -> list[str]:
        """Arguments behind `python scripts/finetune.py`."""
        setting = SETTINGS[self.setting]
        return [
            "--config", f"configs/finetune/{setting.config}.yaml", f"name={self.folder}",
            f"logging.directory={RUNS / self.setting}", f"train.seeds={setting.seeds}", *setting.overrides,
            *self.overrides,
        ]  # fmt: skip

    def score(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the metric; None for a run that is not finished."""
        path = RUNS / self.setting / self.folder / "summary.json"
        summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if summary.get("status") != "finished":
            return None
        split, metric = "test" if "test" in summary["scores"] else "validation", SETTINGS[self.setting].metric
        return summary["scores"][split][metric], summary["sd"][split][metric]


def rows() -> list[Row]:
    """Every row, the plain run of each setting before its knobs."""
    return [
        Row(setting, name, overrides)
        for setting, knobs in KNOBS.items()
        for name, overrides in {PLAIN: (), **knobs}.items()
    ]


def table() -> str:
    """The table of the finished rows, in Markdown."""
    lines = ["| setting | knob | mean ± sd | against plain ± its error | overrides |", "|---|---|---|---|---|"]
    plain = {row.setting: row.score() for row in rows() if row.knob == PLAIN}
    for row in rows():
        if (found := row.score()) is None:
            continue
        base = plain[row.setting]
        gain = ""
        if row.knob != PLAIN and base is not None:
            error = math.hypot(found[1], base[1]) / math.sqrt(SETTINGS[row.setting].seeds)
            gain = f"{found[0] - base[0]:+.4f} ± {error:.4f}"
        overrides = " ".join(SETTINGS[row.setting].overrides if row.knob == PLAIN else row.overrides)
        lines.append(f"| {row.setting} | {row.knob} | {found[0]:.4f} ± {found[1]:.4f} | {gain} | `{overrides}` |")
    return "\n".join(lines)


def write_page() -> None:
    """Puts the table between the marks of docs/results.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="rows that hold one of these texts")
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    args = parser.parse_args(argv)
    chosen = [row for row in rows() if any(text in f"{row.setting} {row.knob}" for text in args.only)]
    # What one seed compiles, the next finds.
    environ = {"JAX_COMPILATION_CACHE_DIR": str((RUNS / ".xla").absolute()), **os.environ}
    failed = 0
    for row in chosen:
        command = [sys.executable, str(REPOSITORY / "scripts" / "finetune.py"), *row.command]
        print(f"{row.setting}, {row.knob}: {subprocess.list2cmdline(row.command)}", flush=True)
        if args.list or row.score() is not None:
            continue
        code = subprocess.run(command, env=environ, check=False).returncode
        if code == 3:  # interrupted and saved
            return code
        failed += code != 0
        write_page()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
