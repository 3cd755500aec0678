"""Damages to files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(max(path.stat().st_size, 1)))


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def delete(path: Path, rng: random.Random) -> None:
    path.unlink()


def zeros(path: Path, rng: random.Random) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def longer(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 64)))


Damage = Callable[[Path, random.Random], None]
FOUR: dict[str, Damage] = {"flip": flip, "cut": cut, "empty": empty, "delete": delete}
SIX: dict[str, Damage] = FOUR | {"zeros": zeros, "longer": longer}


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Returns the content with one to four changes: bits, cut or doubled stretches, foreign bytes, other numbers."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(data) + 1)
        span = rng.randint(1, 40)
        match rng.randrange(6):
            case 0 if place < len(data):
                data[place] ^= 1 << rng.randrange(8)
            case 1:
                del data[place : place + span]
            case 2:
                data[place:place] = data[place : place + span]
            case 3:
                data[place:place] = rng.choice(_FOREIGN)
            case 4:
                data[place : place + span] = rng.randbytes(span)
            case _:
                del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


_FOREIGN = (
    b"null", b"-1", b"1e400", b"[]", b"{}", b'"', b"\xff\xfe", b"\x00", b"99999999999999999999", b"NaN", b"[[[[[[[[",
    b": ", b"true", "\u2028".encode(), b"\n\n", b"!!python/object:x ",
)  # fmt: skip
