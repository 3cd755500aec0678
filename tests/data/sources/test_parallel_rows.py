"""Parallel text files: a file to a column, a row to a line."""

from __future__ import annotations

import gzip

import pytest

from jaxlm.config.loading import override_config
from jaxlm.config.schema import Config
from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.sources import load
from jaxlm.errors import UserError
from jaxlm.inference.input_rows import open_input


def source(tmp_path, **files: bytes) -> SourceConfig:
    paths = {}
    for column, content in files.items():
        path = tmp_path / f"train.{column}"
        path.write_bytes(content)
        paths[column] = str(path)
    return SourceConfig.model_validate({"path": paths})


def test_line_n_of_each_file_is_row_n(tmp_path):
    read = load(
        source(tmp_path, en=b"\xef\xbb\xbfone\r\n two\nx\x0cy\n", de="eins\n\nzwei\u2028drei".encode()),
        key="data.train",
        split="train",
    )
    assert read.columns == ("en", "de")
    assert read.rows == (
        {"en": "one", "de": "eins"},
        {"en": " two", "de": ""},
        {"en": "x\x0cy", "de": "zwei\u2028drei"},
    )
    assert read.where(2).endswith("train.de, row 3")
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"un\ndeux\ntrois\n", mtime=0))
    three = SourceConfig.model_validate(
        {"path": {"en": str(tmp_path / "train.en"), "fr": str(tmp_path / "c.gz")}, "rename": {"fr": "x"}, "limit": 2}
    )
    assert load(three, key="k", split="train").rows == ({"en": "one", "x": "un"}, {"en": " two", "x": "deux"})


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"en": b"a\nb\n", "de": b"c\n"}, "train.en has 2 lines, .*train.de has 1 lines; expected as many in each"),
        ({"en": b"a\nb\n", "de": b"c\nd\n\n"}, "has 2 lines, .*has 3 lines"),
        ({"en": b"a\n", "de": b"\xff\xffx\n"}, "not UTF-8|cannot be decoded|UTF-16"),
        ({"en": b"", "de": b""}, "no rows"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, files, problem):
    with pytest.raises(UserError, match=problem):
        load(source(tmp_path, **files), key="data.train", split="train")


def test_lines_of_plain_text_are_answered(tmp_path):
    made = source(tmp_path, en=b"a\nb\n", de=b"c\nd\n")
    config = override_config(Config(name="x"), ["task={kind: translation}"])
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": made})})
    with open_input(str(tmp_path / "train.en"), config) as rows:
        assert rows.columns == ("en",) and list(rows.records) == [(1, {"en": "a"}), (2, {"en": "b"})]
    (tmp_path / "x.jsonl").write_text('{"en": "c"}\n')
    with open_input(str(tmp_path / "x.jsonl"), config) as rows:
        assert [row for _, row in rows.records] == [{"en": "c"}]
    with open_input(str(tmp_path / "x.jsonl"), config, {"format": "text"}) as rows:
        assert [row for _, row in rows.records] == [{"en": '{"en": "c"}'}]
    several = override_config(config, ["task.template='{en} {de}'"])
    with pytest.raises(UserError, match="reads the columns en, de"), open_input(str(tmp_path / "train.en"), several):
        pass


def test_a_file_that_is_not_there_and_keys_that_mean_nothing(tmp_path):
    made = source(tmp_path, en=b"a\n", de=b"b\n")
    absent = made.model_copy(update={"path": {"en": made.path["en"], "de": str(tmp_path / "train.dee")}})
    with pytest.raises(UserError, match=r"data.train.path.de: no file .*did you mean .*train.de'"):
        load(absent, key="data.train", split="train")
    for key, value in {"format": "csv", "separator": ";", "columns": ("a",), "quoting": True}.items():
        with pytest.raises(UserError, match=f"data.train.{key}"):
            load(made.model_copy(update={key: value}), key="data.train", split="train")
    bad = source(tmp_path, en=b"a\nb\n", de=b"c\n\xe9\n")
    table = load(bad, key="data.train", split="train", on_bad_row="skip")
    assert (len(table), table.skipped) == (1, 1)
