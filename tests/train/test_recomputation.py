"""Activation checkpointing: nothing is kept, and no number changes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from memtx.context import Context
from memtx.train import (
    SGD,
    NextTokenLoss,
    Objective,
    ParameterGroup,
    RecomputedBase,
    RecomputedLayers,
    Surrounding,
)
from tests import routing
from tests.tensor import parts as tensor_parts
from tests.train import tiny


class Tokens:
    """Random rows, padded on the right, the same in every run."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def next_batch(self, *, rank: int, world_size: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(0, 24, (3, 11), generator=self.generator)
        mask = torch.ones_like(ids)
        mask[1, 7:] = 0
        labels = torch.where((mask > 0) & (torch.arange(11) > 3), ids, -100)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state) -> None:
        """Nothing."""


def run(model: nn.Module, *, callbacks, modules: list[nn.Module]):
    """Train three steps of two batches, and give the numbers and the parameters."""
    trainer = replace(
        tiny.trainer(model=tiny.adapter(model=tiny.base(seed=0)), steps=3),
        objective=Objective(
            model=model,
            terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=1024)],
        ),
        streams={"text": Tokens()},
        groups=[
            ParameterGroup(
                name="all", modules=modules, without=[], learning_rate=1e-2, weight_decay=0.0
            )
        ],
        optimizer=SGD(momentum=0.9),
        accumulation=2,
        callbacks=callbacks,
    )
    torch.manual_seed(3)  # of dropout
    records = trainer.run()
    numbers = [
        {
            key: value
            for key, value in record.items()
            if key in ("loss", "gradient_norm") or key.startswith("text")
        }
        for record in records
    ]
    return numbers, {name: p.detach().clone() for name, p in model.named_parameters()}


class Forwards:
    """Counts how often a part runs, in backward passes too."""

    def __init__(self, part: nn.Module) -> None:
        self.count = 0
        part.register_forward_hook(self.note)

    def note(self, module, args, output) -> None:
        self.count += 1


def transformer(strategy: str) -> nn.Module:
    torch.manual_seed(0)
    model = routing.transformer(routing.STRATEGIES[strategy], losses=tiny.router_losses())
    for part in model.modules():
        if hasattr(part, "dropout"):
            part.dropout = 0.2
    return model


@pytest.mark.parametrize("strategy", routing.STRATEGIES)
def test_blocks_that_run_again_change_no_number(strategy):
    plain, again = transformer(strategy), transformer(strategy)
    names = set(again.state_dict())
    once, twice = Forwards(plain.layers[0].sublayers[0]), Forwards(again.layers[0].sublayers[0])
    callback = RecomputedLayers(layers=again.layers)
    assert isinstance(callback, Surrounding)
    wanted, left = run(plain, callbacks=[], modules=[plain])
    found, gone = run(again, callbacks=[callback], modules=[again])
    assert found == wanted
    assert wanted[0]["text/LoadBalanceLoss(0.5)"] > 0
    assert tiny.same(gone, left)
    assert (once.count, twice.count) == (6, 12)
    assert set(again.state_dict()) == names
    again.train()(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    assert twice.count == 13  # the run over, the layers are as they were


def test_what_routers_chose_is_noted_once():
    model = transformer("rolling").train()
    term = NextTokenLoss(name="text", stream="text", weight=1.0, chunk=1024)
    callback = RecomputedLayers(layers=model.layers)
    stream = model.embedding(torch.ones(1, 6, dtype=torch.long))
    context = Context.plain(stream)
    with callback.around(Standing(Objective(model=model, terms=[term]))):
        model.hidden_of(stream, context).sum().backward()
    assert len(context.routings) == 2


def test_one_layer_of_several_can_be_chosen():
    model = transformer("rolling")
    first, second = (Forwards(layer.sublayers[0]) for layer in model.layers)
    run(model, callbacks=[RecomputedLayers(layers=[model.layers[1]])], modules=[model])
    assert (first.count, second.count) == (6, 12)


def test_a_tensor_memory_runs_again():
    results = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        model = tensor_parts.language_model(24, 16)
        for part in model.modules():
            if hasattr(part, "dropout"):
                part.dropout = 0.2
        callbacks = [RecomputedLayers(layers=model.layers)] if recomputed else []
        forwards = Forwards(model.layers[0].attention)
        results.append(run(model, callbacks=callbacks, modules=[model]))
        assert forwards.count == (12 if recomputed else 6)
    assert results[0][0] == results[1][0]
    assert tiny.same(results[0][1], results[1][1])


@pytest.mark.parametrize("kind", ["memory", "routed", "base"])
def test_layers_of_a_base_run_again_and_change_no_number(kind):
    results = []
    for recomputed in (False, True):
        base = tiny.base(seed=0)
        torch.manual_seed(1)
        if kind == "base":
            model, modules = base, [base]
        else:
            strategy = routing.STRATEGIES["rolling"]
            routed = kind == "routed"
            model = (
                tiny.routed_adapter(model=base, strategy=strategy)
                if routed
                else tiny.adapter(model=base)
            )
            tiny.perturb(model)
            modules = [model.banks, model.insertions]
        forwards = Forwards(base.model.layers[1].input_layernorm)
        callbacks = [RecomputedBase(model=model)] if recomputed else []
        results.append(run(model, callbacks=callbacks, modules=modules))
        assert forwards.count == (12 if recomputed else 6)
        base.train()(torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
        assert forwards.count == (13 if recomputed else 7)  # the run over, it is switched off
    assert results[0][0] == results[1][0]
    assert tiny.same(results[0][1], results[1][1])


class Standing:
    """As much of a run as the callback looks at."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective


class Saved:
    """Counts the numbers that autograd keeps."""

    def __init__(self) -> None:
        self.count = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.count += tensor.numel()
        return tensor

    def unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_activations_are_not_kept():
    kept = {}
    for recomputed in (False, True):
        model = transformer("rolling").train()
        saved = Saved()
        callback = RecomputedLayers(layers=model.layers)
        objective = Objective(
            model=model, terms=[NextTokenLoss(name="text", stream="text", weight=1.0, chunk=1024)]
        )

        batch = {"text": Tokens().next_batch(rank=0, world_size=1)}
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack):
            if recomputed:
                with callback.around(Standing(objective)):
                    objective(batch)
            else:
                objective(batch)
        kept[recomputed] = saved.count
    assert kept[True] < 0.4 * kept[False]


def test_strangers_are_refused():
    model = transformer("rolling")
    with pytest.raises(ValueError, match="RecomputedLayers: .* got layers=0, distinct=0;"):
        RecomputedLayers(layers=[])
    with pytest.raises(ValueError, match="RecomputedLayers: .* got layers=2, distinct=1;"):
        RecomputedLayers(layers=[model.layers[0], model.layers[0]])
    callback = RecomputedLayers(layers=[nn.Identity(), model.layers[0]])
    with pytest.raises(ValueError, match="got model='MemoryTransformer', strangers=1;"):
        run(model, callbacks=[callback], modules=[model])
    with pytest.raises(ValueError, match="RecomputedBase: .* got model='MemoryTransformer';"):
        RecomputedBase(model=model)
