"""Rows that no example can be made of: refused with advice, left out and said, or answered with their error."""

from __future__ import annotations

import pytest

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

TABLE = Table("a.csv", ("text",), ({"text": "x"}, {"text": ""}), (2, 3))
ERROR = UserError("a.csv, row 1 (line 3): text is empty")


def bad(policy: str, *, labelled: bool) -> BadRows:
    return BadRows(TABLE, DataConfig.model_validate({"on_bad_row": policy}), labelled=labelled, key="data.train")


def test_a_bad_row_stops_with_advice_where_it_may_be_left_out():
    for labelled, end in ((True, r"empty \(data.on_bad_row=skip leaves it out\)$"), (False, "empty$")):
        with pytest.raises(UserError, match=end):
            bad("stop", labelled=labelled).add(1, ERROR)


def test_rows_left_out_of_a_split_are_said_and_those_to_be_answered_are_not(caplog):
    warning = f"data.train (a.csv): 1 of 2 rows are bad and were skipped; the first: {ERROR}"
    for labelled, said in ((False, ""), (True, warning)):
        rows = bad("skip", labelled=labelled)
        rows.add(1, ERROR)
        rows.say()
        assert rows.errors == {1: str(ERROR)} and "\n".join(caplog.messages) == said
