"""Parameter groups and what they must hold."""

import pytest
from torch import nn

from memtx.train import ParameterGroup
from memtx.train.groups import check_partition, group_table


def group(name: str, modules: list[nn.Module], without: list[nn.Module]) -> ParameterGroup:
    return ParameterGroup(
        name=name, modules=modules, without=without, learning_rate=1e-3, weight_decay=0.1
    )


@pytest.fixture
def model() -> nn.Module:
    """A body of two layers, the first frozen, and a head tied to the second."""
    made = nn.ModuleDict(
        {"body": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "head": nn.Linear(2, 2)}
    )
    made["body"][0].requires_grad_(False)
    made["head"].weight = made["body"][1].weight
    return made


def test_a_group_holds_what_is_trainable_once_and_without_the_rest(model):
    body, head = model["body"], model["head"]
    assert names_of(model, group("a", [model], [])) == ["body.1.weight", "body.1.bias", "head.bias"]
    assert names_of(model, group("a", [head, body], [])) == [
        "body.1.weight",
        "head.bias",
        "body.1.bias",
    ]
    assert names_of(model, group("a", [model], [head])) == ["body.1.bias"]
    assert names_of(model, group("a", [body[0]], [])) == []


def names_of(model: nn.Module, chosen: ParameterGroup) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in chosen.parameters()]


def test_parameters_are_those_of_now(model):
    chosen = group("a", [model], [])
    model["body"][1].bias.requires_grad_(False)
    assert names_of(model, chosen) == ["body.1.weight", "head.bias"]


@pytest.mark.parametrize("rates", [(-1e-3, 0.0), (1e-3, -0.1), (float("nan"), 0.0)])
def test_a_negative_rate_is_refused(rates):
    learning_rate, weight_decay = rates
    expected = f"got learning_rate={learning_rate}, weight_decay={weight_decay};"
    with pytest.raises(ValueError, match=f"ParameterGroup: .*{expected}"):
        ParameterGroup(
            name="a",
            modules=[],
            without=[],
            learning_rate=learning_rate,
            weight_decay=weight_decay,
        )


def test_a_partition_passes(model):
    body, head = model["body"], model["head"]
    check_partition(model=model, groups=[group("all", [model], [])])
    check_partition(model=model, groups=[group("body", [body], []), group("h", [head], [body])])


def test_what_is_left_out_is_named(model):
    with pytest.raises(ValueError, match="groups must hold every trainable parameter") as caught:
        check_partition(model=model, groups=[group("head", [model["head"]], [])])
    assert "got left out=['body.1.bias'];" in str(caught.value)


def test_what_is_in_two_groups_is_named(model):
    groups = [group("body", [model["body"]], []), group("head", [model["head"]], [])]
    with pytest.raises(ValueError, match="exactly once") as caught:
        check_partition(model=model, groups=groups)
    assert "got in several=['body.1.weight'];" in str(caught.value)


def test_an_empty_group_is_named(model):
    groups = [group("all", [model], []), group("frozen", [model["body"][0]], [])]
    with pytest.raises(ValueError, match="at least one trainable parameter, got name='frozen';"):
        check_partition(model=model, groups=groups)


def test_a_group_of_another_model_is_named(model):
    groups = [group("all", [model], []), group("stranger", [nn.Linear(1, 1)], [])]
    with pytest.raises(ValueError, match="got not the model's=\\['stranger'\\];"):
        check_partition(model=model, groups=groups)


def test_all_troubles_come_at_once(model):
    body = model["body"]
    groups = [group("a", [body], []), group("b", [body, nn.Linear(1, 1)], [])]
    with pytest.raises(ValueError, match="exactly once") as caught:
        check_partition(model=model, groups=groups)
    for expected in (
        "left out=['head.bias']",
        "in several=['body.1.weight', 'body.1.bias']",
        "not the model's=['b']",
    ):
        assert expected in str(caught.value)


def test_the_table_says_names_counts_and_rates(model):
    groups = [
        ParameterGroup(
            name="memory", modules=[model], without=[], learning_rate=2e-3, weight_decay=0.05
        ),
        group("wide", [nn.Linear(1000, 2, bias=False)], []),
    ]
    assert [line.split() for line in group_table(groups).splitlines()] == [
        ["group", "tensors", "parameters", "lr", "decay"],
        ["memory", "3", "8", "2.00e-03", "0.050"],
        ["wide", "1", "2,000", "1.00e-03", "0.100"],
    ]
    assert len({len(line) for line in group_table(groups).splitlines()}) == 1
