"""Banks of all kinds, and the same ones with their rows elsewhere."""

import torch

from memtx import (
    FactorizedMemoryBank,
    MappedMemoryBank,
    Normal,
    OffloadedMemoryBank,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    build,
    describe,
    write_bank,
)
from tests.parts import bank_of

NUM, CHAPTER = 48, 4


def quantized(bits):
    bank = bank_of(NUM, 32)
    return QuantizedMemoryBank.from_bank(bank=bank, bits=bits, block_size=64)


BANKS = {
    "standard": lambda: bank_of(NUM, 6),
    "standard in bfloat16": lambda: bank_of(NUM, 6).to(torch.bfloat16),
    "reduced": lambda: ReducedDimMemoryBank(num_memory_tokens=NUM, rank=3, init=Normal(std=1.0)),
    "factorized": lambda: FactorizedMemoryBank(
        num_memory_tokens=NUM, dim=6, rank=2, init=Normal(std=1.0)
    ),
    "8 bits": lambda: quantized(8),
    "4 bits": lambda: quantized(4),
    "8 bits in bfloat16": lambda: QuantizedMemoryBank.from_bank(
        bank=bank_of(NUM, 32).to(torch.bfloat16), bits=8, block_size=128
    ),
}


def outline(bank):
    """A bank of the same sizes without numbers."""
    with torch.device("meta"):
        return build(describe(bank))


def offloaded(bank, places):
    return OffloadedMemoryBank(
        stored=bank, tokens_per_chapter=CHAPTER, num_resident_chapters=places
    )


def mapped(bank, places, folder):
    path = folder / "bank.safetensors"
    sha256 = write_bank(bank=bank, path=path)
    return MappedMemoryBank.from_file(
        path=path,
        sha256=sha256,
        stored=outline(bank),
        tokens_per_chapter=CHAPTER,
        num_resident_chapters=places,
    )
