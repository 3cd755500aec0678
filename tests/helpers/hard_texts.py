"""For tests: texts that are hard to tokenize."""

from __future__ import annotations

TRICKY = [
    "",
    " ",
    "hello world",
    " leading and trailing ",
    "two  spaces   three\t\ttabs",
    "café naïve Straße a\u0301",
    "今天天氣很好，去公园。",
    "🙂 👨‍👩‍👧 emoji",
    "def f(x):\n    if x:\n\n        return {'a': [1, 22, 333]}\n",
    "carriage\r\nreturn",
    "ﬁ ① ½ \u00a0nbsp\u3000wide \u2028 \u200b",
    "ЦИТАТА 123456",
    "x" * 300,
    "it's they'll WE'VE do n't , spaced . out ?",
]
