"""Pictures: written in the format that is named, and what they need is said."""

import re
import sys

import pytest
import torch

from memtx.usage import Reads
from memtx.usage.plots import plot_load, plot_text


def reads_of(chapters, length):
    shares = torch.rand(1, length, chapters).softmax(-1)
    none = shares[..., :0]
    return Reads(
        tokens_per_chapter=2,
        real=torch.ones(1, length).bool(),
        chapters=shares,
        tokens=none.long(),
        weights=none,
        watched=none,
    )


def test_pictures_are_written_in_the_format_of_their_name(tmp_path):
    plot_load({"a": reads_of(3, 4), "b": reads_of(3, 4)}, tmp_path / "new" / "load.png")
    assert (tmp_path / "new" / "load.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    words = ["$a_b$", "\n", "w</svg>", "\u6f22"]
    plot_text(reads_of(3, 4), tmp_path / "text.svg", tokens=words)
    text = (tmp_path / "text.svg").read_text(encoding="utf-8")
    assert text.startswith("<?xml")
    assert text.count("</svg>") == 1


def test_long_texts_and_many_chapters_are_drawn(tmp_path):
    plot_text(reads_of(300, 300), tmp_path / "text.png", tokens=["w"] * 300)
    assert (tmp_path / "text.png").stat().st_size > 1000


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    message = "plot_load: reads must be of readers of one number of chapters, got chapters=[2, 3];"
    with pytest.raises(ValueError, match=re.escape(message)):
        plot_load({"a": reads_of(3, 4), "b": reads_of(2, 4)}, path)
    with pytest.raises(ValueError, match=re.escape("got chapters=[];")):
        plot_load({}, path)
    message = "with a word for each token, got reads=(1, 4), tokens=3; take one row"
    with pytest.raises(ValueError, match=re.escape(message)):
        plot_text(reads_of(3, 4), path, tokens=["a"] * 3)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match=re.escape(f"got path='{tmp_path / 'file' / 'a.png'}'")):
        plot_load({"a": reads_of(3, 4)}, tmp_path / "file" / "a.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    message = "plots: matplotlib must be installed, got error='import of matplotlib.figure halted"
    with pytest.raises(ImportError, match=re.escape(message)):
        plot_load({"a": reads_of(3, 4)}, path)
