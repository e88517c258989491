"""Load a base and its memory from disk and print what the memory changed.

    python examples/report.py runs/tiny

The folder is one that `train_qwen_adapter.py` left.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from memtx import MemoryAdapter, load_adapter
from memtx.data import Fact
from memtx.evaluate import Recall, recall, text_loss

SHOWN = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def facts_of(record: dict[str, Any], name: str) -> list[Fact]:
    """Read a list of facts from a run's record."""
    return [Fact(prompt=fact["prompt"], answer=fact["answer"]) for fact in record[name]]


def measure(adapter: MemoryAdapter, tokenizer: Any, record: dict[str, Any]) -> dict[str, Any]:
    """Measure recall and loss with the memory as it is switched now."""
    found: dict[str, Any] = {}
    for name in ("new_facts", "old_facts"):
        facts = facts_of(record, name)
        if facts:
            found[name] = recall(model=adapter, tokenizer=tokenizer, facts=facts, batch_size=50)
    found["loss"] = text_loss(
        model=adapter,
        tokenizer=tokenizer,
        documents=record["held_out"],
        max_length=record["max_length"],
        batch_size=record["batch_size"],
    ).mean
    return found


def print_table(record: dict[str, Any], off: dict[str, Any], on: dict[str, Any]) -> None:
    """Print what was measured, memory off beside memory on."""

    def count(result: Recall) -> str:
        return f"{result.num_recalled} of {result.num_facts}"

    print(f"\n{'':<36}{'memory off':>16}{'memory on':>16}")
    print(f"{'new facts recalled (exact, greedy)':<36}{count(off['new_facts']):>16}", end="")
    print(f"{count(on['new_facts']):>16}")
    if "old_facts" in off:
        print(f"{'old facts (not shown in teaching)':<36}{count(off['old_facts']):>16}", end="")
        print(f"{count(on['old_facts']):>16}")
    rise = 100 * (on["loss"] / off["loss"] - 1)
    print(f"{'loss on held-out old text (nats)':<36}{off['loss']:>16.4f}{on['loss']:>16.4f}")
    print(f"{'  change':<36}{'':>16}{rise:>+15.2f}%")
    same = "yes" if off["loss"] == record["old_text_loss_before"] else "NO"
    print(f"{'  off equals before, bit for bit':<36}{same:>16}")


def print_sizes(record: dict[str, Any], adapter: MemoryAdapter, seconds: float) -> None:
    """Print sizes and times."""
    base = sum(p.numel() for p in adapter.base.parameters())
    memory = sum(p.numel() for p in adapter.memory_parameters())
    size = (Path(record["memory"]) / "memory.safetensors").stat().st_size / 2**20
    print(f"base {base:,} parameters, memory {memory:,} ({size:.1f} MiB on disk)")
    print(
        f"base ready in {record['seconds_for_base']:.0f} s, taught in "
        f"{record['seconds_of_teaching']:.0f} s by {record['processes']} process(es), "
        f"loaded and measured in {seconds:.0f} s; seed {record['seed']}"
    )


def print_questions(record: dict[str, Any], off: Recall, on: Recall) -> None:
    """Print a few questions with both answers."""
    print(f"\n{'question':<46}{'memory off':<20}{'memory on':<16}")
    for number, fact in enumerate(facts_of(record, "new_facts")[:SHOWN]):
        said = " ".join(off.answers[number].split())
        print(f"{fact.prompt[:44]:<46}{said[:18]:<20}{on.answers[number]:<16}")
    example = facts_of(record, "new_facts")[SHOWN].prompt
    relative = os.path.relpath(sys.executable)
    python = sys.executable if relative.startswith("..") else relative
    command = f"{python} examples/generate.py {record['base']}"
    print(f'\nAsk more:\n  {command} {record["memory"]} "{example}"')


def main() -> None:
    """Report on the folder named by the argument."""
    if len(sys.argv) != 2:
        sys.exit("report: takes one argument, a folder that train_qwen_adapter.py left.")
    path = Path(sys.argv[1]) / "run.json"
    if not path.is_file():
        sys.exit(f"report: there must be a run.json, got {path}; run train_qwen_adapter.py first.")
    record = json.loads(path.read_text(encoding="utf-8"))
    # Sums are cut among threads: bit-equal losses need as many as the teaching had.
    torch.set_num_threads(record["threads"])
    start = time.perf_counter()
    base: nn.Module = AutoModelForCausalLM.from_pretrained(record["base"], dtype="auto")
    base.to(DEVICE)
    tokenizer = AutoTokenizer.from_pretrained(record["base"])
    adapter = load_adapter(record["memory"], base=base)
    with adapter.disabled():
        off = measure(adapter, tokenizer, record)
    on = measure(adapter, tokenizer, record)
    print_table(record, off, on)
    print_sizes(record, adapter, time.perf_counter() - start)
    print_questions(record, off["new_facts"], on["new_facts"])


if __name__ == "__main__":
    main()
