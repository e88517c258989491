"""The model class that lm-evaluation-harness knows as `memtx`."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import simple_parse_args_string
from torch import nn

from memtx.adapters import MemoryAdapter, MemoryLibrary
from memtx.evaluate.harness.loading import from_arguments
from memtx.evaluate.multiple_choice import shortened
from memtx.evaluate.scoring import score
from memtx.models.calls import WholeModel
from memtx.models.face import Generator

Request = tuple[tuple[str, str] | None, list[int], list[int]]


@final
@register_model("memtx")
class MemtxLM(HFLM):  # type: ignore[misc]
    """A model with memory, as lm-evaluation-harness asks it.

    Prompts are tokenized, batched and continued as its model `hf` does. Likelihoods are made by
    `memtx.evaluate.score`, which tells routers of memory where the prompt ends and what is padding.

    Args:
        model: an adapter or library of memories, a whole model of memtx, or any causal language
            model of Hugging Face.
        tokenizer: its tokenizer.
        **kwargs: those of the harness's `HFLM` for a model that is loaded already, such as
            `batch_size`, `max_length`, `add_bos_token`, `prefix_token_id`.

    Source: `HFLM` of lm-evaluation-harness.

    Example:
        >>> MemtxLM.__name__  # for lm_eval.simple_evaluate(model=MemtxLM(...), tasks=[...])
        'MemtxLM'
    """

    def __init__(self, *, model: nn.Module, tokenizer: Any, **kwargs: Any) -> None:
        super().__init__(pretrained=_as_pretrained(model), tokenizer=tokenizer, **kwargs)
        self.asked = model.eval()
        if isinstance(model, MemoryAdapter | MemoryLibrary):
            # The base was only shown for the methods that an adapter of it does not have.
            self._model = model

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
    ) -> "MemtxLM":
        """Load what `--model_args` names.

        Args:
            arg_string: `path=FOLDER,base=MODEL,...`.
            additional_config: what the command line says of batches and devices; None, nothing.
        """
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
    ) -> "MemtxLM":
        """Load what `model_args` name.

        Args:
            arg_dict: `path`, `base`, `tokenizer`, `dtype`, `device`, and arguments of `HFLM`.
            additional_config: what the command line says of batches and devices; None, nothing.
        """
        more = {
            name: value for name, value in (additional_config or {}).items() if value is not None
        }
        return cls(**from_arguments({**more, **arg_dict}))

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations; see `TemplateLM` of the harness."""
        if not requests:
            return []
        rows = [
            shortened((known, asked), max_length=self.max_length) for _, known, asked in requests
        ]
        scored = score(
            model=self.asked,
            rows=rows,
            batch_size=self._rows_per_batch(requests, given=kwargs.get("override_bs")),
            fill=self.tokenizer.pad_token_id,
            memories=None,
        )
        answers = [(each.total, each.is_greedy) for each in scored]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _rows_per_batch(self, requests: Sequence[Request], *, given: int | None) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        longest = max(requests, key=lambda request: len(request[1]) + len(request[2]))
        return given or int(self._detect_batch_size([longest], 0))


def _as_pretrained(model: nn.Module) -> Any:
    """Give what has the methods of a model of transformers."""
    if isinstance(model, MemoryAdapter | MemoryLibrary):
        # Memory is read by hooks on the base's own modules.
        return model.base
    return Generator(model=model) if isinstance(model, WholeModel) else model
