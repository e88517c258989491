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
from memtx.train import WrittenTokens, tokens_of_chapters
from memtx.usage import delete_chapters

FACTS = 50
# Chapters of 64 memory tokens; the first is empty.
SIZE = 64
OF_A, OF_B = [1, 2, 3, 4], [5, 6, 7, 8]
STEPS_A, STEPS_B = 250, 250
LOCALITY_WEIGHT = 2.0


def share(model: Any, tokenizer: Any, facts: list[Fact]) -> float:
    found = recall(model=model, tokenizer=tokenizer, facts=facts, batch_size=50)
    return found.num_recalled / found.num_facts


def measured(folder: Path, *, seed: int) -> Record:
    """Teach A, then B, delete A from a copy and B from another, and ask for all."""
    torch.manual_seed(seed)
    base, tokenizer = small.load(folder)
    facts = read_facts(folder / "facts" / "counterfact-1k.json", num_facts=2 * FACTS)
    first, second = facts[:FACTS], facts[FACTS:]
    documents, held_out = small.stories(folder)
    bank = small.bank_with_sinks(SIZE)
    adapter = small.memory(base, bank=bank, reading=small.unit_reading)
    before = small.story_loss(base, tokenizer, held_out)
    started = time.perf_counter()
    for taught, chapters, steps, rate in (
        (first, OF_A, STEPS_A, small.LEARNING_RATE),
        (facts, OF_B, STEPS_B, 0.0),
    ):
        tokens = tokens_of_chapters(chapters, tokens_per_chapter=SIZE)
        small.teach(
            adapter,
            tokenizer=tokenizer,
            facts=taught,
            documents=documents,
            steps=steps,
            locality_weight=LOCALITY_WEIGHT,
            reading_rate=rate,
            callbacks=[WrittenTokens(bank=bank, tokens=tokens)],
            seed=seed,
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
