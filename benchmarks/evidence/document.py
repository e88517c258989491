"""`memtx learn` on a scene of Shakespeare, for the small Llama that has read stories alone.

    python -m benchmarks.evidence.document DATA --results benchmarks/results

The scene is the first 200 lines of text/tinyshakespeare.txt. Cases differ in what the loss is made
of; DATA is as of benchmarks.evidence.reading.
"""

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

from benchmarks.evidence import small_llama as small
from benchmarks.records import Record
from memtx import cli

LINES = 200
CASES: dict[str, list[str]] = {
    "recipe": [],
    "without distillation": ["--distillation-weight", "0"],
    "no background given": [],
}


def measured(folder: Path, *, name: str) -> Record:
    """Run the command, and keep what it reports."""
    lines = (folder / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8").splitlines()
    with tempfile.TemporaryDirectory() as work:
        text = Path(work) / "scene.txt"
        text.write_text("\n".join(lines[:LINES]), encoding="utf-8")
        given = ["--base", folder / "models" / "stories260K", "--text", text, "--json"]
        given += ["--output", Path(work) / "memory", *CASES[name]]
        if name != "no background given":
            given += ["--background", folder / "text" / "tinystories.txt"]
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    for name in asked.cases:
        record = measured(asked.data, name=name)
        small.add_record(asked.results / "evidence_document.json", record, key="case")
        print(record, flush=True)


if __name__ == "__main__":
    main()
