"""Models composed of memtx parts as models of the Hugging Face stack.

Importing this module registers them with transformers' Auto classes.
"""

import json
from pathlib import Path
from typing import Any, final

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from memtx.checks import require
from memtx.models.face import Face, MemtxConfig, config_of
from memtx.spec import build, describe
from memtx.spec.artifact import MODEL
from memtx.spec.files import checksum
from memtx.spec.header import seal

__all__ = ["MemtxConfig", "MemtxForCausalLM"]

# Bytes to whose multiples torch aligns its own tensors on a CPU.
_ALIGNMENT = 64


@final
class MemtxForCausalLM(Face):
    """A composed model that the Hugging Face stack can load, save, generate from and share.

    Args:
        config: holds the spec of the model.
        model: the composed model; None builds one from the spec, with fresh parameters.

    Raises:
        ValueError: if the configuration holds no spec, or another model than the folder.

    Source: `transformers.PreTrainedModel`.

    Example:
        >>> from memtx import *
        >>> embedding = TokenEmbedding(vocab_size=16, dim=4, init=Normal(std=0.1))
        >>> def linear() -> Linear:
        ...     return Linear(in_features=4, out_features=4, bias=False, init=Normal(std=0.1))
        >>> think = Residual(norm=RMSNorm(dim=4, eps=1e-5), sublayer=SwiGLU(
        ...     gate_proj=linear(), up_proj=linear(), down_proj=linear()))
        >>> model = MemoryTransformer(
        ...     embedding=embedding, banks=[], layers=[MemoryBlock(sublayers=[think])],
        ...     norm=RMSNorm(dim=4, eps=1e-5), head=TiedHead(embedding=embedding))
        >>> MemtxForCausalLM.from_model(model).config.hidden_size
        4
    """

    def __init__(self, config: MemtxConfig, *, model: nn.Module | None = None) -> None:
        require(
            ok=config.spec is not None,
            owner=self,
            rule="the configuration must hold the spec of a model",
            got={"spec": config.spec},
            remedy="use MemtxForCausalLM.from_model(model), or from_pretrained(path)",
        )
        spec: Any = config.spec
        super().__init__(config=config, model=build(spec) if model is None else model)

    @classmethod
    def from_model(cls, model: nn.Module) -> "MemtxForCausalLM":
        """Give a composed model this face; it is not copied.

        Args:
            model: the composed model.
        """
        made = cls(config_of(model, spec=describe(model)), model=model)
        # Of the face alone: parts of the model keep the modes they were put in.
        made.training = model.training
        return made

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load as transformers loads, but refuse a folder that is not exactly the model.

        Args:
            *args: passed to transformers.
            **kwargs: passed to transformers.

        Raises:
            ValueError: if a tensor is missing or unexpected: transformers would only warn.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        trouble = {
            name: sorted(info[f"{name}_keys"])
            for name in ("missing", "unexpected")
            if info[f"{name}_keys"]
        }
        require(
            ok=not trouble,
            owner=cls.__name__,
            rule="the folder must hold exactly the tensors of the spec",
            got=trouble,
            remedy="load the folder as it was saved",
        )
        _lay_out(model)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save as transformers saves, and record the tensors' checksum for `memtx.load`.

        Args:
            save_directory: the folder.
            *args: passed to transformers.
            **kwargs: passed to transformers.
        """
        super().save_pretrained(save_directory, *args, **kwargs)
        _record_checksum(Path(save_directory))

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        # Where saving uploads too, it does so before it comes back here.
        _record_checksum(Path(working_dir))
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def set_input_embeddings(self, value: Any) -> None:
        """Refuse: the embedding is part of the composition.

        Args:
            value: not used.

        Raises:
            NotImplementedError: always.
        """
        message = "MemtxForCausalLM: the embedding must be that of its spec, got another"
        raise NotImplementedError(f"{message}; compose a model with the embedding you want.")


def _lay_out(model: nn.Module) -> None:
    """Copy tensors out of a file's pages, where they do not lie as torch's own do.

    Matrix products of the same numbers may differ in the last bit with where they lie.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        plain = type(tensor.data) is Tensor and tensor.device.type == "cpu"
        if plain and tensor.data_ptr() % _ALIGNMENT:
            tensor.data = tensor.data.clone()


def _record_checksum(folder: Path) -> None:
    tensors, header = folder / MODEL.tensors, folder / MODEL.header
    # A model in several files has no one checksum; transformers alone reads it.
    if tensors.is_file() and header.is_file():
        found = json.loads(header.read_text(encoding="utf-8"))
        sums = {"sha256": checksum(tensors), "spec_sha256": seal(found["spec"])}
        whole = json.dumps(found | sums, indent=2)
        header.write_text(whole + "\n", encoding="utf-8")


AutoConfig.register("memtx", MemtxConfig)
AutoModelForCausalLM.register(MemtxConfig, MemtxForCausalLM)
