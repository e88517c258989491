"""A bank larger than what its process ever holds; run by `test_mapped.py` in a process of its own.

python -m tests.memory.large_bank FOLDER
"""

import resource
import shutil
import sys
from pathlib import Path

import torch

from memtx import (
    ChapterRouter,
    JointSoftmax,
    MappedMemoryBank,
    MemoryBlock,
    MemoryTransformer,
    Normal,
    ReducedDimMemoryBank,
    Residual,
    RMSNorm,
    RollingRouting,
    RoutedMemoryCrossAttention,
    TiedHead,
    TokenEmbedding,
    load,
    save,
    write_rows,
)
from tests.parts import linear, think

NUM, RANK, CHAPTER, PIECE, DIM = 2**20, 192, 64, 2**13, 16
MIB = 2**20


def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def outline():
    with torch.device("meta"):
        bank = ReducedDimMemoryBank(num_memory_tokens=NUM, rank=RANK, init=Normal(std=1.0))
        return bank.to(torch.bfloat16)


def model_with(bank):
    def sizes(wide, narrow):
        return linear(wide, narrow).to(torch.bfloat16)

    chapters = NUM // CHAPTER
    router = ChapterRouter(
        num_chapters=chapters,
        num_shared_chapters=0,
        top_k=4,
        routed_scale=1.0,
        scorer=linear(DIM, chapters),
        strategy=RollingRouting(window=4),
        losses=[],
    )
    read = RoutedMemoryCrossAttention(
        bank=bank,
        router=router,
        mixing=JointSoftmax(),
        q_proj=sizes(DIM, RANK),
        k_proj=sizes(RANK, RANK),
        v_proj=sizes(RANK, RANK),
        o_proj=sizes(RANK, DIM),
        num_heads=4,
        num_kv_heads=4,
        dropout=0.0,
    )
    embedding = TokenEmbedding(vocab_size=64, dim=DIM, init=Normal(std=1.0))
    return MemoryTransformer(
        embedding=embedding.to(torch.bfloat16),
        banks=[bank],
        layers=[
            MemoryBlock(
                sublayers=[
                    Residual(norm=RMSNorm(dim=DIM, eps=1e-5).to(torch.bfloat16), sublayer=read)
                ]
            )
        ],
        norm=RMSNorm(dim=DIM, eps=1e-5).to(torch.bfloat16),
        head=TiedHead(embedding=embedding),
    ).eval()


def main(folder):
    torch.manual_seed(0)
    path = folder / "bank.safetensors"
    rows = torch.randn(PIECE, RANK, dtype=torch.bfloat16)
    with torch.no_grad():  # what the libraries take is no part of it
        embedding = TokenEmbedding(vocab_size=64, dim=DIM, init=Normal(std=1.0))
        bare = MemoryTransformer(
            embedding=embedding,
            banks=[],
            layers=[MemoryBlock(sublayers=[think(DIM)])],
            norm=RMSNorm(dim=DIM, eps=1e-5),
            head=TiedHead(embedding=embedding),
        )
        save(bare, folder / "model")
        load(folder / "model")(input_ids=torch.ones(1, 4, dtype=torch.long))
    before = peak_mib()
    try:
        sha256 = write_rows(
            stored=outline(), chunks=(rows + n / 128 for n in range(NUM // PIECE)), path=path
        )
        size = path.stat().st_size / MIB
        bank = MappedMemoryBank.from_file(
            path=path,
            sha256=sha256,
            stored=outline(),
            tokens_per_chapter=CHAPTER,
            num_resident_chapters=64,
        )
        last = bank.rows(torch.tensor([NUM - 1]))
        assert torch.equal(last, rows[-1:] + (NUM // PIECE - 1) / 128)
        model = model_with(bank)
        ids = torch.randint(0, 64, (2, 32))
        with torch.no_grad():
            wanted = model(input_ids=ids).logits
            save(model, folder / "model")
            path.unlink()
            again = load(folder / "model").eval()
            assert again.banks[0].in_file
            assert torch.equal(again(input_ids=ids).logits, wanted)
            for start in range(0, NUM, PIECE):  # all of it, and nothing more is kept
                again.banks[0].rows(torch.arange(start, start + PIECE))
        growth = peak_mib() - before
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(folder / "model", ignore_errors=True)
    print(f"grew by {growth:.0f} MiB of {size:.0f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
