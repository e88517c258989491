"""A bank whose rows stay in a file."""

from copy import deepcopy
from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from memtx.checks import require
from memtx.expression import component
from memtx.interfaces import MemoryBank
from memtx.memory.distant_rows import DistantRows, of_chapters, outside_traces
from memtx.memory.mapped_files import open_rows
from memtx.memory.offloaded_cache import Traffic
from memtx.memory.offloaded_rows import Store
from memtx.ops.tensor_files import is_mapped


@final
@component
class MappedMemoryBank(nn.Module):
    """Memory tokens in a file, of which the last chapters read stay where they are read.

    For reading only: a bank larger than the host's memory answers, and takes what
    `num_resident_chapters` chapters take, as they are stored. Make one with `from_file`, or load a
    memory that was saved with one: its rows then stay in the file of that memory. The constructor
    alone takes the rows that `stored` has, in memory.

    The rows are neither parameters nor buffers: no optimizer, no `to` and no copy of a module
    reaches them, and a copy shares them. They are in `state_dict`, and so in what `save` writes.
    Tokens come out in the dtype of the file, or in the one that `to` names. A trace of
    `torch.compile` breaks at a read. `bank()` gives all tokens, and is refused for more chapters
    than there is room for.

    Args:
        stored: a `StandardMemoryBank`, `ReducedDimMemoryBank`, `FactorizedMemoryBank` or
            `QuantizedMemoryBank`; it is taken over, and learns nothing any more.
        tokens_per_chapter: memory tokens that are fetched together; the chapters of its routers.
        num_resident_chapters: how many chapters are kept on a device that reads.

    Shapes:
        `bank()` gives `[num_memory_tokens, dim]`.

    Raises:
        ValueError: if chapters do not divide the bank, or it is of another kind; `bank()`, if the
            bank is larger than what is kept; `requires_grad_`, if it is to learn.

    Source: memtx's own, over the format of safetensors.

    Example:
        >>> import tempfile
        >>> from memtx import Normal, MappedMemoryBank, StandardMemoryBank, write_bank
        >>> path = Path(tempfile.mkdtemp()) / "bank.safetensors"
        >>> trained = StandardMemoryBank(num_memory_tokens=64, dim=4, init=Normal(std=1.0))
        >>> sha256 = write_bank(bank=trained, path=path)
        >>> with torch.device("meta"):
        ...     outline = StandardMemoryBank(num_memory_tokens=64, dim=4, init=Normal(std=1.0))
        >>> bank = MappedMemoryBank.from_file(
        ...     path=path, sha256=sha256, stored=outline,
        ...     tokens_per_chapter=8, num_resident_chapters=2)
        >>> torch.equal(bank.rows(torch.tensor([63, 0])), trained()[[63, 0]])
        True
    """

    _marker: Tensor

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
        self._hold(self._distant.tensors)
        for name, parameter in list(self._inside.named_parameters()):
            del self._inside._parameters[name]
            self._inside.register_buffer(name, parameter.detach())

    @classmethod
    def from_file(
        cls,
        *,
        path: str | Path,
        sha256: str | None,
        stored: MemoryBank,
        tokens_per_chapter: int,
        num_resident_chapters: int,
    ) -> "MappedMemoryBank":
        """Give a bank that reads the rows of a file where they lie.

        Args:
            path: what `write_bank` or `write_rows` wrote; it must stay as it is.
            sha256: the file's, which is read through once to compare; None compares nothing.
            stored: an outline, made in `torch.device("meta")`: it says what the file must hold.
            tokens_per_chapter: memory tokens that are fetched together.
            num_resident_chapters: how many chapters are kept on a device that reads.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file has another checksum, is none of safetensors, or does not hold
                exactly the tensors of `stored`.
        """
        made = cls(
            stored=stored,
            tokens_per_chapter=tokens_per_chapter,
            num_resident_chapters=num_resident_chapters,
        )
        wanted = {name.removeprefix("stored."): each for name, each in made.state_dict().items()}
        found = open_rows(
            Path(path), sha256=sha256, wanted=wanted, kept=made._distant.layout.names, owner=made
        )
        made.load_state_dict({f"stored.{name}": each for name, each in found.items()}, assign=True)
        return made

    @property
    def num_memory_tokens(self) -> int:
        """How many memory tokens there are."""
        return self.stored.num_memory_tokens

    @property
    def dim(self) -> int:
        """Their width."""
        return self.stored.dim

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names in `state_dict` of the tensors that stay in a file."""
        return tuple(f"stored.{name}" for name in self._distant.layout.names)

    @property
    def in_file(self) -> bool:
        """Whether the rows lie in a file now."""
        return all(map(is_mapped, self._distant.tensors.values()))

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
        return self._distant.read(indices).to(self._marker.dtype)

    def chapters(
        self, numbers: Int[Tensor, "chapters"], size: int
    ) -> Float[Tensor, "chapters tokens dim"]:
        """Give all memory tokens of chapters; quicker than by their rows, where they are its own.

        Args:
            numbers: of the chapters.
            size: memory tokens of a chapter.
        """
        found = self._distant.whole(numbers, size)
        if found is None:
            return of_chapters(self.rows, numbers, size)
        return found.to(self._marker.dtype)

    def fetch_ahead(self, indices: Int[Tensor, "*any"]) -> None:
        """Begin to read the chapters of memory tokens that will be asked for.

        Args:
            indices: which memory tokens, on the device that will read them.
        """
        self._distant.fetch_ahead(indices)

    def forget(self) -> None:
        """Keep nothing: the next reads fetch anew."""
        self._distant.residents.forget()

    def requires_grad_(self, *args: bool, **kwargs: bool) -> "MappedMemoryBank":
        """Refuse to learn."""
        wanted = [*args, *kwargs.values()] or [True]
        require(
            ok=not any(wanted),
            owner=self,
            rule="rows in a file are for reading only",
            got={"requires_grad": True},
            remedy="train an OffloadedMemoryBank, or any other, and write it with write_bank",
        )
        return self

    @property
    def _inside(self) -> nn.Module:
        return cast("nn.Module", self.stored)

    def _hold(self, rows: Store) -> None:
        """Keep rows out of reach of optimizers, moves and copies."""
        for name, tensor in rows.items():
            for table in (self._inside._parameters, self._inside._buffers):
                table.pop(name, None)
            setattr(self._inside, name, tensor.detach())
            if tensor.is_floating_point():
                # Says in which dtype tokens come out; of no size, it goes along with the module.
                marker = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                self.register_buffer("_marker", marker, persistent=False)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, each in self._distant.tensors.items():
            destination[f"{prefix}stored.{name}"] = each

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        assign = local_metadata.get("assign_to_params_buffers", False)
        given = {}
        for name, each in self._distant.tensors.items():
            key = f"{prefix}stored.{name}"
            found = state_dict.pop(key, None)
            if found is None:
                missing_keys += [key] if strict else []
            elif found.shape != each.shape:
                error_msgs.append(f"size mismatch for {key}: {found.shape} where {each.shape} is.")
            else:
                given[name] = found if assign else found.detach().clone()
        self._hold(given)
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "MappedMemoryBank":
        """Copy all but the rows, which are shared."""
        memo |= {id(each): each for each in self._distant.tensors.values()}
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        vars(made).update(deepcopy(vars(self), memo))
        return made
