"""A whole language model, composed of blocks."""

from typing import Any, final

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from memtx.checks import require
from memtx.context import Context
from memtx.expression import component
from memtx.interfaces import Norm, Projection, Sublayer
from memtx.memory.owned import check_banks
from memtx.models.calls import answer
from memtx.models.halves import TransformerHalves
from memtx.ops.heads import Head, LinearHead, ModuleHead
from memtx.transformer import Linear, TiedHead, TokenEmbedding


@final
@component
class MemoryTransformer(nn.Module):
    """A causal language model: embedding, the listed layers in order, norm, head.

    Called and answering as a Hugging Face causal language model.

    Args:
        embedding: makes the stream from token ids.
        banks: every bank that a layer reads, each once; they are owned here so that sharing
            survives sharded training and saving. `[]` for a model without memory.
        layers: blocks, applied in order.
        norm: normalises the stream for the head.
        head: scores the vocabulary: `TiedHead` or a `Linear` of its own.

    Shapes:
        `input_ids [batch, length]` to `logits [batch, length, vocab_size]`.

    Raises:
        ValueError: if there is no layer, a width differs, or `banks` is not the banks that are
            read.

    Source: the pre-norm decoder of Llama, with the mixture-of-chapters source's memory in it.

    Example:
        >>> import torch
        >>> from memtx import *
        >>> def linear() -> Linear:
        ...     return Linear(in_features=8, out_features=8, bias=False, init=Normal(std=0.1))
        >>> embedding = TokenEmbedding(vocab_size=16, dim=8, init=Normal(std=0.1))
        >>> attend = Residual(norm=RMSNorm(dim=8, eps=1e-5), sublayer=SelfAttention(
        ...     q_proj=linear(), k_proj=linear(), v_proj=linear(), o_proj=linear(), num_heads=2,
        ...     num_kv_heads=2, rotary=NoPositions(), dropout=0.0))
        >>> model = MemoryTransformer(
        ...     embedding=embedding, banks=[], layers=[MemoryBlock(sublayers=[attend])],
        ...     norm=RMSNorm(dim=8, eps=1e-5), head=TiedHead(embedding=embedding))
        >>> model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 16])
    """

    def __init__(
        self,
        *,
        embedding: TokenEmbedding,
        banks: list[nn.Module],
        layers: list[Sublayer],
        norm: Norm,
        head: Projection,
    ) -> None:
        super().__init__()
        widths = {
            "embedding": embedding.dim,
            **{f"layers[{i}]": layer.dim for i, layer in enumerate(layers)},
            "norm": norm.dim,
            "head": head.in_features,
        }
        other = {name: width for name, width in widths.items() if width != embedding.dim}
        require(
            ok=bool(layers) and not other,
            owner=self,
            rule="layers must be at least one, and all parts must have the embedding's width",
            got={"layers": len(layers), "embedding": embedding.dim, **other},
            remedy="give all of them the width of the stream",
        )
        require(
            ok=head.out_features == embedding.vocab_size,
            owner=self,
            rule="head must score each token of the vocabulary",
            got={
                "head.out_features": head.out_features,
                "embedding.vocab_size": embedding.vocab_size,
            },
            remedy="make head.out_features equal to embedding.vocab_size",
        )
        check_banks(owner=self, banks=banks, readers=layers, reader="a layer")  # type: ignore[arg-type]
        self.embedding = embedding
        self.banks = nn.ModuleList(banks)
        self.layers = nn.ModuleList(layers)  # type: ignore[arg-type]
        self.norm = norm
        self.head = head

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Shaped[Tensor, "batch *known"] | None = None,
        position_ids: Int[Tensor, "rows length"] | None = None,
        labels: Int[Tensor, "batch length"] | None = None,
        past_key_values: Any | None = None,
        inputs_embeds: Float[Tensor, "batch length dim"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor | None = None,
    ) -> Any:
        """Score the vocabulary at every token: an output with `loss` and `logits`.

        Args:
            input_ids: token ids; absent when `inputs_embeds` is given.
            attention_mask: 1 at real tokens (of the cache too), 0 at padding; absent, all are real.
            position_ids: positions; absent, real tokens are counted. Where they start again, a new
                document starts.
            labels: targets, -100 where none; absent, no loss is made.
            past_key_values: a cache of transformers, which is filled; absent, one is made if
                `use_cache`.
            inputs_embeds: the stream itself; absent, it is made from `input_ids`.
            use_cache: whether to give a cache back; absent, only one that was given.
            logits_to_keep: score the last so many tokens, or those at these places, alone; absent
                or 0, all.
        """
        return answer(
            self,
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            labels=labels,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
        )

    def hidden_of(
        self, stream: Float[Tensor, "batch length dim"], context: Context
    ) -> Float[Tensor, "batch length dim"]:
        """Run the layers and the norm.

        Args:
            stream: the embedded tokens.
            context: what is known of them.
        """
        for layer in self.layers:
            stream = layer(stream, context)
        context.count_in_cache(stream)
        return self.norm(stream)

    @property
    def output_head(self) -> Head:
        """The head, as the chunked losses take it."""
        head: Any = self.head
        if isinstance(head, TiedHead):
            return LinearHead(weight=head.weight, bias=None, cap=None)
        if isinstance(head, Linear):
            return LinearHead(weight=head.weight, bias=head.shift, cap=None)
        return ModuleHead(module=head, cap=None)

    def halves(self) -> TransformerHalves:
        """Give stack and head apart, for losses that hold few logits at a time."""
        return TransformerHalves(model=self)

    @property
    def device(self) -> torch.device:
        """The device of the embedding."""
        return self.embedding.weight.device

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Continue token ids by transformers' `generate`; all arguments pass through.

        Args:
            *args: passed to `generate`.
            **kwargs: passed to `generate`, such as `max_new_tokens`, `do_sample`, `num_beams`.
        """
        from memtx.models.face import Generator

        generator: Any = Generator(model=self)
        return generator.generate(*args, **kwargs)
