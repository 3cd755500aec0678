"""Small inputs that went wrong, written to a folder; those of the shared folder where it is at hand."""

from __future__ import annotations

import os
import shutil
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet

TEXTS = {
    "csv_cr_in_field.csv": "text,label\na\rb,1\nc d,0\n",
    "csv_index.csv": ",text,label\n0,a b,1\n1,c d,0\n",
    "csv_semicolon.csv": "text;label\na b;1\nc d;0\n",
    "gen_null.jsonl": '{"text":null}\n',
    "json_list.json": '[{"text":"a","label":1},\n{"text":"b","label":0}]\n',
    "jsonl_dup.jsonl": '{"text":"a","label":1,"label":0}\n',
    "labels_double_dash.csv": "text,label\na b,--1\nc d,+1\ne f,--1\ng h,+1\n",
    "labels_enumeration.csv": "text,label\na b,1.\nc d,2.\ne f,3.\ng h,1.\n",
    "labels_iso639_nan.csv": "text,label\nhello there,eng\nguten tag,deu\nli ho,nan\nbonjour,fra\n",
    "labels_multi_hot.jsonl": "".join(
        f'{{"text": "{text}", "label": {label}}}\n'
        for text, label in (("a b", [1, 0, 0]), ("c d", [0, 1, 1]), ("e f", [0, 0, 0]), ("g h", [1, 1, 1]))
    ),
    "labels_trailing_separator.csv": 'text,label\na b,"p,q"\nc d,\ne f,"q, r"\ng h,"q,"\n',
    "metric_undefined_train.csv": "text,label\na b,x\nc d,y\ne f,x\ng h,y\n",
    "metric_undefined_val.csv": "text,label\na b,x\nq r,x\n",
    "nli_rows.jsonl": "".join(
        f'{{"text": "row {i}", "label": "{label}"}}\n'
        for i, label in enumerate(("contradiction", "entailment", "neutral") * 2)
    ),
    "text_is_token_list.jsonl": '{"text": ["a", "b"], "label": "x"}\n{"text": ["c", "d"], "label": "y"}\n',
}


def write_faults(folder: Path) -> Path:
    """Writes every input; those of `$JAXLM_TEST_DATA/../faults` replace ours."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in TEXTS.items():
        (folder / name).write_bytes(text.encode())
    table = pyarrow.table({"text": ["a b", "c d"], "label": [Decimal("3.50"), Decimal("1.25")]})
    pyarrow.parquet.write_table(table, folder / "pq_decimal.parquet")
    if data := os.environ.get("JAXLM_TEST_DATA"):
        shared = Path(data).parent / "faults"
        for path in shared.glob("*.*") if shared.is_dir() else ():
            shutil.copy(path, folder)
    return folder
