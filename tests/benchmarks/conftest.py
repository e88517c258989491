"""What runs benchmarks as scripts is slow; the page of their results is not."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
QUICK = {"test_performance.py"}


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents and item.path.name not in QUICK:
            item.add_marker(pytest.mark.slow)
