"""How the projected keys and values of a frozen memory are kept."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from memtx.checks import require

_MOST_CODE = 127


@runtime_checkable
class Kept(Protocol):
    """Projected memory tokens, of which all or some can be had."""

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""

    @property
    def is_plain(self) -> bool:
        """Whether `all` gives what is kept itself, without making anything."""

    def all(self) -> Tensor:
        """Give them all, `[tokens, kv_heads, width]`."""

    def chapters(self, numbers: Tensor, size: int) -> Tensor:
        """Give chapters of `size` tokens, `[chapters, size, kv_heads, width]`."""


@runtime_checkable
class Storage(Protocol):
    """Says in what form projected memory tokens are kept."""

    def keep(self, pieces: Iterable[Tensor]) -> Kept:
        """Keep the pieces `[tokens, kv_heads, width]`, laid end to end."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Plain:
    """Projected memory tokens as they are.

    Args:
        tokens: all of them.

    Shapes:
        `tokens` is `[tokens, kv_heads, width]`.

    Source: memtx's own.

    Example:
        >>> import torch
        >>> Plain(tokens=torch.zeros(4, 2, 8)).nbytes
        256
    """

    tokens: Float[Tensor, "memory kv_heads width"]

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.tokens.nbytes

    @property
    def is_plain(self) -> bool:
        """True."""
        return True

    def all(self) -> Float[Tensor, "memory kv_heads width"]:
        """Give them all; nothing is copied."""
        return self.tokens

    def chapters(
        self, numbers: Tensor, size: int
    ) -> Float[Tensor, "chapters tokens kv_heads width"]:
        """Give the chapters of these numbers.

        Args:
            numbers: which chapters.
            size: tokens of a chapter.
        """
        chosen: Tensor = self.tokens.unflatten(0, (-1, size))[numbers]
        return chosen


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class EightBits:
    """Projected memory tokens as whole numbers of -127 to 127, with a scale for each vector.

    Args:
        codes: the numbers.
        scales: what one of them is worth, for each token and head.

    Shapes:
        `codes` is `[tokens, kv_heads, width]`, `scales` `[tokens, kv_heads, 1]`.

    Source: absmax quantization by vector (Dettmers et al. 2022, arXiv 2208.07339), by torch's own
    operations, so that a compiler fuses it into what reads it.

    Example:
        >>> import torch
        >>> kept = InEightBits().keep([torch.randn(4, 2, 8)])
        >>> kept.nbytes, kept.all().shape
        (96, torch.Size([4, 2, 8]))
    """

    codes: Int8[Tensor, "memory kv_heads width"]
    scales: Float[Tensor, "memory kv_heads 1"]

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.codes.nbytes + self.scales.nbytes

    @property
    def is_plain(self) -> bool:
        """False."""
        return False

    def all(self) -> Float[Tensor, "memory kv_heads width"]:
        """Give them all, in the dtype in which they were made."""
        return self.codes.to(self.scales.dtype) * self.scales

    def chapters(
        self, numbers: Tensor, size: int
    ) -> Float[Tensor, "chapters tokens kv_heads width"]:
        """Give the chapters of these numbers; the others are not made.

        Args:
            numbers: which chapters.
            size: tokens of a chapter.
        """
        scales: Tensor = self.scales.unflatten(0, (-1, size))[numbers]
        codes: Tensor = self.codes.unflatten(0, (-1, size))[numbers]
        return codes.to(scales.dtype) * scales


@final
@dataclass(frozen=True, kw_only=True)
class AsProjected:
    """Keeps keys and values in the dtype in which they are projected.

    Args:
        None: it takes no arguments.

    Source: memtx's own.

    Example:
        >>> AsProjected()
        AsProjected()
    """

    def keep(self, pieces: Iterable[Tensor]) -> Plain:
        """Keep the pieces as they are.

        Args:
            pieces: `[tokens, kv_heads, width]` each.
        """
        return Plain(tokens=torch.cat(list(pieces)))


@final
@dataclass(frozen=True, kw_only=True)
class InDtype:
    """Keeps keys and values in another floating dtype, in which they are also read.

    Args:
        dtype: the dtype.

    Raises:
        ValueError: if it is not a floating dtype.

    Source: memtx's own.

    Example:
        >>> import torch
        >>> InDtype(dtype=torch.bfloat16).keep([torch.zeros(4, 2, 8)]).nbytes
        128
    """

    dtype: torch.dtype

    def __post_init__(self) -> None:
        require(
            ok=self.dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64),
            owner=self,
            rule="dtype must be one in which torch computes attention",
            got={"dtype": self.dtype},
            remedy="pass torch.bfloat16, or InEightBits() for fewer bytes",
        )

    def keep(self, pieces: Iterable[Tensor]) -> Plain:
        """Keep the pieces in this dtype.

        Args:
            pieces: `[tokens, kv_heads, width]` each.
        """
        return Plain(tokens=torch.cat([piece.to(self.dtype) for piece in pieces]))


@final
@dataclass(frozen=True, kw_only=True)
class InEightBits:
    """Keeps keys and values in 8 bits, and makes of them what is read when it is read.

    It saves bytes, not time. For normal keys and values the relative error is 0.6% at a head width
    of 64, and 0.7% at 128.

    Args:
        None: it takes no arguments.

    Source: see `EightBits`.

    Example:
        >>> InEightBits()
        InEightBits()
    """

    def keep(self, pieces: Iterable[Tensor]) -> EightBits:
        """Quantize the pieces.

        Args:
            pieces: `[tokens, kv_heads, width]` each.
        """
        codes, scales = [], []
        for piece in pieces:
            scale = piece.float().abs().amax(dim=-1, keepdim=True) / _MOST_CODE
            # What is stored is what is divided by: else its rounding would be an error of its own.
            rounded = scale.to(piece.dtype)
            divisor = torch.where(rounded > 0, rounded, 1.0).float()
            code = (piece.float() / divisor).round().clamp(-_MOST_CODE, _MOST_CODE)
            codes.append(code.to(torch.int8))
            scales.append(rounded)
        return EightBits(codes=torch.cat(codes), scales=torch.cat(scales))
