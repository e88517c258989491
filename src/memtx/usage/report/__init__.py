"""One HTML file that shows what texts read in a memory, and what memory changed."""

from memtx.usage.report.gather import inspect_texts, summary
from memtx.usage.report.page import render, write_report

__all__ = ["inspect_texts", "render", "summary", "write_report"]
