"""Packed rows in models: no document sees another, in attention, routing and loss."""

import random

import pytest
import torch

from memtx import (
    HybridRouting,
    JointSoftmax,
    MemoryTransformer,
    PromptRouting,
    RollingRouting,
    TokenRouting,
)
from memtx.adapters import halves_of
from memtx.data import (
    Documents,
    FullRows,
    RefuseLong,
    ShuffleBuffer,
    StreamBatches,
    Streamed,
    TokensEncoder,
    WholeDocuments,
)
from memtx.train import LocalityLoss
from tests.data import streams
from tests.models import stacks
from tests.parts import randomize
from tests.train import tiny

LENGTH = 24


def stack(strategy):
    if strategy is None:
        model = MemoryTransformer(**stacks.dense_arguments())
    else:
        model = MemoryTransformer(**stacks.routed_arguments(strategy, JointSoftmax()))
    randomize(model.parameters())
    return model.eval()


def adapter(strategy):
    base = tiny.base(seed=0)
    if strategy is not None:
        return tiny.routed_adapter(model=base, strategy=strategy).eval()
    model = tiny.adapter(model=base)
    tiny.perturb(model)
    return model.eval()


MODELS = {
    "dense stack": lambda: stack(None),
    "rolling stack": lambda: stack(RollingRouting(window=3)),
    "token stack": lambda: stack(TokenRouting()),
    "prompt stack": lambda: stack(PromptRouting()),
    "hybrid stack": lambda: stack(HybridRouting(window=3)),
    "a Hugging Face model": lambda: tiny.base(seed=0),
    "dense adapter": lambda: adapter(None),
    "rolling adapter": lambda: adapter(RollingRouting(window=3)),
    "prompt adapter": lambda: adapter(PromptRouting()),
}


def rows_of(count):
    """Random documents of a small vocabulary; some tokens have no label."""
    chance = random.Random(1)
    rows = []
    for _ in range(count):
        ids = [chance.randrange(1, stacks.VOCABULARY) for _ in range(chance.randint(2, 14))]
        labels = [token if chance.random() < 0.7 else -100 for token in ids]
        rows.append({"ids": ids, "labels": labels})
    return rows


def batches(packing):
    documents = Documents(
        source=Streamed(dataset=rows_of(60)),
        encoder=TokensEncoder(input_ids="ids", labels="labels"),
        limit=RefuseLong(length=LENGTH),
        num_workers=0,
        chunk=8,
    )
    buffer = ShuffleBuffer(documents=documents, size=20, seed=0)
    return StreamBatches(documents=buffer, packing=packing, batch_size=3, pad_token_id=0)


PACKINGS = {
    "full": lambda: FullRows(length=LENGTH),
    "whole": lambda: WholeDocuments(length=LENGTH, num_open=2),
}


def spans(batch, row):
    """Where the documents of a row begin and end."""
    tokens = int(batch["attention_mask"][row].sum())
    positions = batch["position_ids"][row, :tokens].tolist()
    starts = [at for at, position in enumerate(positions) if position == 0]
    return list(zip(starts, [*starts[1:], tokens], strict=True))


def hidden(model, batch):
    return halves_of(model).hidden_states(**batch)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_no_document_sees_another(name, packing):
    model, batch = MODELS[name](), batches(PACKINGS[packing]()).next_batch(rank=0, world_size=1)
    before = hidden(model, batch)
    for row in range(3):
        assert len(spans(batch, row)) > 1
        for start, stop in spans(batch, row):
            changed = {key: value.clone() for key, value in batch.items()}
            ids = changed["input_ids"][row, start:stop]
            ids.copy_((ids + 7) % (stacks.VOCABULARY - 1) + 1)
            after = hidden(model, changed)
            own = torch.zeros(3, LENGTH, dtype=torch.bool)
            own[row, start:stop] = True
            others = ~own & batch["attention_mask"].bool()
            torch.testing.assert_close(after[others], before[others], rtol=0.0, atol=1e-6)
            assert (after[own] - before[own]).abs().max() > 1e-3


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_a_packed_batch_has_the_loss_of_its_documents(name, packing):
    model, batch = MODELS[name](), batches(PACKINGS[packing]()).next_batch(rank=0, world_size=1)
    term = tiny.facts_term()
    count, alone = 0, torch.zeros(())
    for row in range(3):
        for start, stop in spans(batch, row):
            one = {key: value[row : row + 1, start:stop] for key, value in batch.items()}
            one.pop("position_ids")
            assert one["labels"][0, 0] == -100
            count += int((one["labels"] != -100).sum())
            if stop - start > 1:
                alone = alone + term.totals(model, one)[0]
    torch.testing.assert_close(term.totals(model, batch)[0], alone, rtol=1e-5, atol=1e-4)
    assert int(term.counts(model, batch)[0]) == count


@torch.no_grad()
def test_the_base_is_held_to_what_it_says_of_each_document():
    model = adapter(None)
    batch = batches(FullRows(length=LENGTH)).next_batch(rank=0, world_size=1)
    term = LocalityLoss(name="locality", stream="text", weight=1.0, chunk=16)
    alone = torch.zeros(())
    for row in range(3):
        for start, stop in spans(batch, row):
            one = {key: value[row : row + 1, start:stop] for key, value in batch.items()}
            one.pop("position_ids")
            alone = alone + term.totals(model, one)[0]
    torch.testing.assert_close(term.totals(model, batch)[0], alone, rtol=1e-4, atol=1e-4)
    assert alone > 0.1


def test_a_mask_alone_does_not_keep_documents_apart_in_transformers():
    # Why `CausalLM` leaves the mask out: with one, transformers looks at no positions.
    model = tiny.base(seed=0)
    batch = batches(FullRows(length=LENGTH)).next_batch(rank=0, world_size=1)
    packed = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"]}
    apart = model(**packed, use_cache=False).logits
    mixed = model(**packed, use_cache=False, attention_mask=batch["attention_mask"]).logits
    assert (apart - mixed).abs().max() > 1e-2


@pytest.mark.slow
def test_ten_thousand_documents_hold_no_label_across_a_boundary():
    rows = streams.token_rows(count=10_000, longest=60)
    stream = streams.pipeline(rows, num_workers=0)
    seen = 0
    while seen < streams.total(rows):
        batch = stream.next_batch(rank=0, world_size=1)
        seen += int(batch["attention_mask"].sum())
        starts = batch["position_ids"] == 0
        assert (batch["labels"][starts] == -100).all()
        # Each token's number follows the one before, in a document and nowhere else.
        follows = batch["input_ids"][:, 1:] == batch["input_ids"][:, :-1] + 1
        assert follows[~starts[:, 1:]].all()
        assert torch.equal(batch["labels"][~starts], batch["input_ids"][~starts])
