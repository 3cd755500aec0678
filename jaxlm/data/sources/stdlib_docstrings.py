"""The built-in source `stdlib_docstrings`: docstrings of the Python standard library, labelled by topic."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path

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
SHINGLE = 5
"""Words of the sequences that two texts are compared by."""
_NEAR = 0.5  # share of the shorter text's shingles that makes two texts near-copies


def load_docstrings(split: str) -> Table:
    """One split of the docstrings: 80 % train, 10 % validation, 10 % test, by a hash of the text.

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
    """Every row with its split, in the order of module names."""
    rows = list(_unambiguous(_read(root)))
    if len(rows) < _MIN_ROWS:
        raise UserError(
            f"stdlib_docstrings: only {len(rows)} docstrings found under {root}: this Python comes without the sources "
            "of its standard library (some embedded and zipped distributions do); use another Python or a file of your "
            "own (data.train.path)"
        )
    texts = [row["text"] for row in rows]
    return tuple(zip(rows, map(_side, near_copies(texts)), strict=True))


def _read(root: Path) -> Iterator[dict[str, str]]:
    topics = {module: topic for topic, modules in TOPICS.items() for module in modules.split()}
    for top in sorted(topics):
        for path in sorted((root / top).rglob("*.py")) + [root / f"{top}.py"]:
            parts = path.relative_to(root).with_suffix("").parts
            if path.is_file() and not _SKIPPED_FOLDERS & set(parts):
                module = ".".join(parts).removesuffix(".__init__")
                for text in _docstrings(path):
                    if len(text.split()) >= MIN_WORDS:
                        yield {"text": text, "label": topics[top], "module": module}


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of a file's module, classes and functions, in the order of the file."""
    with tokenize.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like, in sources that are not ours
        try:
            nodes: list[ast.AST] = [ast.parse(file.read())]
        except SyntaxError:  # templates and the like
            return
    while nodes:
        node = nodes.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prose(ast.get_docstring(node) or "")
            inner = node.body
        elif isinstance(node, (ast.If, ast.Try)):  # definitions that depend on the platform
            inner = chain(node.body, *(handler.body for handler in getattr(node, "handlers", ())), node.orelse)
        else:
            continue
        nodes.extend(reversed(list(inner)))


def prose(docstring: str) -> str:
    """Without doctest blocks, which reach from a prompt to the next blank line: they are code."""
    kept, in_doctest = [], False
    for line in docstring.splitlines():
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if not in_doctest:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _unambiguous(rows: Iterator[dict[str, str]]) -> Iterator[dict[str, str]]:
    """Each text once; a text that stands under several topics has no right label and is left out."""
    by_text: dict[str, dict[str, str] | None] = {}
    for row in rows:
        earlier = by_text.setdefault(row["text"], row)
        if earlier is not None and earlier["label"] != row["label"]:
            by_text[row["text"]] = None
    return (row for row in by_text.values() if row is not None)


def near_copies(texts: list[str]) -> list[str]:
    """Cluster near-copies, so that a split may keep each cluster on one side.

    Two texts are near-copies where at least half of the distinct 5-word shingles of the one that has fewer (a text of
    under 5 words is one shingle) stand in the other; clusters are the connected components. Letter case and
    punctuation do not count.

    Returns:
        For each text its cluster's representative: the text of the cluster that sorts first.
    """
    shingles = [_shingles(text) for text in texts]
    texts_of: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, own in enumerate(shingles):
        for shingle in own:
            texts_of[shingle].append(i)
    parents = list(range(len(texts)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    for i, own in enumerate(shingles):
        shared = Counter(j for shingle in own for j in texts_of[shingle] if j < i)
        for j, count in shared.items():
            if are_near(count, len(own), len(shingles[j])):
                parents[root(i)] = root(j)
    first: dict[int, str] = {}
    for i, text in enumerate(texts):
        first[root(i)] = min(text, first.get(root(i), text))
    return [first[root(i)] for i in range(len(texts))]


def are_near(shared: int, *sizes: int) -> bool:
    """Whether so many shared shingles make near-copies of two texts that have so many each."""
    return shared >= _NEAR * min(sizes)


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def _side(representative: str) -> str:
    tenth = int.from_bytes(hashlib.sha256(representative.encode("utf-8")).digest()[:8], "big") % 10
    return SPLITS[max(0, tenth - 7)]
