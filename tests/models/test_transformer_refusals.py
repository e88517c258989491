"""Calls and compositions of whole models that are refused, each with its message."""

import re

import pytest
import torch

from memtx import LayerNorm, Linear, MemoryTransformer, Normal
from tests.models import stacks
from tests.models.stacks import DIM, VOCABULARY, token_ids, vanilla, working
from tests.parts import bank_of, linear, think
from tests.routing import CAUSAL, MIXINGS

LONG = stacks.POSITIONS + 1

CALLS = {
    "neither ids nor vectors": (
        lambda model: model(),
        "MemoryTransformer: either input_ids or inputs_embeds must be given, "
        "got input_ids=False, inputs_embeds=False; pass one of them.",
    ),
    "both ids and vectors": (
        lambda model: model(input_ids=token_ids(1, 3), inputs_embeds=torch.ones(1, 3, DIM)),
        "MemoryTransformer: either input_ids or inputs_embeds must be given, "
        "got input_ids=True, inputs_embeds=True; pass one of them.",
    ),
    "mask of another length": (
        lambda model: model(input_ids=token_ids(1, 3), attention_mask=torch.ones(1, 4)),
        "Context: attention_mask must be [batch, tokens of the cache and of this call], "
        "got attention_mask=(1, 4), wanted=(1, 3);",
    ),
    "mask without the cache": (
        lambda model: model(
            input_ids=token_ids(1, 1),
            attention_mask=torch.ones(1, 1),
            past_key_values=model(input_ids=token_ids(1, 3), use_cache=True).past_key_values,
        ),
        "got attention_mask=(1, 1), wanted=(1, 4); give a 1 for each real token",
    ),
    "positions of another length": (
        lambda model: model(input_ids=token_ids(2, 3), position_ids=torch.arange(4)[None]),
        "Context: position_ids must be [batch, length] or [1, length], "
        "got position_ids=(1, 4), wanted=(2, 3); give the position of each token of this call.",
    ),
    "labels of another length": (
        lambda model: model(input_ids=token_ids(2, 3), labels=token_ids(2, 2)),
        "Context: labels must be [batch, length], got labels=(2, 2), wanted=(2, 3); "
        "give a label for each token of this call, -100 where there is none.",
    ),
    "too many tokens": (
        lambda model: model(input_ids=token_ids(1, LONG)),
        "RotaryEmbedding: a sequence must not be longer than max_positions, "
        "got tokens=65, max_positions=64;",
    ),
    "too many tokens with the cache": (
        lambda model: model.generate(
            input_ids=token_ids(1, LONG - 2), max_new_tokens=4, pad_token_id=0
        ),
        "RotaryEmbedding: a sequence must not be longer than max_positions, "
        "got tokens=65, max_positions=64;",
    ),
}


@pytest.mark.parametrize(("call", "text"), CALLS.values(), ids=CALLS)
def test_wrong_calls_are_refused(call, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        call(vanilla())


def test_prompt_routing_without_a_cache_is_refused_in_generation():
    strategy = CAUSAL["prompt"]
    model = working(stacks.routed_arguments(strategy, MIXINGS["joint"]))
    text = (
        "MemoryTransformer: a model whose routers choose from the prompt must generate with a "
        "cache, which tells the prompt from what was generated, "
        "got use_cache=False, strategies=[PromptRouting()]; pass use_cache=True, or use"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        model.generate(input_ids=token_ids(1, 3), max_new_tokens=2, use_cache=False)
    text = (
        "MemoryTransformer: a model whose routers choose from the prompt must read it in one call: "
        "what comes later counts as generated, got prefill_chunk_size=2, "
        "strategies=[PromptRouting()]; leave prefill_chunk_size out, or use"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        model.generate(input_ids=token_ids(1, 3), max_new_tokens=2, prefill_chunk_size=2)


def changed(arguments, name, value):
    return lambda: arguments() | {name: value}


BANK = bank_of(7, DIM)


def dense_with_banks(change):
    def arguments():
        made = stacks.dense_arguments()
        return made | {"banks": change(made["banks"])}

    return arguments


PARTS = {
    "no layer": (
        changed(stacks.vanilla_arguments, "layers", []),
        "layers must be at least one, and all parts must have the embedding's width, "
        "got layers=0, embedding=8;",
    ),
    "a layer of another width": (
        changed(stacks.vanilla_arguments, "layers", [think(DIM), think(6)]),
        "got layers=2, embedding=8, layers[1]=6; give all of them the width of the stream.",
    ),
    "a norm of another width": (
        changed(stacks.vanilla_arguments, "norm", LayerNorm(dim=6, eps=1e-5)),
        "got layers=2, embedding=8, norm=6;",
    ),
    "a head of another width": (
        changed(stacks.vanilla_arguments, "head", linear(6, VOCABULARY)),
        "got layers=2, embedding=8, head=6;",
    ),
    "a head of another vocabulary": (
        changed(
            stacks.vanilla_arguments,
            "head",
            Linear(in_features=DIM, out_features=31, bias=True, init=Normal(std=1.0)),
        ),
        "head must score each token of the vocabulary, "
        "got head.out_features=31, embedding.vocab_size=32; make head.out_features equal",
    ),
    "a bank that is not listed": (
        dense_with_banks(lambda banks: banks[1:]),
        "banks must list every bank that a layer reads, got banks=0, missing=[StandardMemoryBank(",
    ),
    "another bank listed": (
        dense_with_banks(lambda banks: [BANK, *banks[1:]]),
        "banks must list every bank that a layer reads, got banks=1, missing=[StandardMemoryBank(",
    ),
    "a bank that no layer reads": (
        dense_with_banks(lambda banks: [*banks, BANK]),
        "banks must list each bank that is read once, and no other, got banks=2, read=1; "
        "remove the bank that no layer reads, or the repetition.",
    ),
    "a bank listed twice": (
        dense_with_banks(lambda banks: [*banks, *banks]),
        "banks must list each bank that is read once, and no other, got banks=2, read=1;",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), PARTS.values(), ids=PARTS)
def test_parts_that_do_not_meet_are_refused(arguments, text):
    with pytest.raises(ValueError, match=f"^MemoryTransformer: .*{re.escape(text)}"):
        MemoryTransformer(**arguments())
