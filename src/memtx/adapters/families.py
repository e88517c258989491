"""Where the residual stream can be reached in each supported architecture."""

from dataclasses import dataclass
from typing import Any, final

from torch import nn

from memtx.checks import require

SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)


@final
@dataclass(frozen=True, kw_only=True)
class Family:
    """The names, inside one architecture, of the places a memory touches.

    Args:
        architecture: class name of the causal language model.
        layers: dotted path from the model to its list of decoder layers.
        branch_first: first module of a decoder layer's MLP branch: its input is the stream
            between attention and MLP.
        branch_last: last module of that branch: its output is added to the stream.

    Source: the module names of transformers' own classes.

    Example:
        >>> Family(architecture="LlamaForCausalLM", layers="model.layers",
        ...        branch_first="post_attention_layernorm", branch_last="mlp").layers
        'model.layers'
    """

    architecture: str
    layers: str
    branch_first: str
    branch_last: str


def _llama_like(architecture: str) -> Family:
    return Family(
        architecture=architecture,
        layers="model.layers",
        branch_first="post_attention_layernorm",
        branch_last="mlp",
    )


FAMILIES: dict[str, Family] = {
    name: _llama_like(name)
    for name in (
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
    )
}


def inner_model(base: nn.Module) -> nn.Module:
    """Give the Hugging Face model itself, out of a PEFT model if it is wrapped in one.

    Args:
        base: a Hugging Face causal language model, or a PEFT model of one.
    """
    inner: nn.Module = base.get_base_model() if is_peft(base) else base  # type: ignore[operator]
    return inner


def is_peft(base: nn.Module) -> bool:
    """Tell whether `base` is a model of the `peft` library.

    Args:
        base: the model to look at.
    """
    return hasattr(base, "peft_config") and hasattr(base, "get_base_model")


def family_of(base: nn.Module) -> Family:
    """Find the family of a model by its class.

    Args:
        base: a Hugging Face causal language model, or a PEFT model of one.

    Raises:
        ValueError: if no class of its line of inheritance is supported.
    """
    names = [cls.__name__ for cls in type(inner_model(base)).__mro__]
    known = [FAMILIES[name] for name in names if name in FAMILIES]
    require(
        ok=bool(known),
        owner="MemoryAdapter",
        rule=f"base must be one of {', '.join(sorted(FAMILIES))}",
        got={"base": names[0]},
        remedy="load a supported architecture, or add its Family to memtx.adapters.families",
    )
    return known[0]


def decoder_layers(base: nn.Module) -> nn.ModuleList:
    """Give the list of decoder layers of a model.

    Args:
        base: a Hugging Face causal language model, or a PEFT model of one.
    """
    layers: Any = inner_model(base).get_submodule(family_of(base).layers)
    found: nn.ModuleList = layers
    return found


def describe_base(base: nn.Module) -> dict[str, object]:
    """Give what a saved memory records of its base: architecture, sizes and where it came from.

    Args:
        base: a Hugging Face causal language model, or a PEFT model of one.
    """
    family = family_of(base)
    model: Any = inner_model(base)
    sizes = {name: getattr(model.config, name) for name in SIZES if hasattr(model.config, name)}
    return {
        "architecture": family.architecture,
        "sizes": sizes,
        "name": str(getattr(model.config, "_name_or_path", "")),
    }
