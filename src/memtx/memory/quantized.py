"""A bank of 8-bit or 4-bit numbers, made from a trained one."""

import math
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from memtx.checks import refusal, require, require_positive
from memtx.expression import component
from memtx.interfaces import MemoryBank

# bitsandbytes takes larger blocks too, but its 4-bit kernel for CPUs with AVX-512 gives wrong
# numbers at 1024 (bitsandbytes 0.50.2), and with a larger block the error of a token only grows.
BLOCK_SIZES = (64, 128, 256, 512)


@final
@component
class QuantizedMemoryBank(nn.Module):
    """Memory tokens in 8 bits (blockwise) or 4 bits (NF4), for reading only.

    Make one with `from_bank`. The constructor alone gives tokens of zero, to be filled by loading.
    The tokens, laid end to end, are cut into blocks of `block_size` numbers; a block keeps its
    largest magnitude in `scales` and its numbers relative to it in `codes`. Both are buffers: they
    are saved and loaded as they are and get no gradient. Tokens come out in the dtype of `scales`.

    Relative error of normal tokens, and bytes relative to float32 (both measured):

    | block_size | error, 8 bits | bytes | error, 4 bits | bytes |
    |---|---|---|---|---|
    | 64 | 0.95% | 0.266 | 9.2% | 0.141 |
    | 128 | 1.02% | 0.258 | 9.6% | 0.133 |
    | 256 | 1.08% | 0.254 | 9.9% | 0.129 |
    | 512 | 1.14% | 0.252 | 10.2% | 0.127 |

    A block is the least that can be read: let it divide `dim`, or `dim` divide it.

    Args:
        num_memory_tokens: how many memory tokens there are.
        dim: their width.
        bits: 8 or 4.
        block_size: numbers that share a scale: 64, 128, 256 or 512.

    Shapes:
        `bank()` gives `[num_memory_tokens, dim]`.

    Raises:
        ValueError: if a size is below 1, or `bits` or `block_size` is another number.

    Source: bitsandbytes: 8-bit blockwise quantization (Dettmers et al. 2021, arXiv 2110.02861), and
    NF4 (Dettmers et al. 2023, arXiv 2305.14314) without its second quantization of the scales.

    Example:
        >>> from memtx import Normal, QuantizedMemoryBank, StandardMemoryBank
        >>> bank = StandardMemoryBank(num_memory_tokens=64, dim=64, init=Normal(std=1.0))
        >>> small = QuantizedMemoryBank.from_bank(bank=bank, bits=8, block_size=64)
        >>> bool((small() - bank()).norm() / bank().norm() < 0.015)
        True
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, *, num_memory_tokens: int, dim: int, bits: int, block_size: int) -> None:
        super().__init__()
        require_positive(owner=self, sizes={"num_memory_tokens": num_memory_tokens, "dim": dim})
        require(
            ok=isinstance(bits, int) and bits in (4, 8),
            owner=self,
            rule="bits must be 4 or 8",
            got={"bits": bits},
            remedy="pass 8 for a quarter of float32's bytes, or 4 for an eighth",
        )
        require(
            ok=isinstance(block_size, int) and block_size in BLOCK_SIZES,
            owner=self,
            rule=f"block_size must be one of {', '.join(map(str, BLOCK_SIZES))}",
            got={"block_size": block_size},
            remedy="pass 64 for the smallest error",
        )
        self.num_memory_tokens = num_memory_tokens
        self.dim = dim
        self.bits = bits
        self.block_size = block_size
        num_blocks = -(-num_memory_tokens * dim // block_size)
        codes = torch.zeros(num_blocks, block_size * bits // 8, dtype=torch.uint8)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", torch.zeros(num_blocks))

    @classmethod
    def from_bank(cls, *, bank: MemoryBank, bits: int, block_size: int) -> "QuantizedMemoryBank":
        """Give a quantized copy of a bank of any kind, on its device and in its dtype.

        Args:
            bank: the bank; it stays as it is.
            bits: 8 or 4.
            block_size: numbers that share a scale: 64, 128, 256 or 512.

        Raises:
            ValueError: if `bits` or `block_size` is not one of these, or a token is not finite.
            ImportError: if bitsandbytes is not installed.
        """
        tokens = bank().detach()
        made = cls(
            num_memory_tokens=bank.num_memory_tokens, dim=bank.dim, bits=bits, block_size=block_size
        )
        require(
            ok=bool(tokens.isfinite().all()),
            owner=made,
            rule="the tokens of the bank must be finite",
            got={"not finite": int((~tokens.isfinite()).sum())},
            remedy="quantize a bank that was trained without overflow",
        )
        made.to(device=tokens.device, dtype=tokens.dtype)
        numbers = tokens.float().flatten()
        padding = made.codes.shape[0] * block_size - numbers.numel()
        codes, scales = _quantize(F.pad(numbers, (0, padding)), bits=bits, block_size=block_size)
        made.codes.copy_(codes.view_as(made.codes))
        made.scales.copy_(scales)
        return made

    def forward(self) -> Float[Tensor, "num_memory_tokens dim"]:
        """Give all memory tokens."""
        count = self.num_memory_tokens * self.dim
        numbers = self.dequantize(self.codes, self.scales).flatten()[:count]
        return numbers.view(self.num_memory_tokens, self.dim)

    def rows(self, indices: Int[Tensor, "*any"]) -> Float[Tensor, "*any dim"]:
        """Give the memory tokens at `indices`; only the blocks that hold them are dequantized.

        Args:
            indices: which memory tokens, in any shape.
        """
        # As a matrix is indexed: from the end where negative, and refused beyond either end.
        numbers = torch.arange(self.num_memory_tokens, device=self.codes.device)[indices]
        first = numbers * self.dim
        last_block = (first + self.dim - 1) // self.block_size
        steps = torch.arange(self._blocks_of_a_row(), device=first.device)
        blocks = torch.minimum(first[..., None] // self.block_size + steps, last_block[..., None])
        values = self.dequantize(self.codes[blocks].flatten(0, -2), self.scales[blocks].flatten())
        values = values.view(*indices.shape, steps.numel() * self.block_size)
        if self.dim % self.block_size == 0:
            return values
        columns = torch.arange(self.dim, device=first.device) + first[..., None] % self.block_size
        return values.gather(-1, columns)

    def _blocks_of_a_row(self) -> int:
        """Give the most blocks that a row lies in: that of the row that starts last in a block."""
        latest = self.block_size - math.gcd(self.dim, self.block_size)
        return -(-(latest + self.dim) // self.block_size)

    def dequantize(
        self, codes: Shaped[Tensor, "blocks bytes"], scales: Float[Tensor, "blocks"]
    ) -> Float[Tensor, "blocks block_size"]:
        """Turn blocks of this bank, wherever they lie, into their numbers.

        Args:
            codes: the codes of each block.
            scales: its scale; numbers come out in their dtype.
        """
        size = self.block_size
        if codes.shape[0] == 0:
            return scales.new_empty(0, size)
        functional, absmax = _functional(), scales.float()
        if self.bits == 8:
            values: Tensor = functional.dequantize_blockwise(codes, absmax=absmax, blocksize=size)
        else:
            state = functional.QuantState(
                absmax=absmax,
                shape=torch.Size([codes.shape[0], size]),
                dtype=torch.float32,
                blocksize=size,
                quant_type="nf4",
            )
            values = functional.dequantize_4bit(codes.reshape(-1, 1), quant_state=state)
        return values.to(scales.dtype)


def _quantize(numbers: Tensor, *, bits: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Give the codes and the scale of each block of a vector that blocks divide."""
    functional = _functional()
    if bits == 8:
        codes, state = functional.quantize_blockwise(numbers, blocksize=block_size, nested=False)
    else:
        codes, state = functional.quantize_4bit(
            numbers, blocksize=block_size, compress_statistics=False, quant_type="nf4"
        )
    return codes, state.absmax


def _functional() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        message = refusal(
            owner="QuantizedMemoryBank",
            rule="bitsandbytes must be installed",
            got={"error": str(error)},
            remedy="pip install 'memtx[quantize]'",
        )
        raise ImportError(message) from error
    return bitsandbytes.functional
