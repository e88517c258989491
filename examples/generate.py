"""Ask a saved memory questions, with the answer of the bare base beside each.

    python examples/generate.py BASE MEMORY "The capital of Kikovek is" "The ruler of ..."

BASE is a model folder or hub id, MEMORY a folder that `memtx.save` wrote. Without questions they
are read from standard input, one a line.
"""

import sys
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from memtx import MemoryAdapter, load_adapter
from memtx.generate import greedy, padding_token

MAX_NEW_TOKENS = 24
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def answer(adapter: MemoryAdapter, tokenizer: Any, question: str) -> str:
    """Continue a question greedily with the memory as it is switched now."""
    (tokens,) = greedy(
        model=adapter,
        prompts=[tokenizer(question)["input_ids"]],
        max_new_tokens=MAX_NEW_TOKENS,
        batch_size=1,
        pad_token_id=padding_token(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
    return " ".join(tokenizer.decode(tokens).split())


def main() -> None:
    """Answer the questions of the command line, or of standard input."""
    if len(sys.argv) < 3:
        sys.exit("generate: takes BASE and MEMORY, and then questions.")
    try:
        base: nn.Module = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
        adapter = load_adapter(sys.argv[2], base=base.to(DEVICE))
    except (OSError, ValueError) as error:
        # transformers tells in several lines, and not always of which model.
        sys.exit(f"generate {sys.argv[1]} {sys.argv[2]}: {' '.join(str(error).split())}")
    for line in sys.argv[3:] or sys.stdin:
        question = line.strip()
        if not question:
            continue
        with adapter.disabled():
            off = answer(adapter, tokenizer, question)
        print(
            f"{question}\n  memory off: {off}\n  memory on:  {answer(adapter, tokenizer, question)}"
        )


if __name__ == "__main__":
    main()
