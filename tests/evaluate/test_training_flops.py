"""The analytic count of a backward, against what torch counts when the model is trained."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from factories import from_scratch
from memtx import IndependentSoftmax, RollingRouting, SequenceRouting, TokenRouting
from memtx.evaluate import TrainingFlops, forward_flops, training_flops
from tests.evaluate.test_flops import (
    BATCH,
    DIM,
    LENGTH,
    PARTS,
    attend,
    dense,
    model,
    routed,
    standard,
    stream,
)

SIZES = {"batch": BATCH, "length": LENGTH}


def counted(part, given):
    """What torch counts of a forward and the backward through it, by the plain attention."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        output = part(given)
        (output.logits if hasattr(output, "logits") else output).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("make", [PARTS[name] for name in PARTS if name != "LayerNorm"])
def test_a_part_in_a_trained_stream(make):
    part = make()
    wanted = counted(part, stream().requires_grad_())
    assert training_flops(model=part, **SIZES).total == wanted


@pytest.mark.parametrize("head", ["tied", "own"])
def test_a_model_that_is_trained_as_a_whole_takes_two_forwards_more(head):
    whole = model(head=head)
    found = training_flops(model=whole, **SIZES)
    assert found.total == counted(whole, torch.zeros(BATCH, LENGTH, dtype=torch.long))
    assert found.total == 3 * forward_flops(model=whole, **SIZES).total
    assert found.num_tokens == BATCH * LENGTH
    assert found.per_token == found.total / (BATCH * LENGTH)


FROZEN = {
    "embedding": lambda whole: [whole.embedding],
    "bank": lambda whole: [whole.banks],
    "reading": lambda whole: [whole.layers[0].sublayers[1].sublayer],
    "all but the bank": lambda whole: [whole.embedding, whole.layers, whole.norm, whole.head],
    "all but the scores": lambda whole: [
        whole.embedding,
        whole.banks,
        whole.layers[0].sublayers[0],
        whole.layers[0].sublayers[2],
        whole.layers[0].sublayers[1].sublayer.v_proj,
        whole.layers[0].sublayers[1].sublayer.o_proj,
    ],
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_needs_no_gradient(name):
    whole = model(head="own")
    for part in FROZEN[name](whole):
        part.requires_grad_(False)
    if name == "all but the bank":
        whole.banks.requires_grad_(True)
    wanted = counted(whole, torch.zeros(BATCH, LENGTH, dtype=torch.long))
    assert training_flops(model=whole, **SIZES).total == wanted


@pytest.mark.parametrize(
    "strategy", [SequenceRouting(), RollingRouting(window=4), TokenRouting()], ids=repr
)
def test_a_routed_read_of_all_chapters(strategy):
    part = routed(standard(), strategy=strategy, mixing=IndependentSoftmax(), top_k=5)
    found = training_flops(model=part, **SIZES)
    # The routed read computes its scores a second time in the backward, which counts once here.
    scores = 2 * BATCH * LENGTH * part.bank.num_memory_tokens * DIM
    assert found.total + scores == counted(part, stream().requires_grad_())


def test_a_frozen_bank_and_stream_leave_the_scores_of_a_routed_read():
    part = routed(standard(), strategy=TokenRouting(), mixing=IndependentSoftmax(), top_k=5)
    for each in part.parameters():
        each.requires_grad_(False)
    part.router.scorer.requires_grad_(True)
    bank = part.bank
    bank.requires_grad_(False)
    found = training_flops(model=torch.nn.ModuleList([part]), **SIZES).backward
    # Of the router the scorer's own gradient and that of its input; of the read all but weights.
    assert found["RoutedMemoryCrossAttention"] > 2 * 2 * BATCH * LENGTH * DIM * 5


def test_the_tiny_stacks_agree_with_torch():
    whole = from_scratch.dense_a_tiny()
    ids = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    assert training_flops(model=whole, **SIZES).total == counted(whole, ids)


def test_two_readers_of_one_bank_each_project_it():
    bank = standard()
    one, two = dense(bank), dense(bank)
    both = torch.nn.ModuleList([one, two])
    total = training_flops(model=both, **SIZES).total
    assert total == 2 * training_flops(model=one, **SIZES).total


def test_nothing_is_nothing():
    assert TrainingFlops(num_tokens=2, forward={}, backward={}).per_token == 0.0


@pytest.mark.parametrize("name", ["batch", "length"])
def test_sizes_below_one_are_refused(name):
    sizes = {"batch": 1, "length": 1, name: 0}
    with pytest.raises(ValueError, match=f"training_flops: {name} must .* got {name}=0;"):
        training_flops(model=attend(), **sizes)
