"""Batches by number: any process can make any batch, so nothing need be handed around."""

from typing import final

from memtx.checks import require, require_positive
from memtx.data.collate import collate, tensors
from memtx.data.fields import require_same
from memtx.data.protocols import ArrayRows, Batch, State
from memtx.data.sources import epoch_order
from memtx.interfaces import Rows


def require_rank(*, owner: object, rank: int, world_size: int) -> None:
    """Refuse a rank that no process has.

    Args:
        owner: who hands out batches.
        rank: number of the process.
        world_size: number of processes.

    Raises:
        ValueError: if it is not from 0 to `world_size` - 1.
    """
    require(
        ok=0 <= rank < world_size,
        owner=owner,
        rule="rank must be from 0 to world_size - 1",
        got={"rank": rank, "world_size": world_size},
        remedy="pass both as the Parallelism has them",
    )


@final
class Batches:
    """An endless sequence of shuffled batches, a pure function of seed and number.

    Every epoch goes through all rows once, in an order of its own; a batch may span two epochs.
    The position is the number of the batch that comes next.

    Args:
        rows: rows with `input_ids` and `labels`.
        batch_size: rows per batch.
        seed: decides every order.
        pad_token_id: fills rows to the longest of the batch, on the right, masked.

    Shapes:
        `batches[i]` gives `input_ids`, `labels` and `attention_mask`, each
        `[batch_size, longest]`.

    Raises:
        ValueError: if there are no rows; later, if one of them has other fields, not as many of
            each, or no integers.

    Source: the stateless index of deterministic loaders (as in MosaicML's streaming).

    Example:
        >>> from memtx.data import Batches
        >>> rows = [{"input_ids": [5, 6], "labels": [5, 6]}, {"input_ids": [7], "labels": [7]}]
        >>> batch = Batches(rows=rows, batch_size=2, seed=0, pad_token_id=0)[0]
        >>> batch["attention_mask"].sum().item()
        3
    """

    def __init__(
        self,
        *,
        rows: Rows,
        batch_size: int,
        seed: int,
        pad_token_id: int,
    ) -> None:
        require(
            ok=len(rows) > 0,
            owner=self,
            rule="rows must not be empty",
            got={"rows": len(rows)},
            remedy="pass at least one row",
        )
        require_positive(owner=self, sizes={"batch_size": batch_size})
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.pad_token_id = pad_token_id
        self._position = 0
        self._orders: dict[int, list[int]] = {}

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            # Two epochs are enough: batches are asked for in order and span at most two at once.
            self._orders = {key: self._orders[key] for key in self._orders if key == epoch - 1}
            self._orders[epoch] = epoch_order(seed=self.seed, epoch=epoch, count=len(self.rows))
        return self._orders[epoch]

    def __getitem__(self, index: int) -> Batch:
        """Give the batch of a number.

        Args:
            index: number of the batch, from 0.
        """
        first = index * self.batch_size
        numbers = []
        for position in range(first, first + self.batch_size):
            epoch, place = divmod(position, len(self.rows))
            numbers.append(self._order(epoch)[place])
        if isinstance(self.rows, ArrayRows):
            return tensors(self.rows.arrays(numbers))
        rows = [self.rows[number] for number in numbers]
        return collate(rows, pad_token_id=self.pad_token_id, length=None)

    def next_batch(self, *, rank: int, world_size: int) -> Batch:
        """Give this process's batch of the next `world_size`, and go past all of them.

        Args:
            rank: number of this process.
            world_size: number of processes.

        Raises:
            ValueError: if there is no process of that rank.
        """
        require_rank(owner=self, rank=rank, world_size=world_size)
        batch = self[self._position + rank]
        self._position += world_size
        return batch

    def state_dict(self) -> State:
        """Give the position."""
        return {**self._own(), "position": self._position}

    def load_state_dict(self, state: State) -> None:
        """Take up a position.

        Args:
            state: what `state_dict` gave.

        Raises:
            ValueError: if it was kept over other rows, or with another batch size or seed.
        """
        require_same(state, owner=self, own=self._own())
        self._position = state["position"]

    def _own(self) -> State:
        return {"rows": len(self.rows), "batch_size": self.batch_size, "seed": self.seed}
