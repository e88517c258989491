"""The optimizers that values make: their groups, and their updates against written-out ones."""

import copy
import importlib.util

import pytest
import torch
from torch import nn

from memtx.train import SGD, Adam, AdamW, AdamW8bit, Optimizer, ParameterGroup

without_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
ALL = [
    AdamW(betas=(0.8, 0.95), eps=1e-6),
    Adam(betas=(0.8, 0.95), eps=1e-6),
    SGD(momentum=0.9),
    pytest.param(AdamW8bit(betas=(0.8, 0.95), eps=1e-6, smallest=4096), marks=without_bitsandbytes),
]
each = pytest.mark.parametrize("value", ALL, ids=lambda value: type(value).__name__)


def group(name: str, modules: list[nn.Module], *, rate: float, decay: float) -> ParameterGroup:
    return ParameterGroup(
        name=name, modules=modules, without=[], learning_rate=rate, weight_decay=decay
    )


@each
def test_it_has_a_group_of_each_with_its_rates(value):
    first, second = nn.Linear(2, 3), nn.Linear(3, 1, bias=False)
    groups = [group("a", [first], rate=1e-3, decay=0.1), group("b", [second], rate=2e-4, decay=0.0)]
    assert isinstance(value, Optimizer)
    optimizer = value.make(groups)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = optimizer.param_groups
    assert [[id(p) for p in each["params"]] for each in held] == [
        [id(first.weight), id(first.bias)],
        [id(second.weight)],
    ]
    assert [(each["lr"], each["weight_decay"]) for each in held] == [(1e-3, 0.1), (2e-4, 0.0)]
    for name in ("betas", "eps", "momentum"):
        if hasattr(value, name):
            assert {each[name] for each in held} == {getattr(value, name)}


def steps(value, *, count: int, size: int, decay: float) -> torch.Tensor:
    """Where some steps with random gradients take a parameter of ones."""
    torch.manual_seed(0)
    module = nn.Linear(size, 1, bias=False)
    nn.init.ones_(module.weight)
    optimizer = value.make([group("a", [module], rate=1e-2, decay=decay)])
    for _ in range(count):
        module.weight.grad = torch.randn(1, size)
        optimizer.step()
    return module.weight.detach()[0]


def adam_by_hand(*, count: int, size: int, decay: float, decoupled: bool) -> torch.Tensor:
    torch.manual_seed(0)
    nn.Linear(size, 1, bias=False)  # draws as `steps` does
    w = torch.ones(size, dtype=torch.float64)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t in range(1, count + 1):
        g = torch.randn(1, size)[0].double()
        if decoupled:
            w = w - 1e-2 * decay * w
        else:
            g = g + decay * w
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
        w = w - 1e-2 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-6)
    return w.float()


@pytest.mark.parametrize(("value", "decoupled"), [(ALL[0], True), (ALL[1], False)])
def test_adam_is_the_formula_with_decay_apart_or_in_the_gradient(value, decoupled):
    found = steps(value, count=5, size=7, decay=0.5)
    wanted = adam_by_hand(count=5, size=7, decay=0.5, decoupled=decoupled)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    other = adam_by_hand(count=5, size=7, decay=0.5, decoupled=not decoupled)
    assert (found - other).abs().max() > 1e-3


def test_sgd_is_the_formula():
    torch.manual_seed(0)
    nn.Linear(7, 1, bias=False)
    w, m = torch.ones(7), torch.zeros(7)
    for _ in range(4):
        m = 0.9 * m + torch.randn(1, 7)[0] + 0.5 * w
        w = w - 1e-2 * m
    torch.testing.assert_close(steps(SGD(momentum=0.9), count=4, size=7, decay=0.5), w)


