"""Saving and loading: a memory as a folder of its own, and whole models."""

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from memtx.adapters import MemoryAdapter
from memtx.checks import require
from memtx.expression import arguments
from memtx.models import MemoryTransformer, TensorMemoryLM
from memtx.models.sizes import sizes_of
from memtx.spec import lora
from memtx.spec.base_weights import looked_at, require_weights, sample
from memtx.spec.builder import Builder
from memtx.spec.card import model_card
from memtx.spec.describe import check_format, describe
from memtx.spec.files import (
    Layout,
    checksum,
    read_header,
    read_tensors,
    replacing,
    require_files,
    write_header,
    write_tensors,
)
from memtx.spec.header import base_record, check_header, dtypes, require_json, seal, version
from memtx.spec.processes import gathered, in_first, is_sharded
from memtx.spec.tensors import compare, left_in_file, on_meta, tensors_of

MEMORY = Layout(
    what="memory",
    header="memory.json",
    tensors="memory.safetensors",
    beside=("README.md",),
    folders=(lora.FOLDER,),
)
# The layout of transformers, whose loaders read the same folder; a tokenizer may stand in it.
MODEL = Layout(
    what="model",
    header="config.json",
    tensors="model.safetensors",
    beside=(
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "chat_template.jinja",
        "vocab.json",
        "merges.txt",
        "README.md",
    ),
    folders=(),
)
WHOLE = (MemoryTransformer, TensorMemoryLM)
# The name under which the face of transformers holds the model.
PREFIX = "model."


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a memory or a whole model as a folder: a spec and its tensors.

    Of a `MemoryAdapter` the memory is written, as `memory.json`, `memory.safetensors` and a model
    card, and the adapter of `peft` in its base, if there is one, in `lora/`; the base's weights
    are not. A `MemoryTransformer` is written as `config.json` and `model.safetensors`, which
    `load` and transformers' Auto classes both read.

    The folder is written under a temporary name beside `path` and renamed, so that `path` is
    either what it was or the whole new one. In several processes the first one writes; where the
    parameters are sharded all of them must call this, and the files are those of one process.

    Args:
        model: the adapter, or the whole model.
        path: the folder to write; what was saved there before is replaced, and a README.md or a
            tokenizer that stands beside it stays.

    Raises:
        ValueError: if `model` is neither, or `path` holds anything but what was saved.
        OSError: if the place cannot be written; whatever was there is untouched.
    """
    require(
        ok=isinstance(model, (MemoryAdapter, *WHOLE)),
        owner="save",
        rule="model must be a MemoryAdapter or a whole model",
        got={"model": type(model).__name__},
        remedy="pass the adapter, not its base, or a MemoryTransformer or TensorMemoryLM",
    )
    if isinstance(model, MemoryAdapter):
        save_memory(model, path, training=None, license_name=None, base_model=None)
        return
    header = {
        "architectures": ["MemtxForCausalLM"],
        "model_type": "memtx",
        **sizes_of(model),
        "spec": describe(model),
    }
    named = tensors_of(model)
    tensors = gathered({PREFIX + name: tensor for name, tensor in named.items()})

    def write() -> None:
        with replacing(path, layout=MODEL) as staging:
            write_tensors(tensors, staging / MODEL.tensors, target=path)
            sha256 = checksum(staging / MODEL.tensors)
            sums = {"sha256": sha256, "spec_sha256": seal(header["spec"])}
            write_header(header | sums, staging / MODEL.header)

    in_first(write, together=is_sharded(named))


def save_memory(
    adapter: MemoryAdapter,
    path: str | os.PathLike[str],
    *,
    training: Mapping[str, object] | None,
    license_name: str | None,
    base_model: str | None,
) -> None:
    """Write the memory of an adapter; see `save`.

    Args:
        adapter: the adapter.
        path: the folder to write.
        training: what is told of the training; None, nothing.
        license_name: the hub's name of a license; None names none.
        base_model: the base's id on the hub; None, what the base itself tells.

    Raises:
        ValueError: if `path` holds anything else, `training` is no JSON or `base_model` no id.
        OSError: if the place cannot be written; whatever was there is untouched.
    """
    require_json(training)
    base, named = adapter.base, tensors_of(memory_of_parts(arguments(adapter)))
    name = lora.adapter_name(base)
    sharded = is_sharded(named) or is_sharded(looked_at(base))
    # In this order in every process: parts are sent between them.
    weights, tensors = sample(base), gathered(named)
    state = None if name is None else lora.state_for_saving(base, name=name)
    sharded = sharded or state is not None

    def write() -> None:
        with replacing(path, layout=MEMORY) as staging:
            write_tensors(tensors, staging / MEMORY.tensors, target=path)
            header = {
                "memtx": version(),
                "base": base_record(base, weights=weights, base_model=base_model),
                "dtype": dtypes(tensors),
                "training": None if training is None else dict(training),
                "lora": lora.write_lora(base, staging, name=name, state=state),
                "spec": describe(adapter),
                "sha256": checksum(staging / MEMORY.tensors),
            }
            write_header(header | {"header_sha256": seal(header)}, staging / MEMORY.header)
            card = model_card(header, license_name=license_name)
            (staging / "README.md").write_text(card, encoding="utf-8")

    in_first(write, together=sharded)


def memory_of_parts(parts: Mapping[str, Any]) -> nn.Module:
    """Give all that a folder holds the tensors of, under the names they have in it.

    Args:
        parts: banks and insertions, among others.
    """
    names = ("banks", "insertions")
    return nn.ModuleDict({name: nn.ModuleList(parts[name]) for name in names})


def load_adapter(path: str | os.PathLike[str], base: nn.Module) -> MemoryAdapter:
    """Put a saved memory into its base, and the LoRA that it was saved with.

    Nothing is changed in `base` before spec, checksums, names, shapes, dtypes and the base's own
    weights have all been found right.

    Args:
        path: a folder that `save` wrote.
        base: the pretrained model it was trained on. If the folder holds a LoRA, `peft` puts it
            into a plain base, trainable; a PEFT model must have that very LoRA in it already.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is damaged, a tensor is missing, unexpected or of another shape, the
            spec is not sound, or `base` is another model.
        ModuleNotFoundError: if the folder holds a LoRA and peft is not installed.
    """
    owner = "load_adapter"
    folder = require_files(path, layout=MEMORY, owner=owner)
    header = read_header(folder / MEMORY.header, owner=owner)
    check_header(header, owner=owner)
    lora.require_lora(folder, record=header["lora"], owner=owner)
    parts = memory_parts(header["spec"], base=base, owner=owner)
    memory = memory_of_parts(parts)
    tensors = read_tensors(
        folder / MEMORY.tensors,
        sha256=header["sha256"],
        header=MEMORY.header,
        in_place=left_in_file(memory, prefix=""),
        owner=owner,
    )
    compare(wanted=tensors_of(memory), given=tensors, name=MEMORY.tensors, owner=owner)
    told = header["base"]
    name = f"{told['id']}, revision {told['revision']}" if told["id"] else told["architecture"]
    require_weights(told["weights"], base=base, name=name, owner=owner)
    memory.load_state_dict(tensors, strict=False, assign=True)
    with lora.with_lora(base, folder, record=header["lora"], owner=owner) as whole:
        return MemoryAdapter(base=whole, banks=parts["banks"], insertions=parts["insertions"])


def memory_parts(spec: dict[str, Any], *, base: nn.Module, owner: str) -> dict[str, Any]:
    """Build banks and insertions of a memory's spec, without numbers.

    Args:
        spec: the spec.
        base: the base, or a stand-in that agrees with everything.
        owner: who asks.

    Raises:
        ValueError: if the spec is not sound, is of no adapter, or does not fit `base`.
    """
    cls, parts = spec_parts(spec, base=base, owner=owner)
    require(
        ok=cls is MemoryAdapter,
        owner=owner,
        rule="the folder must hold a MemoryAdapter",
        got={"class": cls.__name__},
        remedy="load it with load()",
    )
    require(
        ok=parts["base"] is base,
        owner=owner,
        rule="the spec must record the adapter's base as a base",
        got={"base": spec["model"]["arguments"]["base"]},
        remedy="pass a folder as save() wrote it",
    )
    return parts


def load(path: str | os.PathLike[str]) -> Any:
    """Read a whole model that was saved, with exactly the numbers it had.

    Args:
        path: a folder that `save` wrote.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is damaged, a tensor is missing, unexpected or of another shape, or
            the spec is not sound.
    """
    folder = require_files(path, layout=MODEL, owner="load")
    header = read_header(folder / MODEL.header, owner="load")
    check_model_header(header, owner="load")
    model = outline_of_model(header["spec"], owner="load")
    require_spec(header, owner="load")
    tensors = read_tensors(
        folder / MODEL.tensors,
        sha256=header["sha256"],
        header=MODEL.header,
        in_place=left_in_file(model, prefix=PREFIX),
        owner="load",
    )
    named = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    compare(wanted=tensors_of(model), given=named, name=MODEL.tensors, owner="load")
    model.load_state_dict(named, strict=False, assign=True)
    return model


def check_model_header(header: Mapping[str, Any], *, owner: str) -> None:
    """Refuse a configuration without what memtx keeps in it.

    Args:
        header: what `config.json` holds; transformers may have put more into it.
        owner: who reads.

    Raises:
        ValueError: if it lacks the spec or a checksum.
    """
    missing = sorted({"spec", "sha256", "spec_sha256"} - set(header))
    require(
        ok=not missing,
        owner=owner,
        rule=f"{MODEL.header} must hold 'spec', 'sha256' and 'spec_sha256', as that of a model of "
        "memtx does",
        got={"missing": missing, "model_type": header.get("model_type")},
        remedy="pass a folder written by save()",
    )


def require_spec(header: Mapping[str, Any], *, owner: str) -> None:
    """Refuse the spec of a whole model that is sound, and not the one that was saved.

    Args:
        header: what `config.json` holds.
        owner: who reads.

    Raises:
        ValueError: if it has another checksum.
    """
    found = seal(header["spec"])
    require(
        ok=found == header["spec_sha256"],
        owner=owner,
        rule=f"the spec of {MODEL.header} must have its spec_sha256, {header['spec_sha256']}",
        got={"spec_sha256": found},
        remedy="fetch the folder again; to change a spec, build(spec) and save the model",
    )


def outline_of_model(spec: dict[str, Any], *, owner: str) -> nn.Module:
    """Build a whole model without numbers.

    Args:
        spec: its spec.
        owner: who asks.

    Raises:
        ValueError: if the spec is not sound, or of no whole model.
    """
    cls, parts = spec_parts(spec, base=None, owner=owner)
    require(
        ok=cls in WHOLE,
        owner=owner,
        rule="the folder must hold a whole model",
        got={"class": cls.__name__},
        remedy="load a memory with load_adapter(path, base)",
    )
    model: nn.Module = on_meta(lambda: cls(**parts), owner=owner)
    return model


def spec_parts(
    spec: dict[str, Any], *, base: nn.Module | None, owner: str
) -> tuple[type, dict[str, Any]]:
    """Give the class and the arguments of a spec's root, without numbers.

    Args:
        spec: the spec.
        base: for an adapter; None where there is none.
        owner: who asks.
    """
    check_format(spec)
    builder = Builder(shared=spec["shared"], base=base)
    cls, parts = on_meta(lambda: builder.root_arguments(spec["model"]), owner=owner)
    return cls, parts
