"""How sharply a memory is read, and what 100 facts then do to everything else.

    python -m benchmarks.evidence.reading DATA --cases plain unit --results benchmarks/results

DATA is a folder with models/stories260K, facts/counterfact-1k.json and text/tinystories.txt. Each
case takes minutes on a core; its record goes into evidence_reading.json, the others stay.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.evidence import small_llama as small
from benchmarks.records import Record
from memtx.data import EditFields, Fact, read_edits
from memtx.evaluate import editing, recall

FACTS = 100
FIELDS = EditFields(
    prompt="prompt",
    target_new="target_new",
    target_true="ground_truth",
    paraphrases="rephrase_prompt",
    neighbours="locality_prompt",
    neighbour_answers="locality_ground_truth",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A bank, how it is read, and how long it is taught."""

    bank: Callable[[], nn.Module]
    reading: Callable[[], small.Projections]
    layers: list[int]
    steps: int
    locality_weight: float


PLAIN = Case(
    bank=small.plain_bank,
    reading=small.plain_reading,
    layers=small.ALL_LAYERS,
    steps=150,
    locality_weight=2.0,
)
UNIT = replace(PLAIN, bank=lambda: small.bank_with_sinks(512), reading=small.unit_reading)
CASES: dict[str, Case] = {
    "plain": PLAIN,
    "sharp and sinks": replace(
        PLAIN, bank=lambda: small.bank_with_sinks(64), reading=small.sharp_reading
    ),
    "unit and sinks": UNIT,
    "unit and sinks, longer": replace(UNIT, steps=600, locality_weight=4.0),
    "unit and sinks, upper layers, longer": replace(
        UNIT, layers=small.UPPER_LAYERS, steps=600, locality_weight=4.0
    ),
}


def measured(folder: Path, *, name: str, seed: int) -> Record:
    """Teach a case and measure it."""
    case = CASES[name]
    torch.manual_seed(seed)
    base, tokenizer = small.load(folder)
    edits = read_edits(folder / "facts" / "counterfact-1k.json", FIELDS, num_edits=FACTS)
    facts = [Fact(prompt=edit.prompt, answer=edit.target_new) for edit in edits]
    documents, held_out = small.stories(folder)
    adapter = small.memory(base, bank=case.bank(), reading=case.reading, layers=case.layers)
    before = small.story_loss(base, tokenizer, held_out)
    started = time.perf_counter()
    small.teach(
        adapter,
        tokenizer=tokenizer,
        facts={"facts": facts},
        terms=[small.facts_term("facts")],
        documents=documents,
        steps=case.steps,
        locality_weight=case.locality_weight,
        rates=(small.LEARNING_RATE, small.LEARNING_RATE),
        callbacks=[],
        seed=seed,
    )
    seconds = time.perf_counter() - started
    after = small.story_loss(adapter, tokenizer, held_out)
    known = recall(model=adapter, tokenizer=tokenizer, facts=facts, batch_size=50)
    found = editing(model=adapter, tokenizer=tokenizer, edits=edits, batch_size=50, base=None)
    return {
        "method": name,
        "facts": FACTS,
        "seed": seed,
        "layers": case.layers,
        "steps": case.steps,
        "locality_weight": case.locality_weight,
        "recall": known.num_recalled / known.num_facts,
        "paraphrase": mean(found.generalisation.exact if found.generalisation else []),
        "locality": mean(found.specificity.unchanged if found.specificity else []),
        "background_loss": after,
        "background_loss_rise": after - before,
        "background_perplexity_rise": math.expm1(after - before),
        "trainable_parameters": sum(p.numel() for p in adapter.parameters() if p.requires_grad),
        "seconds": round(seconds, 1),
    }


def mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    for name in asked.cases:
        record = measured(asked.data, name=name, seed=asked.seed)
        small.add_record(asked.results / "evidence_reading.json", record, key="method")
        print(record, flush=True)


if __name__ == "__main__":
    main()
