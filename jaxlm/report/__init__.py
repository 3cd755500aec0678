"""report.html: sections, charts, curves, and the page."""
