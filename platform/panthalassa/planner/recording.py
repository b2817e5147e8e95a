"""What a trace is asked for and what it gives, as plain data that needs no torch to be read.

A `Job` decides a trace completely, so it is the key of the cache; a `Recording` is what the trace
saw, and goes to a file and back.
"""

import io
import json
import zipfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from panthalassa.config_model import Model
from panthalassa.planner.layout import Checkpointing, Precision

IN_TOWER = ("tower forward", "tower backward")
"""The phases whose blocks are the tower's."""


class Column(IntEnum):
    """The kinds of bytes in an event, each a number of bytes alive on the rank."""

    PARAMETER = 0
    """Shards of the weights, in fp32."""
    OPTIMIZER = 1
    """Both moments and the counters."""
    OLD_GRADIENT = 2
    """Shards of the gradient of earlier micro-batches."""
    NEW_GRADIENT = 3
    """Shards of the gradient that were reduced in this one."""
    REDUCED = 4
    """Not bytes that are alive: the sum of all shards that were reduced so far."""
    CAST = 5
    """Shards of weights in the precision in which they are gathered."""
    GATHERED = 6
    """Whole weights."""
    WHOLE_GRADIENT = 7
    """Whole gradients that wait for the last micro-batch."""
    ACTIVATION = 8
    """What the forward pass left alive."""
    TEMPORARY = 9
    """What the backward pass or the update allocated, recomputed activations among it."""
    INPUT = 10
    """Tokens, documents, labels and images."""
    OPERATION = 11
    """Not bytes: a number for the operation that allocated, the same in all traces."""


@dataclass(frozen=True)
class Job:
    """One trace: a model of so few layers, as one rank of `dp` x `tp`."""

    model: Model
    """With as many layers as are traced."""
    sequence_length: int
    loss_chunk: int
    precision: Precision
    dp: int
    tp: int
    replicas: int
    micro_batch: int
    images: int
    """In a sample, of a model that reads them."""
    activation_checkpointing: Checkpointing
    keep_gathered: bool
    micro_batches: int
    """That are traced."""
    begins_with_gradients: bool
    """Of micro-batches before the traced ones."""

    @property
    def mesh(self) -> tuple[int, int, int]:
        return self.dp, self.tp, self.replicas

    def dump(self) -> dict[str, Any]:
        plain = {key: getattr(self, key) for key in self.__dataclass_fields__}
        return {**plain, "model": self.model.identity()}

    @classmethod
    def load(cls, data: dict[str, Any]) -> "Job":
        return cls(**{**data, "model": Model.model_validate(data["model"])})


@dataclass
class Segment:
    """A stretch of the step: the bytes in each column at its begin and at each allocation."""

    part: str
    """`first` or `last` micro-batch, or `update`."""
    phase: str
    block: int | None
    """The block that it is of, or None: before the blocks, the head, the update. Blocks of the tower
    have phases of their own: those of IN_TOWER."""
    events: NDArray[np.int64] = field(repr=False)
    """[allocations, columns]"""


@dataclass
class Sent:
    """The collectives of one kind over one group."""

    part: str
    kind: str
    """`all_gather`, `reduce_scatter`, `all_reduce`, `all_to_all`."""
    group: str
    """`tp`, `shard`, `replicas`, or `all` for what belongs to none of these."""
    calls: int
    bytes: int
    """Of the whole tensors: gathered, or before they are scattered."""


@dataclass
class Recording:
    """What a trace saw on its rank."""

    segments: list[Segment]
    flops: dict[str, int]
    """By part of the step."""
    sent: list[Sent]
    rows: Counter[tuple[int, int]]
    """How many parameters have so many rows that FSDP shards, of so many bytes each."""

    def shard_bytes(self, shards: int) -> int:
        """Parameters of the first rank, which has the most, when `shards` ranks share the rows."""
        return sum(
            count * -(-rows // shards) * row_bytes for (rows, row_bytes), count in self.rows.items()
        )

    def dump(self) -> bytes:
        """A file, for `load`."""
        lengths = [len(segment.events) for segment in self.segments]
        events = np.concatenate([segment.events for segment in self.segments])
        head = {
            "segments": [(s.part, s.phase, s.block) for s in self.segments],
            "lengths": lengths,
            "flops": self.flops,
            "sent": [asdict(sent) for sent in self.sent],
            "rows": [(*row, count) for row, count in self.rows.items()],
        }
        file = io.BytesIO()
        np.savez_compressed(file, events=events, head=np.array(json.dumps(head)))
        return file.getvalue()

    @classmethod
    def load(cls, data: bytes) -> "Recording":
        """Raises ValueError for anything that `dump` did not write."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                events, head = file["events"], json.loads(str(file["head"]))
            pieces = np.split(events, np.cumsum(head["lengths"])[:-1])
            return cls(
                segments=[
                    Segment(part, phase, block, piece)
                    for (part, phase, block), piece in zip(head["segments"], pieces, strict=True)
                ],
                flops=head["flops"],
                sent=[Sent(**sent) for sent in head["sent"]],
                rows=Counter({(rows, size): count for rows, size, count in head["rows"]}),
            )
        except (OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"not a recording: {error}") from None
