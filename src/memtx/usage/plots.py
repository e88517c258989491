"""Pictures of what was read, by matplotlib (the extra `plot`)."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from memtx.checks import refusal, require, unwritable
from memtx.usage.reads import Reads

_INCH = 0.28  # of a row
_DPI = 150


def plot_load(reads: Mapping[str, Reads], path: str | os.PathLike[str]) -> None:
    """Draw what share of all reading each chapter got, a row for each reader.

    Args:
        reads: by name of the reader, as of a `Passage`.
        path: the file to write; its ending names the format, such as `.png` or `.svg`.

    Raises:
        ValueError: if there are no reads, or the banks have other numbers of chapters.
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    counts = {each.num_chapters for each in reads.values()}
    require(
        ok=len(counts) == 1,
        owner="plot_load",
        rule="reads must be of readers of one number of chapters",
        got={"chapters": sorted(counts)},
        remedy="draw readers of one bank at a time",
    )
    rows = [each.load.tolist() for each in reads.values()]
    _draw(rows, path, across="chapter", labels=list(reads), ticks=None, name="share of reading")


def plot_text(reads: Reads, path: str | os.PathLike[str], *, tokens: Sequence[str]) -> None:
    """Draw with what weight each token of a text read each chapter, a row for each chapter.

    Args:
        reads: what one text read at one reader.
        path: the file to write; its ending names the format.
        tokens: the tokens as words.

    Raises:
        ValueError: if the reads are of several texts, or the tokens are not theirs.
        ImportError: if matplotlib is not installed.
        OSError: if the file cannot be written.
    """
    require(
        ok=reads.real.shape == (1, len(tokens)),
        owner="plot_text",
        rule="reads must be of one text, with a word for each token",
        got={"reads": tuple(reads.real.shape), "tokens": len(tokens)},
        remedy="take one row with reads.row(index), and name all of its tokens",
    )
    weights: Tensor = reads.chapters[0].T
    labels = [str(chapter) for chapter in range(reads.num_chapters)]
    _draw(weights.tolist(), path, across="", labels=labels, ticks=tokens, name="weight")


def _draw(
    rows: list[list[float]],
    path: str | os.PathLike[str],
    *,
    across: str,
    labels: Sequence[str],
    ticks: Sequence[str] | None,
    name: str,
) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        message = refusal(
            owner="plots",
            rule="matplotlib must be installed",
            got={"error": str(error)},
            remedy="pip install 'memtx[plot]'",
        )
        raise ImportError(message) from error
    columns = len(rows[0])
    width = min(40.0, 3.0 + 0.16 * columns)
    # Without pyplot: nothing is kept, and no window opens.
    figure = Figure(figsize=(width, 1.2 + _INCH * min(len(rows), 100)), layout="constrained")
    axes: Any = figure.subplots()
    axes.set_ylabel("" if ticks is None else "chapter")
    image = axes.imshow(rows, aspect="auto", interpolation="nearest", vmin=0.0, cmap="viridis")
    axes.set_yticks(range(len(labels)), [_plain(label) for label in labels], fontsize=7)
    axes.set_xlabel(across)
    if ticks is not None and columns <= 200:
        axes.set_xticks(range(columns), [_plain(tick) for tick in ticks], rotation=90, fontsize=6)
    figure.colorbar(image, ax=axes, label=name)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # A letter that the font lacks is drawn as a box.
            warnings.filterwarnings("ignore", message="Glyph")
            figure.savefig(target, dpi=_DPI)
    except OSError as error:
        raise unwritable(owner="plots", path=path, error=error) from error


def _plain(text: str) -> str:
    """Give a word so that it is drawn as it is: no mathematics, and printable."""
    visible = "".join(each if each.isprintable() else "·" for each in text.strip())
    return visible.replace("$", r"\$")
