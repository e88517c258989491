"""Quantized banks: how near they come, what they weigh, what they read, what they refuse."""

import re
import sys
from unittest.mock import Mock

import bitsandbytes.functional
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from memtx import (
    FactorizedMemoryBank,
    FromRows,
    MemoryAdapter,
    Normal,
    QuantizedMemoryBank,
    ReducedDimMemoryBank,
    Site,
    StandardMemoryBank,
    Zeros,
)
from memtx.memory.quantized import BLOCK_SIZES
from tests.adapters.bases import HIDDEN, insertions_at, llama, logits, token_ids
from tests.parts import bank_of, randomize, randomize_buffers

ERRORS, SHARES = {8: 0.015, 4: 0.12}, {8: 0.27, 4: 0.15}

each_bits = pytest.mark.parametrize("bits", [8, 4])
each_block_size = pytest.mark.parametrize("block_size", BLOCK_SIZES)


def quantized(bank, bits):
    return QuantizedMemoryBank.from_bank(bank=bank, bits=bits, block_size=64)


def relative_error(mine, wanted):
    return ((mine - wanted).norm() / wanted.norm()).item()


def num_bytes(module):
    return sum(tensor.nbytes for tensor in module.state_dict().values())


@each_bits
@each_block_size
@pytest.mark.parametrize("std", [1e-4, 1.0, 50.0])
def test_tokens_are_near_and_small(bits, block_size, std):
    bank = StandardMemoryBank(num_memory_tokens=1024, dim=128, init=Normal(std=std))
    small = QuantizedMemoryBank.from_bank(bank=bank, bits=bits, block_size=block_size)
    assert relative_error(small(), bank()) < ERRORS[bits]
    assert num_bytes(small) < SHARES[bits] * num_bytes(bank)
    assert small.codes.dtype == torch.uint8


@each_bits
@pytest.mark.parametrize("block_size", BLOCK_SIZES[:2])
def test_numbers_are_those_of_the_definition(bits, block_size):
    """The nearest code times the largest magnitude of the block; the last block is padded."""
    bank = bank_of(7, 60)
    small = QuantizedMemoryBank.from_bank(bank=bank, bits=bits, block_size=block_size)
    count = small.scales.numel() * block_size
    blocks = torch.zeros(count).index_copy(0, torch.arange(420), bank().flatten())
    blocks = blocks.detach().view(-1, block_size)
    torch.testing.assert_close(small.scales, blocks.abs().amax(-1), rtol=0, atol=0)
    if bits == 8:
        table = bitsandbytes.functional.create_dynamic_map()
    else:
        table = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    near = ((blocks / small.scales[:, None])[..., None] - table).abs().argmin(-1)
    wanted = (table[near] * small.scales[:, None]).flatten()[:420].view(7, 60)
    # Numbers midway between two codes may fall to either.
    assert (small() - wanted).abs().gt(1e-6).float().mean() < 0.01


@pytest.mark.shapes
@each_bits
@each_block_size
@pytest.mark.parametrize("dim", [1, 2, 12, 32, 64, 66, 100, 130, 512])
def test_rows_are_those_of_the_whole(bits, block_size, dim):
    """Rows within a block, of whole blocks, and across the borders of blocks."""
    bank = QuantizedMemoryBank(num_memory_tokens=23, dim=dim, bits=bits, block_size=block_size)
    randomize_buffers(bank)
    everything = torch.arange(23)
    assert torch.equal(bank.rows(everything), bank())
    for indices in ([0], [22, 1, 1], [[0, 2], [16, 5]], [-1, -23], []):
        chosen = torch.tensor(indices, dtype=torch.int64)
        assert torch.equal(bank.rows(chosen), bank()[chosen])
        assert bank.rows(chosen).shape == (*chosen.shape, dim)


@pytest.mark.parametrize("index", [23, -24, 25])
def test_rows_that_are_not_there_are_refused(index):
    """Also where the padding of the last block would answer."""
    bank = QuantizedMemoryBank(num_memory_tokens=23, dim=4, bits=8, block_size=64)
    with pytest.raises(IndexError, match=str(index)):
        bank.rows(torch.tensor([index]))


@each_bits
@pytest.mark.parametrize(("dim", "wanted"), [(128, 3 * 128), (32, 3 * 64), (96, 3 * 128)])
def test_only_the_blocks_read_are_dequantized(bits, dim, wanted, monkeypatch):
    small = quantized(bank_of(1000, dim), bits)
    name = {8: "dequantize_blockwise", 4: "dequantize_4bit"}[bits]
    watched = Mock(wraps=getattr(bitsandbytes.functional, name))
    monkeypatch.setattr(bitsandbytes.functional, name, watched)
    small.rows(torch.tensor([4, 700, 999]))
    (call,) = watched.call_args_list
    assert call.args[0].numel() * 8 // bits == wanted


@each_bits
@pytest.mark.parametrize(
    "bank",
    [
        FactorizedMemoryBank(num_memory_tokens=64, dim=48, rank=8, init=Normal(std=1.0)),
        ReducedDimMemoryBank(num_memory_tokens=64, rank=16, init=Normal(std=1.0)),
        StandardMemoryBank(
            num_memory_tokens=64,
            dim=24,
            init=FromRows(tensor=torch.linspace(-1, 1, 1536).view(64, 24)),
        ),
    ],
    ids=lambda bank: type(bank).__name__,
)
def test_made_from_any_bank(bits, bank):
    before = bank().clone()
    small = quantized(bank, bits)
    assert (small.num_memory_tokens, small.dim) == (bank.num_memory_tokens, bank.dim)
    assert relative_error(small(), bank()) < ERRORS[bits]
    assert torch.equal(bank(), before)
    again = quantized(small, bits)
    assert relative_error(again(), small()) < ERRORS[bits]


