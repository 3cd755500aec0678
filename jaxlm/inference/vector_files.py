"""Rows with vectors as files of arrays: npz, or parquet."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxlm.errors import UserError
from jaxlm.inference.output import OURS

log = logging.getLogger("jaxlm")

SUFFIXES = (".npz", ".parquet")
"""Names of outputs that hold vectors, and no other predictions."""
VECTOR = "vector"
_CHUNK = 4096
"""Rows of a row group of parquet."""

_UNFIT = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
"""What a value raises that is not of a type, or of none that there is."""

Rows = Iterable[Mapping[str, Any]]


def vector_writer(suffix: str) -> Callable[[Rows, BinaryIO], None]:
    """Returns what writes answered rows to a file of a name that ends so."""
    return {".npz": write_npz, ".parquet": write_parquet}[suffix]


def write_npz(rows: Rows, file: BinaryIO) -> None:
    """Writes `vector` float32 [rows, D], NaN where a row has none, and `error`, a text for each row."""
    vectors: list[np.ndarray | None] = []
    errors: list[str] = []
    for row in rows:
        vector = (row.get("prediction") or {}).get(VECTOR)
        vectors.append(None if vector is None else np.asarray(vector, np.float32))
        errors.append(str(row.get("error") or ""))
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    whole = np.full((len(vectors), width), np.nan, np.float32)
    for place, vector in zip(whole, vectors, strict=True):
        if vector is not None:
            place[:] = vector
    np.savez(file, vector=whole, error=np.asarray(errors, np.str_))


def write_parquet(rows: Rows, file: BinaryIO) -> None:
    """Writes the rows' own columns, `vector`, a list of float32, and `error`; both null where a row has none.

    Columns and their types are those of the first rows. One that has no type of parquet (numbers beside words, {}) is
    written as JSON; columns that none of the first rows has are left out. Both are said in the log.

    Raises:
      UserError: a later row's value is not of its column's type.
    """
    records = map(_record, rows)
    first = list(islice(records, _CHUNK))
    columns = [name for name in dict.fromkeys(name for row in first for name in row) if name not in (VECTOR, "error")]
    types = {name: _type([row.get(name) for row in first]) for name in columns}
    for name in (name for name, kind in types.items() if kind is None):
        log.warning("--output: the values of column %r have no common type in parquet; they are written as JSON", name)
    own = [(name, kind or pa.string()) for name, kind in types.items()]
    schema = pa.schema([*own, (VECTOR, pa.list_(pa.float32())), ("error", pa.string())])
    known = set(schema.names)
    with pq.ParquetWriter(file, schema) as writer:
        for chunk in _chunks(first, records):
            for name in dict.fromkeys(name for row in chunk for name in row if name not in known):
                log.warning("--output: the column %r, which none of the first %d rows has, is left out; jsonl holds it",
                            name, _CHUNK)  # fmt: skip
                known.add(name)
            arrays = []
            for field in schema:
                values = [row.get(field.name) for row in chunk]
                if types.get(field.name, field) is None:
                    values = [_to_json(value) for value in values]
                arrays.append(_array(field.name, values, field.type))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _type(values: Sequence[Any]) -> Any:
    """The type, a `pyarrow.DataType`, of a column's values; None: they have none that parquet holds."""
    try:
        kind = pa.array(values).type
    except _UNFIT:
        return None
    return None if _has_empty_struct(kind) else pa.string() if pa.types.is_null(kind) else kind


def _has_empty_struct(kind: Any) -> bool:
    if pa.types.is_struct(kind) and not kind.num_fields:
        return True
    return any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))


def _to_json(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)


def _array(name: str, values: Sequence[Any], kind: Any) -> Any:
    """The values of a column as a `pyarrow.Array`."""
    try:
        return pa.array(values, kind)
    except _UNFIT as error:
        advice = "jsonl holds values of several types"
        raise UserError(
            f"--output: column {name!r}: expected {kind}, as in the first rows ({error}); {advice}"
        ) from error


def _chunks(first: list[dict[str, Any]], rest: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    chunk = first
    while chunk:
        yield chunk
        chunk = list(islice(rest, _CHUNK))


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its vector as a column; one of its own of that name is called input_vector."""
    own = {f"input_{name}" if name == VECTOR else name: v for name, v in row.items() if name not in OURS}
    return own | {VECTOR: (row.get("prediction") or {}).get(VECTOR), "error": row.get("error")}


def check_suffix(output: str, *, vectors: bool) -> str | None:
    """Returns the suffix of an output for vectors; None for another.

    Args:
      vectors: whether the predictions are vectors.
    Raises:
      UserError: such a suffix where they are none.
    """
    suffix = Path(output).suffix
    if suffix not in SUFFIXES:
        return None
    if not vectors:
        raise UserError(f"--output {output}: {suffix} is written for models that give a vector for each text; expected "
                        "a name that ends in .jsonl, .csv or .tsv")  # fmt: skip
    return suffix
