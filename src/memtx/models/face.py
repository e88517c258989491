"""The face that transformers needs of a model: a configuration, a cache, `generate`."""

from typing import Any, final

from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel

from memtx.memory.prompts import require_one_prompt
from memtx.models.output import LanguageModelOutput
from memtx.models.sizes import sizes_of


@final
class MemtxConfig(PreTrainedConfig):
    """A Hugging Face configuration that holds the spec of a composed model.

    Args:
        spec: what `describe` gives; None for a configuration that is filled by loading.
        **kwargs: those of every Hugging Face configuration, such as `eos_token_id`.

    Source: `transformers.PreTrainedConfig`.

    Example:
        >>> MemtxConfig(spec=None).model_type
        'memtx'
    """

    model_type = "memtx"
    keys_to_ignore_at_inference = ["past_key_values", "router_losses"]  # noqa: RUF012

    def __init__(self, spec: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.spec = spec
        # The checksums of a folder are of what lies there, not of a model that may go on learning.
        kwargs.pop("sha256", None)
        kwargs.pop("spec_sha256", None)
        super().__init__(**kwargs)


def config_of(model: nn.Module, *, spec: dict[str, Any] | None) -> MemtxConfig:
    """Give the configuration of a composed model.

    Args:
        model: the model.
        spec: its spec, or None where it need not be rebuilt.
    """
    return MemtxConfig(spec=spec, **sizes_of(model))


def _repeats(model: nn.Module) -> list[str]:
    """Give each further name of the tensors of shared modules."""
    seen: set[tuple[int, str]] = set()
    names: list[str] = []
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name in [*module._parameters, *module._buffers]:
            names += [f"{prefix}.{name}"] if (id(module), name) in seen else []
            seen.add((id(module), name))
    return names


def _leave_repeats_out(face: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _repeats(face):
        state.pop(prefix + name, None)


def _miss_no_repeats(face: nn.Module, keys: Any) -> None:
    repeats = set(_repeats(face))
    keys.missing_keys[:] = [name for name in keys.missing_keys if name not in repeats]


class Face(PreTrainedModel, GenerationMixin):
    """A composed model behind the methods of a Hugging Face causal language model.

    Args:
        config: its configuration.
        model: the composed model.

    Shapes:
        `input_ids [batch, length]` to `logits [batch, length, vocab_size]`.

    Source: `transformers.PreTrainedModel` and `GenerationMixin`.

    Example:
        >>> Face.main_input_name
        'input_ids'
    """

    config_class = MemtxConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = False
    # The loss is a mean: a trainer that adds up several batches must divide by their number.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _no_split_modules = ["MemoryBlock"]  # noqa: RUF012

    def __init__(self, *, config: MemtxConfig, model: nn.Module) -> None:
        super().__init__(config)
        self.model = model
        # transformers ties tensors by their names. Here whole modules are shared, which nothing
        # needs to tie again if each tensor is known by its first name alone.
        self.register_state_dict_post_hook(_leave_repeats_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_miss_no_repeats)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as the parts' own initialisers made them."""

    def halves(self) -> Any:
        """Give stack and head of the composed model, for losses that hold few logits at a time."""
        return self.model.halves()

    def get_input_embeddings(self) -> nn.Module:
        """Give the token embedding."""
        embedding: nn.Module = self.model.embedding
        return embedding

    def init_weights(self) -> None:
        """Leave the weights as the parts' own initialisers made them, and the parts unmarked."""

    def _adjust_bias(self, output_embeddings: Any, input_embeddings: Any) -> None:
        """Leave biases alone: transformers would fit that of a shared map to a vocabulary."""

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does.

        Args:
            *args: passed to transformers.
            **kwargs: passed to transformers.

        Raises:
            ValueError: if a router chooses from the prompt, without a cache or where the prompt is
                read in chunks.
        """
        require_one_prompt(
            owner=type(self.model).__name__,
            parts=self.model.modules(),
            config=self.generation_config,
            args=args,
            options=kwargs,
        )
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: Any, inputs_embeds: Any | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Prepare a step of generation as transformers does.

        Args:
            input_ids: all token ids so far.
            inputs_embeds: the prompt as vectors; absent, it is that of the token ids.
            **kwargs: passed to transformers.

        Raises:
            ValueError: without a cache, if a router chooses from the prompt.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        # Loops other than `generate` come here too.
        require_one_prompt(
            owner=type(self.model).__name__,
            parts=self.model.modules(),
            config=None,
            args=(),
            options={"use_cache": inputs.get("past_key_values") is not None},
        )
        return inputs

    def forward(
        self,
        input_ids: Any | None = None,
        attention_mask: Any | None = None,
        position_ids: Any | None = None,
        labels: Any | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Any | None = None,
        use_cache: bool | None = None,
        logits_to_keep: Any | None = None,
        **kwargs: Any,
    ) -> LanguageModelOutput:
        """Call the composed model; see there.

        Args:
            input_ids: as there.
            attention_mask: as there.
            position_ids: as there.
            labels: as there.
            past_key_values: as there.
            inputs_embeds: as there.
            use_cache: as there.
            logits_to_keep: as there.
            **kwargs: what `generate` passes to every model; not used.
        """
        output: LanguageModelOutput = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )
        return output


@final
class Generator(Face):
    """The face of a model that is only asked to generate.

    Args:
        model: the composed model.

    Source: memtx's own.

    Example:
        >>> Generator.__name__  # made by MemoryTransformer.generate()
        'Generator'
    """

    def __init__(self, *, model: nn.Module) -> None:
        super().__init__(config=config_of(model, spec=None), model=model)
        # Of the face alone: parts of the model keep the modes they were put in.
        self.training = model.training