@each_bits
def test_dtype_is_that_of_the_bank(bits):
    bank = bank_of(64, 64).to(torch.bfloat16)
    small = quantized(bank, bits)
    assert {name: buffer.dtype for name, buffer in small.named_buffers()} == {
        "codes": torch.uint8,
        "scales": torch.bfloat16,
    }
    assert small().dtype == small.rows(torch.tensor([1])).dtype == torch.bfloat16
    assert relative_error(small().float(), bank().float()) < ERRORS[bits]


@each_bits
def test_zeros_stay_zeros(bits):
    bank = StandardMemoryBank(num_memory_tokens=4, dim=64, init=Zeros())
    assert quantized(bank, bits)().abs().max() == 0.0
    bare = QuantizedMemoryBank(num_memory_tokens=4, dim=64, bits=bits, block_size=64)
    assert bare().abs().max() == 0.0


def adapter_with(bank):
    adapter = MemoryAdapter(
        base=llama(), banks=[bank], insertions=insertions_at(Site.AFTER_ATTENTION, bank)
    ).eval()
    randomize(adapter.memory_parameters())
    return adapter


def trained_adapter(bank, ids):
    """The memory has learned four rows of random tokens nearly by heart."""
    adapter = adapter_with(bank)
    optimizer = torch.optim.AdamW(adapter.memory_parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = adapter(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    return adapter


@each_bits
def test_logits_of_a_trained_adapter_stay_near(bits):
    """Its readers go over to the quantized bank."""
    bank, ids = bank_of(128, HIDDEN), token_ids(4, 9)
    adapter = trained_adapter(bank, ids)
    wanted = logits(adapter, ids)
    with adapter.disabled():
        without = logits(adapter, ids)
    small = quantized(bank, bits)
    for insertion in adapter.insertions:
        insertion.sublayers[0].sublayer.bank = small
    again = MemoryAdapter(
        base=adapter.remove(), banks=[small], insertions=list(adapter.insertions)
    ).eval()
    assert relative_error(logits(again, ids), wanted) < {8: 0.02, 4: 0.15}[bits]
    assert relative_error(without, wanted) > 0.5
    assert not torch.equal(logits(again, ids), wanted)


def test_gradient_reaches_the_projections_and_not_the_bank():
    small, ids = quantized(bank_of(16, HIDDEN), 8), token_ids(2, 5)
    adapter = adapter_with(small)
    before = {name: buffer.clone() for name, buffer in small.named_buffers()}
    names = [name for name, _ in adapter.named_memory_parameters()]
    assert not any(name.startswith("banks") for name in names)
    optimizer = torch.optim.AdamW(adapter.memory_parameters(), lr=1e-2)
    adapter(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in adapter.named_memory_parameters():
        assert parameter.grad.abs().max() > 0.0, name
    optimizer.step()
    for name, buffer in small.named_buffers():
        assert torch.equal(buffer, before[name])
        assert buffer.grad is None


def test_trains_under_data_parallelism():
    ids = token_ids(2, 5)
    adapter = adapter_with(quantized(bank_of(16, HIDDEN), 4)).train()
    adapter(input_ids=ids, labels=ids).loss.backward()
    wanted = {name: p.grad.clone() for name, p in adapter.named_memory_parameters()}
    adapter.zero_grad()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        DistributedDataParallel(adapter)(input_ids=ids, labels=ids).loss.backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in adapter.named_memory_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name])


@pytest.mark.parametrize("bits", [2, 16, 0, 8.0, True, "8", None])
def test_bits_that_are_refused(bits):
    text = f"QuantizedMemoryBank: bits must be 4 or 8, got bits={bits!r};"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        quantized(bank_of(7, 4), bits)


@pytest.mark.parametrize("block_size", [0, 32, 100, 1024, 64.0, None])
def test_block_sizes_that_are_refused(block_size):
    text = (
        "QuantizedMemoryBank: block_size must be one of 64, 128, 256, 512, "
        f"got block_size={block_size!r};"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        QuantizedMemoryBank(num_memory_tokens=7, dim=4, bits=8, block_size=block_size)


@pytest.mark.parametrize("value", [0, -1, True, 2.0])
@pytest.mark.parametrize("name", ["num_memory_tokens", "dim"])
def test_sizes_that_are_refused(name, value):
    text = f"QuantizedMemoryBank: {name} must be an integer of at least 1, got {name}={value!r};"
    sizes = {"num_memory_tokens": 7, "dim": 4} | {name: value}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        QuantizedMemoryBank(**sizes, bits=8, block_size=64)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_tokens_that_are_not_finite_are_refused(value):
    bank = bank_of(7, 4)
    with torch.no_grad():
        bank.tokens[3, 1:3] = value
    text = "QuantizedMemoryBank: the tokens of the bank must be finite, got not finite=2;"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        quantized(bank, 8)


def test_missing_bitsandbytes_is_named(monkeypatch):
    small = quantized(bank_of(7, 4), 8)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.delitem(sys.modules, "bitsandbytes.functional")
    text = r"^QuantizedMemoryBank: bitsandbytes must be installed, got error=.*bitsandbytes.*; pip"
    with pytest.raises(ImportError, match=text):
        small()
    with pytest.raises(ImportError, match=text):
        quantized(bank_of(7, 4), 4)
