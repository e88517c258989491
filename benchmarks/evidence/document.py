"""`memtx learn` on texts that bases have never read.

    python -m benchmarks.evidence.document DATA --results benchmarks/results
    python -m benchmarks.evidence.document DATA --cases "section of the manual" \\
        --demo runs/tiny/base --results benchmarks/results

A scene of Shakespeare for the small Llama, which has read stories alone: the first 200 lines of
text/tinyshakespeare.txt; cases differ in what the loss is made of. A section of Python's manual for
the base of `make demo`, which has read nine tenths of that manual, but not this section. DATA is as
of benchmarks.evidence.reading.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

from benchmarks.evidence import small_llama as small
from benchmarks.records import Record
from factories.tiny_base import manual
from memtx import cli

LINES = 200
SECTION = "section of the manual"
CASES: dict[str, list[str]] = {
    "recipe": [],
    "without distillation": ["--distillation-weight", "0"],
    "no background given": [],
    "no background given, held closer": ["--locality-weight", "12"],
    SECTION: ["--separator", "\f"],
}
# Of the topics that the demo's base has not read: "Mutable Sequence Types", the longest.
TOPIC = 1


def texts(folder: Path, *, name: str) -> tuple[str, str | None]:
    """Give the text that is learned, and that to stay true to."""
    if name == SECTION:
        # As factories.qwen_adapter has it, with the seed of the demo.
        read, unread = manual(seed=0)
        return unread[TOPIC], "\f".join(read)
    lines = (folder / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8").splitlines()
    stories = (folder / "text" / "tinystories.txt").read_text(encoding="utf-8")
    return "\n".join(lines[:LINES]), None if name.startswith("no background given") else stories


def measured(folder: Path, *, name: str, demo: Path | None) -> Record:
    """Run the command, and keep what it reports."""
    base = demo if name == SECTION else folder / "models" / "stories260K"
    learned, background = texts(folder, name=name)
    with tempfile.TemporaryDirectory() as work:
        text, other = Path(work) / "text.txt", Path(work) / "background.txt"
        text.write_text(learned, encoding="utf-8")
        given = ["--base", base, "--text", text, "--json"]
        given += ["--output", Path(work) / "memory", *CASES[name]]
        if background is not None:
            other.write_text(background, encoding="utf-8")
            given += ["--background", other]
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = cli.run(["learn", *map(str, given)])
    if code:
        raise RuntimeError(f"memtx learn ended with {code}")
    told = json.loads(out.getvalue())
    passages = told["after"]["passages"]
    return {
        "case": name,
        "lesson": told["lesson"],
        "text_loss": [told["before"]["text_loss"], told["after"]["text_loss"]],
        "text_loss_fall": told["text_loss_fall"],
        "text_accuracy": [told["before"]["text_accuracy"], told["after"]["text_accuracy"]],
        "background_loss": [told["before"]["background_loss"], told["after"]["background_loss"]],
        "background_loss_rise": told["background_loss_rise"],
        "tokens_right": sum(each["correct"] for each in passages),
        "tokens_asked": sum(each["num_tokens"] for each in passages),
        "seconds": told["seconds"],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES)[:4])
    parser.add_argument("--demo", type=Path, metavar="BASE", help="the base of `make demo`")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    if SECTION in asked.cases and asked.demo is None:
        parser.error(f"--demo must name the base of `make demo` for the case {SECTION!r}")
    for name in asked.cases:
        record = measured(asked.data, name=name, demo=asked.demo)
        small.add_record(asked.results / "evidence_document.json", record, key="case")
        print(record, flush=True)


if __name__ == "__main__":
    main()
