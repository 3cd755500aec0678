"""Opens text files, plain, .gz or .zst; a row of a file, with the line at which it starts."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from jaxlm.errors import UserError
from jaxlm.local_paths import check_fetched

log = logging.getLogger("jaxlm")

_UNDECODED = re.compile("[\udc80-\udcff]")
"""What Python's `surrogateescape` puts in the place of a byte."""
_MARKS = {
    b"PK\x03\x04": "a zip archive or a spreadsheet does; unpack it, or save it as csv",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet does; save it as csv",
    b"PAR1": "parquet does; name it .parquet",
    b"\x1f\x8b": "gzip does; name it .gz",
    b"\x28\xb5\x2f\xfd": "zstd does; name it .zst",
    b"%PDF": "PDF does; save its text",
}
_BYTE_TO_A_LETTER = ("cp125", "cp437", "cp850", "iso8859", "koi8", "mac")
_BEGINNING = 1 << 20
"""Bytes that are looked at."""
COMPRESSED = (".gz", ".zst")
"""Ends of names of files that are unpacked."""
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_ENCODING_HINTS = "common ones: latin-1, cp1252 (Western), gb18030 (Chinese), shift_jis (Japanese), utf-16"


@dataclass(frozen=True)
class BadRow:
    """Stands where a row could not be read."""

    problem: str


Record = tuple[int, dict[str, Any] | BadRow]
"""The line at which a row starts, and the row."""


def undecoded(text: str) -> BadRow | None:
    """Returns the bad row that a text read by `open_text(..., lenient=True)` is, if a byte in it was not UTF-8."""
    found = None if text.isascii() else _UNDECODED.search(text)
    if found is None:
        return None
    return BadRow(f"not UTF-8: byte {ord(found[0]) - 0xDC00:#04x} cannot be decoded; convert the file to UTF-8")


def reads_as_utf8(path: Path, encoding: str) -> bool:
    """Whether a file has letters outside ASCII that are all UTF-8, where `encoding` is one of a byte to a letter, which
    reads any file, and makes `Ã¼` of an `ü`."""
    if not codecs.lookup(encoding).name.startswith(_BYTE_TO_A_LETTER):
        return False
    with open_binary(path) as (_, stream):
        beginning = stream.read(_BEGINNING)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(beginning, final=len(beginning) < _BEGINNING)
    except UnicodeDecodeError:
        return False
    return not text.isascii()


def encoding_like(path: Path, usual: str) -> str:
    """Returns the encoding of a file that is read as others are, which have the `usual` one: UTF-8 where it must be."""
    try:
        if not reads_as_utf8(path, usual):
            return usual
    except LookupError:  # no such encoding, which is said when the file is opened
        return usual
    log.info("%s: read as UTF-8, which all its letters are, and not as %s, as the run's own files", path, usual)
    return "utf-8"


def setting(key: str, name: str, value: str | None = None) -> str:
    """How a user sets what a file is read with: `data.train.separator: ";"`, or `--separator ";"` of a command.

    Args:
      key: config key of the source, or the option that names the file.
    """
    if key.startswith("--"):
        return f"--{name}" if value is None else f"--{name} {value}"
    return f"{key}.{name}" if value is None else f"{key}.{name}: {value}"


@dataclass(frozen=True)
class TextFile:
    """An open text file, with how much of it has been read."""

    text: io.TextIOWrapper
    raw: io.BufferedReader
    size: int

    def fraction(self) -> float:
        """Returns the share that has been read, from 0 to 1, by bytes of the file as it lies on disk."""
        return 1.0 if self.raw.closed or not self.size else self.raw.tell() / self.size


