"""Tables of docs/learning.md, from the records that the scripts beside it write.

python -m benchmarks.evidence.tables
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.records import Record

RESULTS = Path(__file__).parents[1] / "results"


def records(name: str) -> list[Record]:
    """Give the records of a file, or none where it is not there."""
    path = RESULTS / f"{name}.json"
    found: list[Record] = []
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))["records"]
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Write a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _place(name: str) -> int:
    """Give where a reading or a document stands among those that the scripts name."""
    from benchmarks.evidence import document, reading

    return [*reading.CASES, *document.CASES].index(name)


def reading() -> list[str]:
    """How sharply a memory is read, and what 100 facts do then."""
    head = [
        "reading",
        "layers",
        "steps",
        "facts recalled",
        "perplexity on stories",
        "paraphrases",
        "neighbours kept",
        "trained",
    ]
    return table(
        head,
        [
            [
                each["method"],
                " ".join(map(str, each["layers"])),
                str(each["steps"]),
                f"{each['recall']:.0%}",
                f"{each['background_perplexity_rise']:+.2%}",
                f"{each['paraphrase']:.0%}",
                f"{each['locality']:.0%}",
                f"{each['trainable_parameters']:,}",
            ]
            for each in sorted(records("evidence_reading"), key=lambda each: _place(each["method"]))
        ],
    )


def deletion() -> list[str]:
    """What is left of facts when chapters are deleted."""
    rows = [
        [name, f"{each[f'{name}: recall of A']:.0%}", f"{each[f'{name}: recall of B']:.0%}"]
        for each in records("evidence_deletion")
        for name in ("both", "without A", "without B")
    ]
    return table(["chapters", "recall of A", "recall of B"], rows)


def document() -> list[str]:
    """What `memtx learn` makes of a scene of Shakespeare."""
    rows = [
        [
            each["case"],
            f"{each['text_loss'][0]:.3f} to {each['text_loss'][1]:.3f} "
            f"({-each['text_loss_fall']:+.1%})",
            f"{each['text_accuracy'][0]:.0%} to {each['text_accuracy'][1]:.0%}",
            f"{each['background_loss_rise']:+.1%}",
        ]
        for each in sorted(records("evidence_document"), key=lambda each: _place(each["case"]))
    ]
    return table(["case", "loss on the text", "tokens foretold", "loss on background"], rows)


TABLES: dict[str, Callable[[], list[str]]] = {
    "reading": reading,
    "deletion": deletion,
    "document": document,
}


def main() -> None:
    """Print them."""
    for name, made in TABLES.items():
        print(f"{name}\n", *made(), "", sep="\n")


if __name__ == "__main__":
    main()
