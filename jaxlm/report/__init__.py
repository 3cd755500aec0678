"""report.html: sections, charts, and the page."""
