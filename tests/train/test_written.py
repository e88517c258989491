"""Writing chosen memory tokens: the others stay to the bit, and what would move them is refused."""

import re
from dataclasses import replace

import pytest
import torch

from memtx import FactorizedMemoryBank, Normal, QuantizedMemoryBank, SinkMemoryBank
from memtx.train import AdamW, Surrounding, WrittenTokens, tokens_of_chapters
from tests.parts import bank_of
from tests.train import tiny

TOKENS = [3, 4, 17]


def run(model, *, callbacks, steps):
    replace(tiny.trainer(model=model, steps=steps), callbacks=callbacks).run()


def test_only_the_chosen_tokens_move():
    """Adam's moments of the others stay zero as well, and the reading learns as ever."""
    model = tiny.adapter(model=tiny.base(seed=0))
    bank, before = model.banks[0], tiny.memory_of(model)
    callback = WrittenTokens(bank=bank, tokens=TOKENS)
    assert isinstance(callback, Surrounding)
    run(model, callbacks=[callback], steps=4)
    after = tiny.memory_of(model)
    moved = [n for n, p in before.items() if not torch.equal(p, after[n])]
    rows = (bank.tokens != before["banks.0.tokens"]).any(dim=1)
    assert rows.nonzero().flatten().tolist() == TOKENS
    assert len(moved) > 5
    # Afterwards all of it learns again.
    run(model, callbacks=[], steps=2)
    assert (bank.tokens != after["banks.0.tokens"]).any(dim=1).all()


def test_the_step_is_that_of_a_bank_whose_other_rows_have_no_gradient():
    """By hand: one step of AdamW on the masked gradient."""
    model = tiny.adapter(model=tiny.base(seed=0))
    tiny.perturb(model)
    bank, trainer = model.banks[0], tiny.trainer(model=model, steps=1)
    batch = trainer.streams["facts"][0]
    term = trainer.objective.terms[0]
    loss = term.totals(model, batch)[0] / term.counts(model, batch)[0]
    (gradient,) = torch.autograd.grad(loss, [bank.tokens])
    wanted = torch.nn.Parameter(bank.tokens.detach().clone())
    wanted.grad = torch.zeros_like(gradient)
    wanted.grad[TOKENS] = gradient[TOKENS]
    torch.optim.AdamW([wanted], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0).step()
    replace(trainer, callbacks=[WrittenTokens(bank=bank, tokens=TOKENS)]).run()
    torch.testing.assert_close(bank.tokens, wanted)


def test_behind_sinks_tokens_are_numbered_as_readers_number_them():
    callback = WrittenTokens(
        bank=SinkMemoryBank(num_sinks=4, stored=bank_of(8, 4)),
        tokens=tokens_of_chapters([2, 1], tokens_per_chapter=4),
    )
    assert callback.tokens == [4, 5, 6, 7, 8, 9, 10, 11]
    assert callback.rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("tokens", "value"),
    [([3], "tokens=[3]"), ([12], "tokens=[12]"), ([5, 5], "tokens=[5, 5]"), ([], "tokens=[]")],
)
def test_tokens_that_are_refused(tokens, value):
    bank = SinkMemoryBank(num_sinks=4, stored=bank_of(8, 4))
    with pytest.raises(ValueError, match=re.escape(value)):
        WrittenTokens(bank=bank, tokens=tokens)


def test_banks_that_are_refused():
    quantized = QuantizedMemoryBank(num_memory_tokens=8, dim=64, bits=8, block_size=64)
    with pytest.raises(ValueError, match="QuantizedMemoryBank"):
        WrittenTokens(bank=quantized, tokens=[1])
    factorized = FactorizedMemoryBank(num_memory_tokens=8, dim=4, rank=2, init=Normal(std=1.0))
    with pytest.raises(ValueError, match=re.escape("directions.requires_grad=True")):
        WrittenTokens(bank=factorized, tokens=[1])
    factorized.directions.requires_grad_(False)
    assert WrittenTokens(bank=factorized, tokens=[1]).rows.tolist() == [1]


def test_runs_that_would_move_the_others_are_refused():
    model = tiny.adapter(model=tiny.base(seed=0))
    callback = WrittenTokens(bank=model.banks[0], tokens=TOKENS)
    trainer = replace(tiny.trainer(model=model, steps=1), callbacks=[callback])
    decaying = replace(tiny.all_memory(model), weight_decay=0.1)
    with pytest.raises(ValueError, match=re.escape("weight_decay=[0.1]")):
        replace(trainer, groups=[decaying]).run()


class Remembering:
    """An optimizer that remembers a gradient of every row, as one that was resumed may."""

    def make(self, groups):
        optimizer = AdamW(betas=(0.9, 0.95), eps=1e-8).make(groups)
        for parameter in (p for group in groups for p in group.parameters()):
            optimizer.state[parameter]["exp_avg"] = torch.ones_like(parameter)
        return optimizer


def test_an_optimizer_that_remembers_other_rows_is_refused():
    model = tiny.adapter(model=tiny.base(seed=0))
    callback = WrittenTokens(bank=model.banks[0], tokens=TOKENS)
    trainer = replace(tiny.trainer(model=model, steps=1), callbacks=[callback])
    with pytest.raises(ValueError, match=re.escape("remembered=['exp_avg']")):
        replace(trainer, optimizer=Remembering()).run()
