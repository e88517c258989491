"""Memories that are sharply read, with sinks, are stacked in a library and answer as alone."""

import torch

from memtx import (
    Insertion,
    Memory,
    MemoryCrossAttention,
    Residual,
    RMSNorm,
    ScaledHeads,
    SinkMemoryBank,
    UnitHeads,
)
from memtx.adapters.stacking import signature
from tests.adapters.bases import HIDDEN, token_ids
from tests.adapters.libraries import PLACES, expect_alone, library_of
from tests.parts import bank_of, linear, randomize


def sharp_memory():
    bank = SinkMemoryBank(num_sinks=3, stored=bank_of(7, HIDDEN))

    def unit(heads):
        return UnitHeads(projection=linear(HIDDEN, 8 * heads), num_heads=heads, eps=1e-6)

    def read():
        return MemoryCrossAttention(
            bank=bank,
            q_proj=ScaledHeads(projection=unit(4), num_heads=4, scale=20.0),
            k_proj=unit(2),
            v_proj=linear(HIDDEN, 16),
            o_proj=linear(32, HIDDEN),
            num_heads=4,
            num_kv_heads=2,
            dropout=0.0,
        )

    made = Memory(
        banks=[bank],
        insertions=[
            Insertion(
                layer=layer,
                site=site,
                sublayers=[Residual(norm=RMSNorm(dim=HIDDEN, eps=1e-5), sublayer=read())],
            )
            for layer, site in PLACES
        ],
    )
    randomize(made.parameters())
    return made


def test_rows_get_what_they_get_alone_though_read_as_one():
    library = library_of({"anna": sharp_memory(), "bob": sharp_memory()})
    forms = {signature(part) for part in library.modules() if isinstance(part, Insertion)}
    # One form for each place, and none of them is None: they are stacked.
    assert None not in forms
    assert len(forms) <= len(PLACES)
    given = expect_alone(library, ["anna", "bob", None, "anna"], token_ids(4, 5))
    assert not torch.allclose(given[0], given[1])
