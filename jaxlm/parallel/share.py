"""Which rows of a global batch a process builds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The rows of one process; by default all of them.

    A micro-batch's rows are divided into `num_shards` equal shards, as the mesh divides them. So a row is in the same
    micro-batch, and at the same place in it, however many processes there are.

    Attributes:
      shards: the numbers of those held, ascending. Processes that hold parts of the same rows hold the same shards.
      num_shards: how many there are.
      micro_batches: into how many a batch is split first.
    """

    shards: tuple[int, ...] = (0,)
    num_shards: int = 1
    micro_batches: int = 1

    def rows(self, num_rows: int) -> list[int]:
        """Returns the numbers of the rows held, one micro-batch after the other.

        Args:
          num_rows: of the global batch.

        Raises:
          ValueError: they do not divide evenly.
        """
        size, rest = divmod(num_rows, self.num_shards * self.micro_batches)
        if rest or not all(0 <= shard < self.num_shards for shard in self.shards):
            raise ValueError(
                f"shards {self.shards} of {self.num_shards} cannot hold an even share of {num_rows} rows in "
                f"{self.micro_batches} micro-batches"
            )
        firsts = [
            (part * self.num_shards + shard) * size for part in range(self.micro_batches) for shard in self.shards
        ]
        return [first + i for first in firsts for i in range(size)]
