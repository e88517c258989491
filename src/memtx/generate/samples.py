"""Texts that a base makes up itself: a background where there is none, or what follows a text."""

from typing import Any

import torch

from memtx.checks import require, require_positive
from memtx.modes import evaluating


@torch.no_grad()
def samples(
    *,
    model: Any,
    prompts: list[list[int]],
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    seed: int,
    pad_token_id: int,
    eos_token_id: int | None,
) -> list[list[int]]:
    """Continue each prompt with tokens drawn from the model's own distribution.

    The same seed gives the same tokens on one machine; torch's own random state stays as it was.

    Args:
        model: a Hugging Face causal language model or a `MemoryAdapter`.
        prompts: token ids of each prompt, all of one length: a prompt of another is refused.
        max_new_tokens: at most so many tokens each.
        batch_size: prompts per call.
        temperature: what logits are divided by; 1.0 draws as the model has it.
        seed: decides the tokens.
        pad_token_id: fills what follows an end token; it is not given back.
        eos_token_id: ends a continuation and is not part of it; None if there is none.

    Raises:
        ValueError: if a size is below 1, prompts have several lengths or none, or `temperature` is
            not positive.
    """
    require_positive(
        owner="samples", sizes={"max_new_tokens": max_new_tokens, "batch_size": batch_size}
    )
    lengths = sorted({len(prompt) for prompt in prompts})
    require(
        ok=len(lengths) == 1 and lengths[0] > 0,
        owner="samples",
        rule="prompts must be of one length, at least 1 token",
        got={"lengths": lengths},
        remedy="sample prompts of each length by themselves",
    )
    require(
        ok=temperature > 0.0,
        owner="samples",
        rule="temperature must be positive",
        got={"temperature": temperature},
        remedy="pass 1.0, or use greedy",
    )
    found: list[list[int]] = []
    devices = [] if model.device.type == "cpu" else [model.device]
    with evaluating(model), torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            ids = torch.tensor(prompts[start : start + batch_size], device=model.device)
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=True,
                num_beams=1,
                temperature=temperature,
                # A pretrained model's own generation settings may bend the logits: these undo it.
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                no_repeat_ngram_size=0,
                pad_token_id=pad_token_id,
                eos_token_id=eos_token_id,
            )
            for row in out[:, ids.shape[1] :].tolist():
                found.append(row[: row.index(eos_token_id)] if eos_token_id in row else row)
    return found
