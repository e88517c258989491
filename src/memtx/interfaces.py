"""What parts need of the parts they are given."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from memtx.context import Context


@runtime_checkable
class Initializer(Protocol):
    """Fills a parameter in place when called with it."""

    def __call__(self, tensor: Tensor) -> None:
        """Fill `tensor` in place."""


@runtime_checkable
class Projection(Protocol):
    """A map of the last axis that knows both its widths."""

    @property
    def in_features(self) -> int:
        """Width of what it maps."""

    @property
    def out_features(self) -> int:
        """Width of what it gives."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[..., in_features]` to `[..., out_features]`."""


@runtime_checkable
class Activation(Protocol):
    """A map of each number by itself."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map a tensor to one of the same shape."""


@runtime_checkable
class Norm(Protocol):
    """A map of the stream onto its own shape, position by position."""

    @property
    def dim(self) -> int:
        """Width of the stream."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map `[..., dim]` to `[..., dim]`."""


@runtime_checkable
class Sublayer(Protocol):
    """A map of the stream onto its own shape that may use what is known of its tokens."""

    @property
    def dim(self) -> int:
        """Width of the stream."""

    def __call__(self, x: Tensor, context: Context | None) -> Tensor:
        """Map `[..., dim]` to `[..., dim]`; without a context, rows are whole and unpadded."""


@runtime_checkable
class Branch(Sublayer, Protocol):
    """A residual sub-layer, which can also give only what it adds."""

    def branch(self, x: Tensor, context: Context | None) -> Tensor:
        """Give what is added to the stream `[..., dim]`."""


@runtime_checkable
class Positions(Protocol):
    """Marks queries and keys with the positions of their tokens."""

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Map `[batch, heads, length, head_dim]` to the same shape."""

    def check(self, head_dim: int) -> None:
        """Refuse heads of another width than it is made for."""


@runtime_checkable
class MemoryBank(Protocol):
    """Memory tokens: their sizes, all of them, and chosen rows of them."""

    @property
    def num_memory_tokens(self) -> int:
        """How many memory tokens there are."""

    @property
    def dim(self) -> int:
        """Their width."""

    def __call__(self) -> Tensor:
        """Give the tokens `[num_memory_tokens, dim]`."""

    def rows(self, indices: Tensor) -> Tensor:
        """Give the tokens at `indices`, without making the rest."""


@runtime_checkable
class DistantBank(MemoryBank, Protocol):
    """A bank whose rows lie elsewhere than where they are read: they come where indices lie."""

    def chapters(self, numbers: Tensor, size: int) -> Tensor:
        """Give the tokens of whole chapters, `[chapters, size, dim]`."""

    def fetch_ahead(self, indices: Tensor) -> None:
        """Begin to fetch tokens that will be read; none is read wrongly without it."""


@runtime_checkable
class Rows(Protocol):
    """Rows of a data set by number: dicts with `input_ids` and `labels`."""

    def __len__(self) -> int:
        """Give the number of rows."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Give one row."""
