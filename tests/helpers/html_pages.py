"""Reads an HTML page back: its elements, attributes, text and tables."""

from __future__ import annotations

from html.parser import HTMLParser

from jaxlm.report.report import write_report

VOID = {"meta", "br", "hr", "img", "link", "input", "circle", "line", "polyline"}


class Page(HTMLParser):
    """Elements, attributes and tables of a page; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.tables, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open[-3:]):
            self.tables[-1][-1][-1] += data

    def table(self, *header):
        """The rows of the one table that has a row starting with these cells, as stripped text."""
        rows = [[[" ".join(cell.split()) for cell in row] for row in table] for table in self.tables]
        (found,) = [table for table in rows if any(tuple(row[: len(header)]) == header for row in table)]
        return found


def page_of(run_dir):
    """The report of a run directory, written and read back."""
    return Page(write_report(run_dir).read_text("utf-8"))
