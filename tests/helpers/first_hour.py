"""The tables of docs/guides/first_hour.md, made of real text messages as a German spreadsheet would save them."""

from __future__ import annotations

import csv
from pathlib import Path

LABELS = {"ham": "persönlich", "spam": "Werbung"}


def write_tables(folder: Path, shared_data: Path) -> list[str]:
    """Writes nachrichten.csv, 300 labelled rows, and neu.csv, 39 without labels; returns the labels of the latter."""
    lines = (shared_data / "classification/sms_spam/train.tsv").read_text(encoding="utf-8").splitlines()
    messages = [line.split("\t", 1) for line in lines]
    by_label = {name: [text for label, text in messages if label == name] for name in LABELS}
    mixed = [(name, by_label[name].pop(0)) for _ in range(113) for name in ("ham", "spam", "ham")]
    with (folder / "nachrichten.csv").open("w", encoding="cp1252", errors="replace", newline="") as file:
        table = csv.writer(file, delimiter=";")  # lines end in \r\n
        table.writerow(["Nr", "Nachricht", "Art", "Kosten"])
        for i, (name, text) in enumerate(mixed[:300]):
            table.writerow([i, text, LABELS[name], f"{len(text) / 100:.2f}".replace(".", ",")])
    with (folder / "neu.csv").open("w", encoding="cp1252", errors="replace", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Nr", "Nachricht"])
        table.writerows([i, text] for i, (_, text) in enumerate(mixed[300:], 300))
    return [LABELS[name] for name, _ in mixed[300:]]
