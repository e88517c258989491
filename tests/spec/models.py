"""Models whose specs the tests write, edit and read."""

import json

from memtx import Insertion, MemoryAdapter, MemoryCrossAttention, Residual, RMSNorm, Site
from tests.adapters.bases import HIDDEN, fresh_adapter, llama
from tests.parts import bank_of, linear, randomize, read_arguments, recall, think, zero_linear


def adapter_on(base):
    adapter = fresh_adapter(base, Site.AFTER_ATTENTION)
    randomize(adapter.memory_parameters())
    return adapter


def intricate_adapter():
    """Two banks, one of them read from three layers, a shared projection, and a shared block."""
    bank, other, query = bank_of(7, HIDDEN), bank_of(11, 16), linear(HIDDEN, HIDDEN)
    block = think(HIDDEN)
    sharing = read_arguments(HIDDEN) | {"bank": bank, "q_proj": query}
    narrow = read_arguments(HIDDEN) | {
        "bank": other,
        "q_proj": query,
        "k_proj": linear(16, 16),
        "v_proj": linear(16, 16),
        "o_proj": zero_linear(HIDDEN, HIDDEN),
    }
    reads = [
        Residual(norm=RMSNorm(dim=HIDDEN, eps=1e-6), sublayer=MemoryCrossAttention(**arguments))
        for arguments in (sharing, narrow)
    ]
    return MemoryAdapter(
        base=llama(),
        banks=[bank, other],
        insertions=[
            Insertion(layer=0, site=Site.AFTER_ATTENTION, sublayers=[reads[0], block]),
            Insertion(layer=1, site=Site.AFTER_ATTENTION, sublayers=[recall(bank, HIDDEN)]),
            Insertion(layer=1, site=Site.AFTER_MLP, sublayers=[reads[1], block]),
            Insertion(layer=2, site=Site.AFTER_MLP, sublayers=[recall(bank, HIDDEN)]),
        ],
    ).eval()


def as_json(value):
    """The value as it comes back from a file."""
    return json.loads(json.dumps(value))
