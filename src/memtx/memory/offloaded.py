"""A bank whose rows stay in the host's memory."""

from collections.abc import Callable
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.expression import component
from memtx.interfaces import MemoryBank
from memtx.memory.distant_rows import DistantRows, of_chapters, outside_traces
from memtx.memory.offloaded_cache import Traffic


@final
@component
class OffloadedMemoryBank(nn.Module):
    """Memory tokens in the host's memory, of which the last chapters read stay where they are read.

    `to`, `cuda` and their like leave the rows where they are. Read by a GPU, they are pinned at the
    first read; what is fetched is kept there as it is stored (8-bit codes stay codes), in
    `num_resident_chapters` places, the chapter read longest ago making room. A read of more
    chapters than there are places goes in several parts.

    The bank inside may learn: rows that are read with gradients are looked up on the host and
    copied, and their gradients go back to the host, where the optimizer then works: slower than a
    bank on the GPU. What was kept is forgotten when rows change; torch counts changes in place,
    but not those through `.data`: call `forget` after one.

    A trace of `torch.compile` breaks at a read. `bank()` gives all tokens, and is refused for more
    chapters than there is room for.

    Args:
        stored: a `StandardMemoryBank`, `ReducedDimMemoryBank`, `FactorizedMemoryBank` or
            `QuantizedMemoryBank` on the CPU.
        tokens_per_chapter: memory tokens that are fetched together; the chapters of its routers.
        num_resident_chapters: how many chapters are kept on a device that reads.

    Shapes:
        `bank()` gives `[num_memory_tokens, dim]`.

    Raises:
        ValueError: if chapters do not divide the bank, or it is of another kind; `bank()`, if the
            bank is larger than what is kept.

    Source: memtx's own; embeddings of recommenders are kept so (TorchRec's UVM caching).

    Example:
        >>> from memtx import Normal, OffloadedMemoryBank, StandardMemoryBank
        >>> bank = OffloadedMemoryBank(
        ...     stored=StandardMemoryBank(num_memory_tokens=64, dim=4, init=Normal(std=1.0)),
        ...     tokens_per_chapter=8, num_resident_chapters=2)
        >>> with torch.no_grad():
        ...     for index in (0, 7, 8):
        ...         assert torch.equal(bank.rows(torch.tensor(index)), bank.stored.tokens[index])
        >>> bank.traffic
        Traffic(hits=1, misses=2, fetched_ahead=0, bytes_moved=256)
    """

    def __init__(
        self, *, stored: MemoryBank, tokens_per_chapter: int, num_resident_chapters: int
    ) -> None:
        super().__init__()
        self.stored = stored
        self.tokens_per_chapter = tokens_per_chapter
        self.num_resident_chapters = num_resident_chapters
        self._distant = DistantRows(
            owner=type(self).__name__,
            stored=stored,
            tokens_per_chapter=tokens_per_chapter,
            num_resident_chapters=num_resident_chapters,
        )

    @property
    def num_memory_tokens(self) -> int:
        """How many memory tokens there are."""
        return self.stored.num_memory_tokens

    @property
    def dim(self) -> int:
        """Their width."""
        return self.stored.dim

    @property
    def traffic(self) -> Traffic:
        """Hits, misses and bytes since the bank was made, over all devices."""
        return self._distant.residents.traffic

    @property
    def resident_bytes(self) -> int:
        """How many bytes the places take, over all devices."""
        return self._distant.residents.nbytes

    def forward(self) -> Float[Tensor, "num_memory_tokens dim"]:
        """Give all memory tokens, on the host."""
        return self._distant.all(self.rows)

    def rows(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        """Give the memory tokens at `indices`, on the device of these.

        Args:
            indices: which memory tokens, in any shape.
        """
        return outside_traces(self._rows, indices)

    def _rows(self, indices: Tensor) -> Tensor:
        if self._learns():
            (rows,) = self._distant.tensors.values()
            found = rows[indices.to(rows.device)].to(indices.device)
            return self._distant.layout.tokens(found)
        self._pin_for(indices.device)
        return self._distant.read(indices)

    def chapters(
        self, numbers: Int[Tensor, "chapters"], size: int
    ) -> Float[Tensor, "chapters tokens dim"]:
        """Give all memory tokens of chapters; quicker than by their rows, where they are its own.

        Args:
            numbers: of the chapters.
            size: memory tokens of a chapter.
        """
        found = None
        if not self._learns():
            self._pin_for(numbers.device)
            found = self._distant.whole(numbers, size)
        return of_chapters(self.rows, numbers, size) if found is None else found

    def fetch_ahead(self, indices: Int[Tensor, "*any"]) -> None:
        """Begin to copy the chapters of memory tokens that will be read, if they are not there.

        Args:
            indices: which memory tokens, on the device that will read them.
        """
        self._pin_for(indices.device)
        self._distant.fetch_ahead(indices)

    def forget(self) -> None:
        """Keep nothing: the next reads fetch anew."""
        self._distant.residents.forget()

    def _learns(self) -> bool:
        inside = cast("nn.Module", self.stored)
        return torch.is_grad_enabled() and any(each.requires_grad for each in inside.parameters())

    def _pin_for(self, device: torch.device) -> None:
        """Move the rows to memory that a GPU can copy from while the host goes on."""
        if device.type != "cuda" or torch.compiler.is_compiling():
            return
        for tensor in self._distant.tensors.values():
            if not tensor.is_meta and not tensor.is_pinned():
                with torch.inference_mode(mode=False):
                    tensor.data = tensor.data.pin_memory()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> nn.Module:
        """Change dtypes as asked; the rows stay on the host."""
        held = list(self._distant.tensors.values())
        held += [each.grad for each in held if each.grad is not None]
        rows = {id(each) for each in held}

        def on_host(tensor: Tensor) -> Tensor:
            if id(tensor) not in rows:
                return fn(tensor)
            like = fn(torch.empty(0, dtype=tensor.dtype, device=tensor.device))
            if like.device.type == "meta":
                return fn(tensor)
            if tensor.is_meta:
                return torch.empty_like(tensor, dtype=like.dtype, device="cpu")
            return tensor.to(like.dtype)

        super()._apply(on_host, *args, **kwargs)  # type: ignore[no-untyped-call]
        return self
