"""Rows with vectors as files of arrays: npz, or parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxlm.errors import UserError
from jaxlm.inference.output import OURS

SUFFIXES = (".npz", ".parquet")
"""Names of outputs that hold vectors, and no other predictions."""
VECTOR = "vector"
_CHUNK = 4096
"""Rows of a row group of parquet."""

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

    Raises:
      UserError: a column whose values have different types.
    """
    records = map(_record, rows)
    first = list(islice(records, _CHUNK))
    columns = [name for name in dict.fromkeys(name for row in first for name in row) if name not in (VECTOR, "error")]
    try:
        inferred = {name: pa.array([row.get(name) for row in first]).type for name in columns}
        types = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in inferred.items()}
        schema = pa.schema([*types.items(), (VECTOR, pa.list_(pa.float32())), ("error", pa.string())])
        with pq.ParquetWriter(file, schema) as writer:
            for chunk in _chunks(first, records):
                writer.write_table(pa.Table.from_pylist(chunk, schema=schema))
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"--output: a column's values are of different types ({error}); jsonl holds them") from error


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
        raise UserError(f"--output {output}: {suffix} holds vectors of texts, which this model does not give; expected "
                        "a name that ends in .jsonl, .csv or .tsv")  # fmt: skip
    return suffix
