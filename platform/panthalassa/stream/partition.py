"""Who takes what of a step: a fixed global batch over any number of data-parallel ranks.

A rank takes a contiguous share of the step's samples, of ⌊G/dp⌋ or ⌈G/dp⌉. All ranks run the same
number of micro-batches, because FSDP's collectives are common; a rank that has fewer samples fills the
last ones with masked padding, which adds nothing to the loss or its gradient. As shares differ by one
sample at most, that is never more than one micro-batch a rank.

With fewer samples than ranks each of the first G ranks has one and the others none: these run their
one micro-batch on padding alone, and read nothing.
"""

from dataclasses import dataclass

import numpy as np

from panthalassa.stream.order import Integers


@dataclass(frozen=True)
class Partition:
    """The share of rank `rank` of `dp_size` in steps of `global_batch` samples."""

    global_batch: int
    dp_size: int
    rank: int

    @property
    def start(self) -> int:
        whole, extra = divmod(self.global_batch, self.dp_size)
        return self.rank * whole + min(self.rank, extra)

    @property
    def samples(self) -> int:
        """Samples of this rank in every step."""
        whole, extra = divmod(self.global_batch, self.dp_size)
        return whole + (self.rank < extra)

    def micro_batches(self, micro_batch: int) -> int:
        """Micro-batches in a step, the same for all ranks."""
        most = -(-self.global_batch // self.dp_size)
        return -(-most // micro_batch)

    def steps(self, indices: Integers) -> tuple[Integers, Integers]:
        """Of this rank's samples number `indices` [n], counted over all steps from 0 on: the step, and
        which of its global batch they are.

        Raises ValueError for a rank without samples, unless nothing is asked for.
        """
        if len(indices) and not self.samples:
            raise ValueError(
                f"rank {self.rank} of {self.dp_size} has no samples: a step has {self.global_batch}"
            )
        step, offset = np.divmod(indices, max(self.samples, 1))
        return step, self.start + offset
