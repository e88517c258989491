"""Facts written into chapters of their own, and what is left when these are deleted.

    python -m benchmarks.evidence.deletion DATA --results benchmarks/results

Facts A are taught with all that reads the bank, but write chapters of A alone. Then facts B are
written into chapters of B alone; everything else is frozen, and A is rehearsed. Deleting the
chapters of A is no training. DATA is as of benchmarks.evidence.reading.
"""

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence import small_llama as small
from benchmarks.records import Record
from memtx.data import Fact, read_facts
from memtx.evaluate import recall
from memtx.train import WithoutTokens, WrittenTokens, tokens_of_chapters
from memtx.usage import delete_chapters

FACTS = 50
# Chapters of 64 memory tokens; the first is empty.
SIZE = 64
OF_A, OF_B = [1, 2, 3], [4, 5, 6, 7, 8]
STEPS_A, STEPS_B = 200, 500
# Of the bank, and of what reads it: which is frozen once A is learned.
RATES_A, RATES_B = (3e-3, 3e-3), (2e-2, 0.0)
LOCALITY_WEIGHT = 2.0


def share(model: Any, tokenizer: Any, facts: list[Fact]) -> float:
    found = recall(model=model, tokenizer=tokenizer, facts=facts, batch_size=50)
    return found.num_recalled / found.num_facts


def measured(folder: Path, *, seed: int) -> Record:
    """Teach A, then B, delete A from a copy and B from another, and ask for all."""
    torch.manual_seed(seed)
    base, tokenizer = small.load(folder)
    facts = read_facts(folder / "facts" / "counterfact-1k.json")
    # No answer of A is one of B: else what is left of B would answer for A.
    first, answers = facts[:FACTS], {fact.answer for fact in facts[:FACTS]}
    second = [fact for fact in facts[FACTS:] if fact.answer not in answers][:FACTS]
    documents, held_out = small.stories(folder)
    bank = small.bank_with_sinks(SIZE)
    adapter = small.memory(base, bank=bank, reading=small.unit_reading, layers=small.ALL_LAYERS)
    before = small.story_loss(base, tokenizer, held_out)
    started = time.perf_counter()
    of_a, of_b = (tokens_of_chapters(each, tokens_per_chapter=SIZE) for each in (OF_A, OF_B))
    settings: dict[str, Any] = {
        "tokenizer": tokenizer,
        "documents": documents,
        "locality_weight": LOCALITY_WEIGHT,
        "seed": seed,
    }
    # A is learned as if the chapters of B were not there yet.
    small.teach(
        adapter,
        facts={"a": first},
        terms=[WithoutTokens(term=small.facts_term("a"), bank=bank, tokens=of_b)],
        steps=STEPS_A,
        rates=RATES_A,
        callbacks=[WrittenTokens(bank=bank, tokens=of_a)],
        **settings,
    )
    # B is learned with the chapters of A, and without them: it must not rest on what may go.
    small.teach(
        adapter,
        facts={"a": first, "b": second, "b alone": second},
        terms=[
            small.facts_term("a"),
            small.facts_term("b"),
            WithoutTokens(term=small.facts_term("b alone"), bank=bank, tokens=of_a),
        ],
        steps=STEPS_B,
        rates=RATES_B,
        callbacks=[WrittenTokens(bank=bank, tokens=of_b)],
        **settings,
    )
    record: Record = {"case": f"deletion, seed {seed}", "facts": FACTS, "seed": seed}
    record["seconds"] = round(time.perf_counter() - started, 1)
    rise = small.story_loss(adapter, tokenizer, held_out) - before
    record["background_perplexity_rise"] = math.expm1(rise)
    for name, gone in (("both", []), ("without A", OF_A), ("without B", OF_B)):
        model = copy.deepcopy(adapter)
        if gone:
            delete_chapters(model, bank=model.banks[0], chapters=gone, tokens_per_chapter=SIZE)
        record[f"{name}: recall of A"] = share(model, tokenizer, first)
        record[f"{name}: recall of B"] = share(model, tokenizer, second)
    return record


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    record = measured(asked.data, seed=asked.seed)
    small.add_record(asked.results / "evidence_deletion.json", record, key="case")
    print(record, flush=True)


if __name__ == "__main__":
    main()
