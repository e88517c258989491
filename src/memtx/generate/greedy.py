"""Greedy continuation of prompts of different lengths."""

from typing import Any

import torch
from torch import Tensor

from memtx.checks import require_positive
from memtx.modes import evaluating


def padding_token(tokenizer: Any) -> int:
    """Give the token that fills masked places: the tokenizer's, else its end token, else 0.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


@torch.no_grad()
def greedy(
    *,
    model: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    pad_token_id: int,
    eos_token_id: int | None,
) -> list[list[int]]:
    """Continue each prompt with the likeliest tokens, up to its end token.

    Args:
        model: a Hugging Face causal language model or a `MemoryAdapter`.
        prompts: token ids of each prompt; shorter ones are padded on the left.
        max_new_tokens: at most so many tokens each.
        batch_size: prompts per call.
        pad_token_id: fills masked places.
        eos_token_id: ends a continuation and is not part of it; None if there is none.

    Raises:
        ValueError: if a size is below 1.
    """
    require_positive(
        owner="greedy", sizes={"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    )
    answers: list[list[int]] = []
    with evaluating(model):
        for start in range(0, len(prompts), batch_size):
            ids, mask = _padded(prompts[start : start + batch_size], pad_token_id=pad_token_id)
            out = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                # A pretrained model's own generation settings may bend the logits: these undo it.
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                pad_token_id=pad_token_id,
                eos_token_id=eos_token_id,
            )
            answers += [_until(row, end=eos_token_id) for row in out[:, ids.shape[1] :].tolist()]
    return answers


def _padded(prompts: list[list[int]], *, pad_token_id: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def _until(tokens: list[int], *, end: int | None) -> list[int]:
    return tokens[: tokens.index(end)] if end in tokens else tokens
