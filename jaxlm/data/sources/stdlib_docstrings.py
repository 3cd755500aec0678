"""The built-in source `stdlib_docstrings`: docstrings of the Python standard library, labeled by topic."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from jaxlm.data.sources.docstrings import prose, read_docstrings
from jaxlm.data.sources.near_copies import cluster_near_copies
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError, did_you_mean

TOPICS: dict[str, str] = {
    "concurrency": ("_threading_local asyncio concurrent multiprocessing queue sched selectors subprocess threading"),
    "debugging": (
        "bdb cProfile cgitb doctest faulthandler logging pdb profile profiling pstats timeit trace traceback "
        "tracemalloc unittest warnings"
    ),
    "files and system": (
        "_aix_support _android_support _apple_support _ios_support _osx_support _pyio argparse cmd ctypes filecmp "
        "fileinput fnmatch genericpath getopt getpass glob io linecache ntpath optparse os pathlib pipes platform "
        "posixpath pty shlex shutil signal stat tempfile tty"
    ),
    "formats": (
        "_compression aifc bz2 chunk compression configparser csv dbm gzip imghdr json lzma pickle pickletools "
        "plistlib shelve sndhdr sqlite3 sunau tarfile tomllib wave xdrlib xml zipfile"
    ),
    "gui": "curses idlelib tkinter turtle turtledemo",
    "language": (
        "_ast_unparse _pyrepl annotationlib ast code codeop dis inspect keyword opcode pyclbr pydoc rlcompleter "
        "symtable tabnanny tokenize typing"
    ),
    "mail": "email imaplib mailbox mailcap mimetypes nntplib poplib quopri smtpd smtplib",
    "numbers and dates": (
        "_pydatetime _pydecimal _pylong _strptime calendar colorsys datetime decimal fractions numbers random secrets "
        "statistics zoneinfo"
    ),
    "import and packaging": (
        "compileall distutils imp importlib modulefinder pkgutil py_compile runpy site sysconfig venv zipapp zipimport"
    ),
    "structures": (
        "_collections_abc _py_abc _py_warnings _weakrefset abc bisect collections contextlib contextvars copy copyreg "
        "dataclasses enum functools graphlib heapq operator pprint reprlib types weakref"
    ),
    "text": "_markupbase base64 codecs difflib encodings gettext html locale re string stringprep textwrap uu",
    "web and network": (
        "asynchat asyncore cgi ftplib http ipaddress netrc nturl2path socket socketserver ssl telnetlib urllib uuid "
        "webbrowser wsgiref xmlrpc"
    ),
}
"""Topic -> top-level modules of Python 3.11 to 3.14. A module that a version lacks is passed over."""

SPLITS = ("train", "validation", "test")
MIN_WORDS = 6
"""Shorter texts ("Return the name.") fit any topic."""

_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
_MIN_ROWS = 1000  # fewer: the sources are not there, whatever the reason


def load_docstrings(split: str) -> Table:
    """Returns one split of the docstrings: 80 % train, 10 % validation, 10 % test, by a hash of the text.

    Nothing is imported or executed: the sources are parsed. The rows depend on the Python version and on which parts of
    the standard library are installed, and on nothing else.

    Returns:
      A table of the columns "text" (cleaned by `inspect.cleandoc`, without doctest blocks), "label" (a key of
      `TOPICS`) and "module" (dotted name).
    Raises:
      UserError: an unknown split, or a Python without the sources of its standard library.
    """
    if split not in SPLITS:
        message = f"stdlib_docstrings: no split {split!r}; its splits are: {', '.join(SPLITS)}"
        raise UserError(message + did_you_mean(split, SPLITS))
    rows = tuple(row for row, side in _split_rows(Path(sysconfig.get_path("stdlib"))) if side == split)
    name = f"stdlib_docstrings:{split}"
    return Table(name, ("text", "label", "module"), tuple(map(dict, rows)), tuple(range(1, len(rows) + 1)))


@cache
def _split_rows(root: Path) -> tuple[tuple[dict[str, str], str], ...]:
    """Returns every row with its split, in the order of module names."""
    rows = list(_unambiguous(_read(root)))
    if len(rows) < _MIN_ROWS:
        raise UserError(
            f"stdlib_docstrings: only {len(rows)} docstrings found under {root}: this Python comes without the sources "
            "of its standard library (some embedded and zipped distributions do); use another Python or a file of your "
            "own (data.train.path)"
        )
    texts = [row["text"] for row in rows]
    return tuple(zip(rows, map(_side, cluster_near_copies(texts)), strict=True))


def _read(root: Path) -> Iterator[dict[str, str]]:
    topics = {module: topic for topic, modules in TOPICS.items() for module in modules.split()}
    for top in sorted(topics):
        for path in sorted((root / top).rglob("*.py")) + [root / f"{top}.py"]:
            parts = path.relative_to(root).with_suffix("").parts
            if path.is_file() and not _SKIPPED_FOLDERS & set(parts):
                module = ".".join(parts).removesuffix(".__init__")
                for text in map(prose, read_docstrings(path)):
                    if len(text.split()) >= MIN_WORDS:
                        yield {"text": text, "label": topics[top], "module": module}


def _unambiguous(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Keeps each text once, and leaves out texts of several topics, which have no right label."""
    by_text: dict[str, dict[str, str] | None] = {}
    for row in rows:
        earlier = by_text.setdefault(row["text"], row)
        if earlier is not None and earlier["label"] != row["label"]:
            by_text[row["text"]] = None
    return (row for row in by_text.values() if row is not None)


def _side(representative: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(representative.encode("utf-8")).digest()[:8], "big") % 10
    return SPLITS[max(0, tenth - 7)]
