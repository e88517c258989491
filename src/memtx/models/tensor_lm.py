"""A language model of tensor memory alone: no softmax, no positions, linear in the length."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.checks import require, require_positive, require_probability
from memtx.context import Context
from memtx.expression import component
from memtx.initialize import Normal
from memtx.models.calls import answer
from memtx.models.halves import TransformerHalves
from memtx.ops.heads import Head, LinearHead
from memtx.tensor import TensorMemoryBlock, TensorMemoryStates
from memtx.transformer import TiedHead, TokenEmbedding


@final
@component
class TensorMemoryLM(nn.Module):
    """A causal language model of blocks of tensor memory: embedding, blocks, norm, tied head.

    Called and answering as a Hugging Face causal language model. What it carries from call to
    call is a state of fixed size: in a cache of transformers while it generates, or in
    `TensorMemoryStates` passed as `past_key_values`, which `stream` does over a text of any length.

    Args:
        vocab_size: number of tokens.
        dropout: probability of dropping a number of the embedded tokens.
        layers: the blocks, applied in order.

    Shapes:
        `input_ids [batch, length]` to `logits [batch, length, vocab_size]`.

    Raises:
        ValueError: if there is no layer, two differ in width, or a value is out of range.

    Source: `TensorMemoryLM` of the tensor-product source, which made embedding, norm and the
    head tied to the embedding inside, as here, and scaled the embedded tokens by `sqrt(dim)`.
    The embedding starts with a standard deviation of `0.5 / sqrt(dim)`, so that a token in the
    stream starts half as large as a norm makes it, whatever the width: 0.02, as GPT-2's, at 512.

    Example:
        >>> import torch
        >>> from memtx import *
        >>> config = TensorMemoryConfig(dim=4, eps=1e-6, use_delta_rule=True, max_delta=10.0,
        ...                             max_memory=100.0, max_norm=1000.0)
        >>> model = TensorMemoryLM(vocab_size=16, dropout=0.1, layers=[TensorMemoryBlock(
        ...     attention=LinearMemoryAttention(
        ...         memory=MultiHeadMemory([TensorMemory(config) for _ in range(2)]),
        ...         hidden_size=8, bias=True, normalize_qkv=False),
        ...     d_ff=32, dropout=0.1)])
        >>> model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 16])
    """

    def __init__(self, *, vocab_size: int, dropout: float, layers: list[TensorMemoryBlock]) -> None:
        super().__init__()
        require_positive(owner=self, sizes={"vocab_size": vocab_size})
        require_probability(owner=self, name="dropout", value=dropout)
        widths = [layer.dim for layer in layers]
        require(
            ok=len(set(widths)) == 1,
            owner=self,
            rule="layers must be at least one, all of one width",
            got={"widths": widths},
            remedy="give every block an attention of the same hidden_size",
        )
        self.vocab_size = vocab_size
        self.dropout = dropout
        self.layers = nn.ModuleList(layers)
        # Larger, and each token's own score, by the tied head, would stand out from the start;
        # smaller, and it is lost beside what the layers add.
        start = Normal(std=0.5 / math.sqrt(widths[0]))
        self.embedding = TokenEmbedding(vocab_size=vocab_size, dim=widths[0], init=start)
        self.norm = nn.LayerNorm(widths[0])
        self.head = TiedHead(embedding=self.embedding)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        attention_mask: Int[Tensor, "batch known"] | None = None,
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
            attention_mask: 1 at real tokens (of a cache of transformers too), 0 at padding;
                absent, all are real.
            position_ids: where they start again, a new document starts, with an empty memory;
                otherwise not used. Absent, a row is one document.
            labels: targets, -100 where none; absent, no loss is made.
            past_key_values: `TensorMemoryStates` or a cache of transformers, which is carried on;
                absent, one of transformers is made if `use_cache`.
            inputs_embeds: the embedded tokens before scaling; absent, made from `input_ids`.
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
        """Run all between embedding and head.

        Args:
            stream: the embedded tokens.
            context: what is known of them.
        """
        stream = stream * math.sqrt(self.embedding.dim)
        stream = F.dropout(stream, self.dropout, training=self.training)
        for layer in self.layers:
            stream = layer(stream, context)
        hidden: Tensor = self.norm(stream)
        return hidden

    @torch.no_grad()
    def stream(
        self, pieces: Iterable[Int[Tensor, "batch length"]], states: TensorMemoryStates
    ) -> Iterator[Float[Tensor, "batch length vocab"]]:
        """Read a text piece by piece in constant memory, and give the scores of each piece.

        Args:
            pieces: token ids of each piece; all have the same rows.
            states: where to continue, and where the states are left after every piece.
        """
        for piece in pieces:
            logits: Tensor = self(input_ids=piece, past_key_values=states).logits
            yield logits

    @property
    def output_head(self) -> Head:
        """The head, as the chunked losses take it."""
        return LinearHead(weight=self.head.weight, bias=None, cap=None)

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
