"""The report of a run: a typed record, and its text and page."""
