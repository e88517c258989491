"""Writes docs/evidence.md and its plots from the committed results.

    PYTHONPATH=src:. python3 -m benchmarks.evidence.report

A figure that is not in a file of benchmarks/results is not on the page: where one is missing, the
page says that it was not measured.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.evidence import figures, sections
from benchmarks.records import Record

HEAD = """# Evidence

What a memory learned, and what that cost the rest, beside LoRA, prefix tuning and fine-tuning.
Written by `python -m benchmarks.evidence.report` from `benchmarks/results/evidence_*.json`; each
file names machine, versions and date. Means are over seeds, with the sample standard deviation
behind ±. What is not protected is run as its users run it; what is protected is held to the base by
the same term on the same background text, `LocalityLoss`. *Forgetting* is the rise of the loss on
held-out background text, in nats per token.

- `memory-dense`: a bank, read in the upper three fifths of the layers, as all memories here, in
  the way that attention reads usually.
- `memory-sharp`: scores are cosines times a learned scale; empty slots let a query read nothing.
- `memory-routed`: the same, of which each token reads four chapters of its own choice.
- `memory-sparse`: `memory-sharp` with twice the slots, of which the half is written that the facts
  read most and background text seldom.
- `lora`: on all seven projections of every layer, alpha twice the rank. `prefix`: peft's prefix
  tuning, without its MLP. `full`: every parameter of the base, which is more than the others train.

Memories, LoRA and prefix train as nearly the same number of parameters as their parts allow; the
column *trained* says how many. Every method is tried at as many learning rates as any other, and
takes as many steps on as many facts. Steps are not compiled: those of so small a base end sooner
than a compiler begins.
"""


def file_of(results: Path, name: str) -> dict[str, Any] | None:
    """Read a file of results, or None where it was not measured."""
    path = results / f"{name}.json"
    found: dict[str, Any] | None = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    )
    return found


def source(content: dict[str, Any], *, name: str) -> str:
    """Say where a file's numbers come from."""
    versions = ", ".join(f"{k} {v}" for k, v in content["versions"].items() if v is not None)
    return f"`{name}.json`: {content['machine']}; {versions}; {content['date'][:10]}."


def part(results: Path, *, name: str, title: str, docs: Path) -> Iterator[str]:
    """Write one file's section."""
    yield f"\n## {title}\n"
    content = file_of(results, name)
    if content is None:
        yield f"`benchmarks/results/{name}.json`: not measured."
        return
    yield source(content, name=name)
    records: list[Record] = [r for r in content["records"] if "failed" not in r]
    yield from {
        "evidence_base": sections.base,
        "evidence_injection": sections.injection,
        "evidence_continual": sections.continual,
        "evidence_chapters": sections.chapters,
    }[name](records)
    yield from pictures(name, records=records, docs=docs)


def pictures(name: str, *, records: list[Record], docs: Path) -> Iterator[str]:
    """Draw a section's plots, and name them."""
    if name == "evidence_injection":
        taught = [r for r in records if r["stage"] == "teach" and r["source"] == "counterfact"]
        for base, of_base in figures.grouped(taught, by=lambda r: r["base"]).items():
            facts = max(r["facts"] for r in of_base)
            path = docs / f"evidence-injection-{base}.png"
            figures.recall_against_forgetting(
                [r for r in of_base if r["facts"] == facts],
                title=f"{facts} facts of CounterFact, {sections.BASES[base]}",
                path=path,
            )
            yield f"\n![Recall against forgetting, {sections.BASES[base]}]({path.name})"
    if name == "evidence_continual":
        for base, of_base in figures.grouped(records, by=lambda r: r["base"]).items():
            path = docs / f"evidence-continual-{base}.png"
            figures.forgetting_over_batches(of_base, title=sections.BASES[base], path=path)
            yield f"\n![Recall over batches, {sections.BASES[base]}]({path.name})"
    if name == "evidence_chapters":
        path = docs / "evidence-chapters.png"
        figures.loss_against_flops(
            sections.best_rates(records), title="Loss on held-out text, from scratch", path=path
        )
        yield f"\n![Held-out loss against FLOPs]({path.name})"


TITLES = {
    "evidence_base": "The base",
    "evidence_injection": "Facts, all at once",
    "evidence_continual": "Facts, batch after batch",
    "evidence_chapters": "Chapters from scratch",
}


def page(results: Path, *, docs: Path) -> str:
    """Give the whole page, and draw its plots."""
    lines = [HEAD.rstrip()]
    for name, title in TITLES.items():
        lines += part(results, name=name, title=title, docs=docs)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    asked = parser.parse_args()
    asked.docs.mkdir(parents=True, exist_ok=True)
    path = asked.docs / "evidence.md"
    path.write_text(page(asked.results, docs=asked.docs), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
