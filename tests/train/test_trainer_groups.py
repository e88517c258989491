"""Groups in a run: rates of their own, and frozen ones."""

from dataclasses import replace

import pytest
import torch

from memtx.adapters import MemoryAdapter
from memtx.train import SGD, Adam, AdamW, AdamW8bit, ParameterGroup
from memtx.train.groups import freezing, group_table
from tests.train import tiny


@pytest.fixture
def model() -> MemoryAdapter:
    return tiny.adapter(model=tiny.base(seed=0))


def groups(model: MemoryAdapter, *, bank_rate: float) -> list[ParameterGroup]:
    bank = ParameterGroup(
        name="bank", modules=[model.banks], without=[], learning_rate=bank_rate, weight_decay=0.5
    )
    reading = ParameterGroup(
        name="reading",
        modules=[model.insertions],
        without=[model.banks],
        learning_rate=1e-2,
        weight_decay=0.0,
    )
    return [bank, reading]


class Watch:
    """Looks at the optimizer and the gradients as they are handed to it."""

    def __init__(self, *, optimizer, model: MemoryAdapter) -> None:
        self.optimizer = optimizer
        self.model = model
        self.made: torch.optim.Optimizer | None = None
        self.with_gradient: set[str] = set()

    def make(self, chosen: list[ParameterGroup]) -> torch.optim.Optimizer:
        self.made = self.optimizer.make(chosen)
        self.made.register_step_pre_hook(self.note)
        return self.made

    def note(self, optimizer, args, kwargs) -> None:
        named = self.model.named_memory_parameters()
        self.with_gradient |= {name for name, p in named if p.grad is not None}


@pytest.mark.parametrize(
    "optimizer",
    [
        AdamW(betas=(0.9, 0.95), eps=1e-8),
        Adam(betas=(0.9, 0.95), eps=1e-8),
        SGD(momentum=0.9),
        AdamW8bit(betas=(0.9, 0.95), eps=1e-8, smallest=0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_frozen_group_stays_without_gradient_decay_or_moments(model, optimizer):
    if isinstance(optimizer, AdamW8bit):
        pytest.importorskip("bitsandbytes")
    tiny.perturb(model)
    before, watch = tiny.memory_of(model), Watch(optimizer=optimizer, model=model)
    trainer = tiny.trainer(model=model, steps=4)
    records = replace(trainer, groups=groups(model, bank_rate=0.0), optimizer=watch).run()
    after = tiny.memory_of(model)
    assert torch.equal(after["banks.0.tokens"], before["banks.0.tokens"])
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == set(before) - {"banks.0.tokens"} == watch.with_gradient
    held = [p for group in watch.made.param_groups for p in group["params"]]
    assert len(watch.made.param_groups) == 1
    assert all(p is not model.banks[0].tokens for p in [*held, *watch.made.state])
    assert "learning_rate/reading" in records[0]
    assert "learning_rate/bank" not in records[0]
    # The run over, the bank can be trained as before.
    assert model.banks[0].tokens.requires_grad
    assert model.banks[0].tokens.grad is None


def test_a_group_that_is_not_frozen_does_move(model):
    tiny.perturb(model)
    before = tiny.memory_of(model)
    replace(tiny.trainer(model=model, steps=1), groups=groups(model, bank_rate=1e-3)).run()
    after = tiny.memory_of(model)
    assert not any(torch.equal(after[name], before[name]) for name in after)


def test_a_frozen_group_may_hold_what_is_frozen_already(model):
    # A frozen base is a group like any other: 0.0 says so.
    base = ParameterGroup(
        name="base", modules=[model.base], without=[], learning_rate=0.0, weight_decay=0.0
    )
    trainer = tiny.trainer(model=model, steps=2)
    before = tiny.base_of(model)
    replace(trainer, groups=[*groups(model, bank_rate=1e-3), base]).run()
    assert tiny.same(tiny.base_of(model), before)
    assert not any(p.requires_grad for p in model.base.parameters())
    with pytest.raises(ValueError, match="at least one trainable parameter, got name='base';"):
        awake = replace(base, learning_rate=1e-5)
        replace(trainer, groups=[*groups(model, bank_rate=1e-3), awake]).run()


def test_a_parameter_in_a_frozen_and_another_group_is_refused(model):
    bank, reading = groups(model, bank_rate=0.0)
    trainer = tiny.trainer(model=model, steps=1)
    with pytest.raises(ValueError, match="got in several=\\['model.banks.0.tokens'\\];"):
        replace(trainer, groups=[bank, replace(reading, without=[])]).run()
    assert model.banks[0].tokens.requires_grad


def test_freezing_ends_with_its_block_whatever_happens(model):
    with pytest.raises(RuntimeError, match="broken"), freezing(groups(model, bank_rate=0.0)):
        assert not model.banks[0].tokens.requires_grad
        raise RuntimeError("broken")
    assert model.banks[0].tokens.requires_grad


def test_the_table_says_what_is_frozen(model):
    lines = [line.split() for line in group_table(groups(model, bank_rate=0.0)).splitlines()]
    assert lines[1] == ["bank", "1", "768", "frozen", "-"]
    assert lines[2][0] == "reading"
    assert len({len(line) for line in group_table(groups(model, bank_rate=0.0)).splitlines()}) == 1


def test_all_frozen_or_two_of_one_name_are_refused(model):
    trainer, (bank, reading) = tiny.trainer(model=model, steps=1), groups(model, bank_rate=0.0)
    frozen = [bank, replace(reading, learning_rate=0.0)]
    with pytest.raises(
        ValueError, match="got groups=\\[\\('bank', 0.0\\), \\('reading', 0.0\\)\\];"
    ):
        replace(trainer, groups=frozen)
    with pytest.raises(ValueError, match="got groups=\\[\\('bank', 0.0\\), \\('bank', 0.01\\)\\];"):
        replace(trainer, groups=[bank, replace(reading, name="bank")])
