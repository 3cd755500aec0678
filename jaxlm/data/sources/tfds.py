"""Reads a TFDS dataset from ArrayRecord files, without TensorFlow."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.sources.text_files import BadRow, Record
from jaxlm.errors import UserError

_BATCH = 256  # examples read at once, which is many times faster than one by one


def open_split(name: str, split: str, data_dir: str | None, key: str) -> tuple[str, Iterator[Record], tuple[str, ...]]:
    """Opens one split of a dataset; downloads and prepares the dataset first where it is not yet in `data_dir`.

    Args:
      name: TFDS name, "glue/sst2" or "glue/sst2:2.0.0".
      split: TFDS split, sub-splits such as "train[:10%]" included.
      data_dir: TFDS directory; None: TFDS's default.
      key: config key of the source for messages.
    Returns:
      The name for messages, the rows, and the columns. Text is decoded; a ClassLabel becomes its label's name, and
      None where it is TFDS's -1 ("not labeled").
    Raises:
      UserError: TFDS is not installed; unknown dataset or split; a preparation that failed; files that are not
        ArrayRecord (TFDS reads its own Parquet files back with rows missing); a row count unlike the recorded one.
    """
    builder = _prepared(name, data_dir, key)
    formats = {fmt.value for fmt in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise UserError(
            f"{key}.tfds: {name} in {builder.data_dir} is stored as {', '.join(sorted(formats))}; only array_record is "
            f"read without TensorFlow and without losing rows: `tfds build --file_format=array_record {name}`"
        )
    label = f"tfds {name}:{split}"
    try:
        examples = builder.as_data_source(split=split, file_format="array_record")
        expected = builder.info.splits[split].num_examples
    except (ValueError, KeyError) as error:
        there = ", ".join(sorted(builder.info.splits))
        raise UserError(f"{key}.split: {name} has no split {split!r} ({error}); its splits are: {there}") from None
    if len(examples) != expected:
        raise UserError(
            f"{label}: the files hold {len(examples)} rows, but {builder.data_dir}/dataset_info.json records "
            f"{expected}; prepare the dataset again"
        )
    features = builder.info.features
    return label, _records(examples, features), tuple(features)


def data_folder(name: str, data_dir: str | None, key: str) -> Path:
    """Returns the folder of a dataset, which is prepared as in `open_split`."""
    return Path(_prepared(name, data_dir, key).data_dir)


def _prepared(name: str, data_dir: str | None, key: str) -> Any:
    tfds = _import(key)
    builder = _builder(tfds, name, data_dir, key)
    if not builder.is_prepared():
        try:
            builder.download_and_prepare(file_format="array_record")
        except Exception as error:  # whatever a dataset's own download code raises
            raise UserError(
                f"{key}.tfds: {name} is not prepared in {builder.data_dir}, and preparing it failed: {error}. Prepare "
                "it on a machine with network access (and TensorFlow, where its code needs it) by `tfds build "
                f"--file_format=array_record {name}`, and point {key}.data_dir at the result"
            ) from error
    return builder


def _import(key: str) -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise UserError(f"{key}.tfds needs an extra package ({error}): pip install 'jaxlm[tfds]'") from None


def _builder(tfds: Any, name: str, data_dir: str | None, key: str) -> Any:
    # Where TensorFlow is absent, TFDS registers glue and its other older text datasets only once they are imported.
    with contextlib.suppress(ImportError):
        importlib.import_module(f"tensorflow_datasets.text.{name.partition('/')[0].partition(':')[0]}")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        where = data_dir or "TFDS's default directory; set data_dir if it is elsewhere"
        raise UserError(f"{key}.tfds: TFDS knows no dataset {name!r}, and none is prepared in {where}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{key}.tfds: {name}: {error}") from None


def _records(examples: Any, features: Any) -> Iterator[Record]:
    convert = _converter(features)
    for start in range(0, len(examples), _BATCH):
        numbers = range(start, min(start + _BATCH, len(examples)))
        for number, example in zip(numbers, examples.__getitems__(numbers), strict=True):
            try:
                yield number + 1, convert(example)
            except UnicodeDecodeError as error:
                yield number + 1, BadRow(f"bytes that are not UTF-8 text: {error}")


def _converter(feature: Any) -> Callable[[Any], Any]:
    """Returns the function from a feature's value (numpy types, bytes) to str, int, float, bool, list or dict."""
    inner = getattr(feature, "feature", None)  # first: a Sequence answers for the attributes of what it holds
    if inner is not None and hasattr(inner, "keys"):  # TFDS turns a sequence of dicts into a dict of lists
        lists = {name: _converter(inner[name]) for name in inner}
        return lambda value: {name: [convert(part) for part in value[name]] for name, convert in lists.items()}
    if inner is not None:
        convert_part = _converter(inner)
        return lambda value: [convert_part(part) for part in value]
    if hasattr(feature, "int2str"):  # ClassLabel; without names of its own, TFDS calls its labels "0", "1", ...
        named = feature.names != [str(i) for i in range(feature.num_classes)]
        names = feature.names if named else range(feature.num_classes)
        return lambda value: names[int(value)] if value >= 0 else None
    if hasattr(feature, "keys"):
        parts = {name: _converter(feature[name]) for name in feature}
        return lambda value: {name: convert(value[name]) for name, convert in parts.items()}
    return _plain


def _plain(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return value.decode("utf-8") if isinstance(value, bytes) else value
