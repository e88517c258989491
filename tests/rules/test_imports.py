"""The rules about imports, on samples that break them and samples that do not."""

import pytest

from tests.rules.imports import heavy_imports, imports_point_down
from tests.rules.source import Source


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/memtx/memory/bank.py", "from memtx.blocks import A"),
        ("src/memtx/memory/bank.py", "import memtx.models.decoder"),
        ("src/memtx/memory/bank.py", "from memtx.transformer.linear import A"),
        ("src/memtx/memory/bank.py", "from ..transformer import A"),
        ("src/memtx/memory/bank.py", "from .. import transformer"),
        ("src/memtx/memory/bank.py", "def f():\n    from memtx.models import A"),
        ("src/memtx/memory/bank.py", "from memtx import A"),
        ("src/memtx/memory/bank.py", "import memtx"),
        ("src/memtx/memory/bank.py", "import factories.parts"),
        ("src/memtx/memory/bank.py", "from memtx.surprise import A"),
        ("src/memtx/surprise.py", "x = 1"),
        ("src/memtx/train/loop.py", "from memtx.cli import A"),
        ("factories/parts.py", "from examples.train import A"),
        ("examples/train.py", "from tests.rules import A"),
        ("benchmarks/speed.py", "from tests.rules import A"),
    ],
)
def test_upward_is_reported(path, text):
    (found,) = imports_point_down(Source(path=path, text=text))
    assert found.startswith(f"{path}:")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("src/memtx/__init__.py", "from memtx.models import A\nfrom memtx.ops import B"),
        ("src/memtx/memory/bank.py", "import torch\nfrom memtx.checks import A"),
        ("src/memtx/memory/__init__.py", "from memtx.memory.bank import A"),
        ("src/memtx/memory/bank.py", "from .router import A\nfrom . import mixing"),
        ("src/memtx/blocks.py", "from .memory import A"),
        ("src/memtx/cli/train.py", "from memtx.train import A"),
        ("factories/parts.py", "import memtx\nfrom memtx import A\nfrom factories.other import B"),
        ("examples/train.py", "from factories.parts import A\nfrom memtx.train import B"),
        ("benchmarks/speed.py", "from factories.parts import A"),
        ("tests/memory/test_bank.py", "from tests.rules import A\nfrom examples.train import B"),
    ],
)
def test_downward_passes(path, text):
    assert imports_point_down(Source(path=path, text=text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import transformers",
        "from transformers.cache_utils import Cache",
        "try:\n    import peft\nexcept ImportError:\n    x = 1",
        "if True:\n    import datasets",
        "class A:\n    import rich",
    ],
)
def test_heavy_import_is_reported(text):
    (found,) = heavy_imports([Source(path="src/memtx/a.py", text=text)], {})
    assert "not listed" in found


@pytest.mark.parametrize(
    "text",
    [
        "import torch",
        "def f():\n    import transformers",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from transformers import A",
    ],
)
def test_light_import_passes(text):
    assert heavy_imports([Source(path="src/memtx/a.py", text=text)], {}) == []


def test_listed_heavy_import_passes_and_is_reported_when_gone():
    table = {"src/memtx/a.py": ["peft"]}
    assert heavy_imports([Source(path="src/memtx/a.py", text="import peft")], table) == []
    assert len(heavy_imports([Source(path="src/memtx/a.py", text="")], table)) == 1