@contextmanager
def open_text(path: Path, encoding: str, key: str, *, lenient: bool = False) -> Iterator[TextFile]:
    """Opens a text file, decompressed where its name ends in .gz or .zst, without a byte-order mark.

    Only a line feed ends a line: a carriage return, U+2028 or U+0085 inside a text does not.

    Args:
      lenient: of a file that is meant to be UTF-8, bytes that are not do not raise: `undecoded` finds them.
    Raises:
      UserError: wrong encoding (with the byte offset), unknown encoding, broken gzip or zstd, unreadable file.
    """
    try:
        codec = codecs.lookup(encoding).name
        b" ".decode(codec)  # refuses codecs that are not of text, such as hex
    except UnicodeDecodeError:  # a text encoding, of which one byte is not a character
        pass
    except LookupError:
        raise UserError(f"{key}.encoding: unknown encoding {encoding!r}; {_ENCODING_HINTS}") from None
    _check_text(path, codec, encoding, key)
    if reads_as_utf8(path, codec):
        log.warning("%s: read as %s, but all its letters are UTF-8 too; they are right with %s",
                    path, encoding, setting(key, "encoding", "utf-8"))  # fmt: skip
    errors = "surrogateescape" if lenient and codec == "utf-8" and not _begins_as_utf16(path) else "strict"
    codec = "utf-8-sig" if codec == "utf-8" else codec
    try:
        with (
            open_binary(path) as (raw, stream),
            io.TextIOWrapper(stream, encoding=codec, errors=errors, newline="\n") as text,
        ):
            yield TextFile(text, raw, os.fstat(raw.fileno()).st_size)
    except UnicodeDecodeError:
        raise UserError(_undecodable(path, encoding, key)) from None


@contextmanager
def open_binary(path: Path) -> Iterator[tuple[io.BufferedReader, Any]]:
    """Opens a file; yields it as it lies on disk, and its content, decompressed where its name ends in .gz or .zst.

    Raises:
      UserError: broken gzip or zstd, unreadable file.
    """
    try:
        with path.open("rb") as raw, _decompressed(path, raw) as stream:
            yield raw, stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); copy or download it again") from None
    except OSError as error:
        if path.suffix == ".zst" and error.errno is None:
            raise UserError(f"{path}: not a whole zstd file ({error}); copy or download it again") from None
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _check_text(path: Path, codec: str, encoding: str, key: str) -> None:
    """Raises UserError for a file that begins as no text does, or as another encoding."""
    check_fetched(path)
    with open_binary(path) as (_, stream):
        beginning = stream.read(4)
    kind = next((kind for mark, kind in _MARKS.items() if beginning.startswith(mark)), None)
    if kind is not None:
        raise UserError(f"{path}: not a text file, whatever its name: it begins as {kind}")
    if codec == "utf-8" and len(beginning) == 4 and beginning.count(0) == 2 and beginning[0] != beginning[1]:
        order = "le" if beginning[1] == 0 else "be"
        raise UserError(
            f"{path}: not {encoding}: every other byte is 0, as in UTF-16; set {key}.encoding=utf-16-{order}"
            if not key.startswith("--")
            else f"{path}: not {encoding} but UTF-16; convert the file to {encoding}"
        )


def _begins_as_utf16(path: Path) -> bool:
    with open_binary(path) as (_, stream):
        return stream.read(2) in _UTF16


def _decompressed(path: Path, raw: io.BufferedReader) -> Any:
    if path.suffix == ".gz":
        return gzip.open(raw)
    if path.suffix == ".zst":
        return pyarrow.input_stream(raw, compression="zstd")
    return raw


def _undecodable(path: Path, encoding: str, key: str) -> str:
    """Returns the message for a file that is not in `encoding`.

    It reads the file again, since a stream's error knows no offset.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, line, beginning, byte, more = 0, 1, b"", 0, True
    with path.open("rb") as raw, _decompressed(path, raw) as stream:
        while more:
            block = stream.read(1 << 20)
            beginning, more = beginning or block[:2], bool(block)
            held = decoder.getstate()[0]  # the first bytes of a character whose others are in this block
            try:
                decoder.decode(block, final=not more)
            except UnicodeDecodeError as error:
                content = held + block
                offset += error.start - len(held)
                line += content.count(b"\n", 0, error.start)
                byte = content[error.start]
                break
            offset += len(block)
            line += block.count(b"\n")
    hint = "the file begins as UTF-16 does: " if beginning in _UTF16 else ""
    advice = f"set {key}.encoding to the file's own ({_ENCODING_HINTS}), or convert the file"
    if key.startswith("--"):  # a command's option, beside which there is none for encodings
        advice = f"convert the file to {encoding}"
    where = f"byte {byte:#04x} at byte offset {offset} (line {line})"
    return f"{path}: not {encoding}: {where} cannot be decoded; {hint}{advice}"