@pytest.mark.parametrize(
    ("value", "plain"), [(ALL[0], torch.optim.AdamW), (ALL[1], torch.optim.Adam)]
)
def test_the_one_kernel_is_used_and_equals_the_plain_loop(value, plain):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(9, 5), nn.Linear(5, 3))
    other = copy.deepcopy(module)
    fast = value.make([group("a", [module], rate=1e-2, decay=0.1)])
    slow = plain(
        other.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6, foreach=False
    )
    assert fast.param_groups[0]["fused"] is True
    for _ in range(5):
        for one, two in zip(module.parameters(), other.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            two.grad = one.grad.clone()
        fast.step()
        slow.step()
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


@without_bitsandbytes
def test_eight_bits_hold_the_moments_and_follow_the_exact_ones():
    value = AdamW8bit(betas=(0.8, 0.95), eps=1e-6, smallest=4096)
    torch.manual_seed(0)
    large, small = nn.Linear(4096, 1, bias=False), nn.Linear(9, 1, bias=False)
    optimizer = value.make([group("a", [large, small], rate=1e-2, decay=0.1)])
    for part in (large, small):
        part.weight.grad = torch.randn_like(part.weight)
    optimizer.step()
    assert optimizer.state[large.weight]["state1"].dtype == torch.uint8
    assert optimizer.state[small.weight]["state1"].dtype == torch.float32
    found = steps(value, count=10, size=8192, decay=0.1)
    exact = steps(AdamW(betas=(0.8, 0.95), eps=1e-6), count=10, size=8192, decay=0.1)
    moved = (exact - 1.0).norm()
    assert 0.0 < (found - exact).norm() / moved < 0.05


@without_bitsandbytes
def test_eight_bits_go_on_from_a_state_bit_for_bit():
    value = AdamW8bit(betas=(0.8, 0.95), eps=1e-6, smallest=0)
    torch.manual_seed(0)
    module = nn.Linear(64, 64)
    gradients = [[torch.randn_like(p) for p in module.parameters()] for _ in range(4)]
    optimizer = value.make([group("a", [module], rate=1e-2, decay=0.1)])

    def go(part: nn.Module, made: torch.optim.Optimizer, chosen: list[list[torch.Tensor]]) -> None:
        for each in chosen:
            for parameter, gradient in zip(part.parameters(), each, strict=True):
                parameter.grad = gradient.clone()
            made.step()

    go(module, optimizer, gradients[:2])
    other = copy.deepcopy(module)
    resumed = value.make([group("a", [other], rate=1e-2, decay=0.1)])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go(module, optimizer, gradients[2:])
    go(other, resumed, gradients[2:])
    for one, two in zip(module.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_eight_bits_refuse_what_they_cannot_hold(monkeypatch):
    value = AdamW8bit(betas=(0.9, 0.95), eps=1e-8, smallest=0)
    on_meta = group("a", [nn.Linear(2, 2, device="meta")], rate=1e-3, decay=0.0)
    if importlib.util.find_spec("bitsandbytes") is not None:
        with pytest.raises(ValueError, match="AdamW8bit: .*got sharded=0, devices=\\['meta'\\];"):
            value.make([on_meta])
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)
    with pytest.raises(ValueError, match="must be installed, got bitsandbytes=None; run pip"):
        value.make([on_meta])


def test_eight_bits_refuse_sharded_parameters(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        module = nn.Linear(4, 4, bias=False)
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
        groups = [group("a", [module], rate=1e-3, decay=0.0)]
        value = AdamW8bit(betas=(0.9, 0.95), eps=1e-8, smallest=0)
        with pytest.raises(ValueError, match="got sharded=1, devices=\\['cpu'\\]; use AdamW where"):
            value.make(groups)
        # The one kernel takes them, and moves them.
        module(torch.ones(1, 4)).sum().backward()
        before = module.weight.full_tensor().clone()
        optimizer = AdamW(betas=(0.9, 0.95), eps=1e-8).make(groups)
        optimizer.step()
        moved = (module.weight.full_tensor() - before).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-3, atol=1e-6)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("kind", [AdamW, Adam])
@pytest.mark.parametrize(
    ("betas", "eps", "expected"),
    [
        ((1.0, 0.9), 1e-8, "betas\\[0\\] must lie in .* got betas\\[0\\]=1.0;"),
        ((0.9, -0.1), 1e-8, "betas\\[1\\] must lie in .* got betas\\[1\\]=-0.1;"),
        ((0.9, 0.9), 0.0, "eps must be positive and finite, got eps=0.0;"),
    ],
)
def test_bad_values_are_refused(kind, betas, eps, expected):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {expected}"):
        kind(betas=betas, eps=eps)


def test_a_bad_momentum_or_size_is_refused():
    with pytest.raises(ValueError, match="SGD: momentum must lie in .* got momentum=1.0;"):
        SGD(momentum=1.0)
    with pytest.raises(ValueError, match="AdamW8bit: smallest must .* got smallest=-1;"):
        AdamW8bit(betas=(0.9, 0.9), eps=1e-8, smallest=-1)
