"""Which weights a memory was trained on: some numbers of the base, written down and compared.

A base and its instruction-tuned sibling have equal architectures and sizes, and a memory of one
makes little sense in the other. Eight numbers of each tensor looked at tell them apart.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from memtx.adapters.families import decoder_layers, family_of, inner_model, is_peft
from memtx.checks import require
from memtx.spec.processes import whole

NUMBERS = 8  # of each tensor
TENSORS = 12  # of each layer looked at
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# One unit in bfloat16's last place, and float16's smallest numbers: weights are one and the same
# whether they were loaded in 16 or in 32 bits.
_RELATIVE, _ABSOLUTE = 2.0**-7, 1e-7


def looked_at(base: nn.Module) -> dict[str, Tensor]:
    """Give the embedding and parameters of the first, the middle and the last decoder layer.

    Those in fewer than 16 bits, offloaded, or of a PEFT adapter are left out.

    Args:
        base: the pretrained model, or a PEFT model of it.
    """
    model, depth = inner_model(base), len(decoder_layers(base))
    path = family_of(base).layers
    starts = [f"{path}.{number}." for number in sorted({0, depth // 2, depth - 1})]
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    named = dict(_own_parameters(base))
    found = {
        name: tensor
        for name, tensor in named.items()
        if any(tensor is parameter for parameter in embedding.parameters())
    }
    for start in starts:
        names = [name for name in named if name.startswith(start)][:TENSORS]
        found |= {name: named[name] for name in names}
    return found


def _own_parameters(base: nn.Module) -> Iterator[tuple[str, Tensor]]:
    adapted = is_peft(base)
    for name, parameter in inner_model(base).named_parameters():
        # A LoRA may train biases of the base itself.
        changed = adapted and ("lora_" in name or "modules_to_save" in name or "bias" in name)
        quantized = type(parameter).__module__.startswith("bitsandbytes")
        plain = parameter.dtype in _PLAIN and parameter.device.type != "meta" and not quantized
        if plain and not changed:
            yield name.replace(".base_layer", "").replace(".original_module", ""), parameter


def sample(base: nn.Module) -> dict[str, str]:
    """Give some numbers of the base's tensors, rounded to bfloat16, as hexadecimal digits.

    Under sharding every process must call it.

    Args:
        base: the pretrained model, or a PEFT model of it.
    """
    return {name: digits(whole(tensor)) for name, tensor in looked_at(base).items()}


def digits(tensor: Tensor) -> str:
    """Give some numbers of a tensor, rounded to bfloat16, as hexadecimal digits.

    Args:
        tensor: a whole one.
    """
    flat = tensor.reshape(-1)
    places = torch.arange(NUMBERS, device=flat.device) * flat.numel() // NUMBERS
    bits = flat[places].to(torch.bfloat16).cpu().view(torch.int16)
    return "".join(f"{number & 0xFFFF:04x}" for number in bits.tolist())


def _numbers(digits: str) -> Tensor:
    """Read digits back; what is no such text gives no number."""
    try:
        words = [int(digits[start : start + 4], 16) for start in range(0, len(digits), 4)]
    except (TypeError, ValueError):
        return torch.empty(0)
    signed = [word - 0x10000 if word >= 0x8000 else word for word in words]
    return torch.tensor(signed, dtype=torch.int16).view(torch.bfloat16).float()


def require_weights(recorded: Mapping[str, str], *, base: nn.Module, name: str, owner: str) -> None:
    """Refuse a base whose weights are not those that were recorded.

    Args:
        recorded: what `sample` gave of the base a memory was trained on.
        base: the base it is to be put into.
        name: of the base it was trained on.
        owner: who asks.

    Raises:
        ValueError: if numbers differ by more than loading in another dtype explains.
    """
    given = sample(base)
    common = [each for each in recorded if each in given]
    differing = [each for each in common if not agree(recorded[each], given[each])]
    comparable = bool(common) or not recorded or not given
    require(
        ok=comparable and not differing,
        owner=owner,
        rule="the base's weights must be those that the memory was trained on",
        got={"differing": f"{len(differing)} of {len(common)} tensors", "first": differing[:1]},
        remedy=f"load that base ({name or 'unnamed'}) as it was",
    )


def agree(one: str, other: str) -> bool:
    """Tell whether digits are of the same numbers, be they read in 16 or in 32 bits.

    Args:
        one: what `digits` gave.
        other: the same of another tensor.
    """
    first, second = _numbers(one), _numbers(other)
    return first.shape == second.shape and torch.allclose(
        first, second, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True
    )
