"""TensorBoard event files: written record by record, made anew from the run's rows at each start.

A file is a sequence of records, each the length of its content, a checksum of that length, the content and a checksum
of it; the content is a protocol buffer `Event` (tensorflow/core/util/event.proto) with the values of one row. Nothing
here waits for another thread, and no error leaves: the rows stand in metrics.jsonl, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

log = logging.getLogger("jaxlm")

_SHAPE = b"\x12\x04\x12\x02\x08\x01"
"""TensorProto.tensor_shape of one string."""
_PREFIX = "events.out.tfevents."
Row = tuple[int, float, Mapping[str, float]]
"""Step, time in seconds since 1970, and values by tag."""


class EventFile:
    """One event file, in place of those of earlier starts.

    Args:
      folder: made if absent.
      rows: what it begins with.
    """

    def __init__(self, folder: Path, rows: Iterable[Row]) -> None:
        self._folder, self._file = folder, -1
        try:
            folder.mkdir(parents=True, exist_ok=True)
            earlier = list(folder.glob(f"{_PREFIX}*"))
            path = folder / f"{_PREFIX}{time.time():010.0f}.{os.getpid()}.jaxlm"
            # Not blocking: a pipe without a reader, in the file's place, is an error.
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o666)
            begin = _record(_double(1, time.time()) + _bytes(3, b"brain.Event:2"))
            _write(self._file, begin + b"".join(_event(*row) for row in rows))
            for old in earlier:
                if old != path:
                    old.unlink()
        except OSError as error:
            self._give_up(error)

    def add(self, step: int, wall_time: float, values: Mapping[str, float]) -> None:
        """Appends one row."""
        if values:
            self._append(_event(step, wall_time, values))

    def add_texts(self, step: int, wall_time: float, texts: Mapping[str, str]) -> None:
        """Appends texts by tag, Markdown, which stand under TensorBoard's heading "Text"."""
        if texts:
            self._append(_text_event(step, wall_time, texts))

    def _append(self, record: bytes) -> None:
        if self._file < 0:
            return
        try:
            _write(self._file, record)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
        self._file = -1

    def _give_up(self, error: OSError) -> None:
        log.warning(
            "%s: TensorBoard's events cannot be written (%s); the run goes on without them, and they are written from "
            "metrics.jsonl when it is resumed",
            self._folder, error.strerror or error,
        )  # fmt: skip
        self.close()


def _write(file: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(file, left) :]


def _event(step: int, wall_time: float, values: Mapping[str, float]) -> bytes:
    items = b"".join(
        _bytes(1, _bytes(1, tag.encode("utf-8", "replace")) + b"\x15" + struct.pack("<f", _float32(value)))
        for tag, value in values.items()
    )
    return _record(_double(1, wall_time) + b"\x10" + _varint(step) + _bytes(5, items))


def _text_event(step: int, wall_time: float, texts: Mapping[str, str]) -> bytes:
    """As `_event`; a text is a tensor of strings (type 7), its place under "Text" the metadata of its value."""
    plugin = _bytes(9, _bytes(1, _bytes(1, b"text")))  # SummaryMetadata.plugin_data.plugin_name
    items = b"".join(
        _bytes(
            1,
            _bytes(1, tag.encode())
            + plugin
            + _bytes(8, b"\x08\x07" + _SHAPE + _bytes(8, text.encode("utf-8", "replace"))),
        )
        for tag, text in texts.items()
    )
    return _record(_double(1, wall_time) + b"\x10" + _varint(step) + _bytes(5, items))


def _float32(value: float) -> float:
    """The value, infinite where float32 cannot hold it."""
    return value if not abs(value) > 3.4028234e38 else float("inf") if value > 0 else float("-inf")


def _double(field: int, value: float) -> bytes:
    return bytes([field << 3 | 1]) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    digits = []
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def _record(content: bytes) -> bytes:
    length = struct.pack("<Q", len(content))
    return length + _checksum(length) + content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted as the format asks."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)
