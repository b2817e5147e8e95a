"""From recordings of small models and micro-batches to those of large ones, exactly.

All numbers of a recording (bytes at each allocation, FLOPs, what is sent) are affine functions of the layers
and of the micro-batch, so two recordings give any third: `large + steps * (large - small)`.

Which allocation corresponds to which: those of the first two blocks have the same place from the begin of the
model, those of the others from its end. The blocks between are left out: what is alive at the n-th of them
is affine in n, so none is above both ends. Where the larger recording has more pieces of the loss, or
more parameters to clip, the first and the last allocations of a segment correspond, and the middle ones
are left out for the same reason.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from panthalassa.planner.recording import Recording, Segment, Sent

FROM_THE_BEGIN = 2
"""Blocks that keep their distance from the begin of the model."""


def extend(small: Recording, large: Recording, steps: int) -> Recording:
    """The recording that lies `steps` times as far beyond `large` as `large` beyond `small`.

    The two differ by one layer, or by their micro-batch. Raises ValueError when they are not of the
    same program.
    """
    added = blocks(large) - blocks(small)
    known = {(s.part, s.phase, s.block): s for s in small.segments}
    segments = []
    for segment in large.segments:
        early = segment.block is None or segment.block < FROM_THE_BEGIN
        partner = segment.block if early else segment.block - added
        try:
            before = known[segment.part, segment.phase, partner]
        except KeyError:
            raise ValueError(f"no segment {segment.part} {segment.phase} {partner}") from None
        number = segment.block if early else segment.block + added * steps
        events = _line(before.events, segment.events, steps)
        segments.append(Segment(segment.part, segment.phase, number, events))
    flops = {
        part: value + steps * (value - small.flops[part]) for part, value in large.flops.items()
    }
    return Recording(segments, flops, _sent(small, large, steps), _rows(small, large, steps))


def blocks(recording: Recording) -> int:
    """How many blocks a recording has segments of."""
    return len({s.block for s in recording.segments if s.block is not None})


def _line(small: NDArray[np.int64], large: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    half = min(len(small), len(large)) // 2
    rest = min(len(small), len(large)) - half
    a = np.concatenate((small[:half], small[len(small) - rest :]))
    b = np.concatenate((large[:half], large[len(large) - rest :]))
    extended: NDArray[np.int64] = b + steps * (b - a)
    return extended


def _sent(small: Recording, large: Recording, steps: int) -> list[Sent]:
    before = {(s.part, s.kind, s.group): s for s in small.sent}
    extended = []
    for sent in large.sent:
        less = before[sent.part, sent.kind, sent.group]
        calls, size = sent.calls - less.calls, sent.bytes - less.bytes
        extended.append(
            Sent(
                sent.part,
                sent.kind,
                sent.group,
                sent.calls + steps * calls,
                sent.bytes + steps * size,
            )
        )
    return extended


def _rows(small: Recording, large: Recording, steps: int) -> Counter[tuple[int, int]]:
    if large.rows == small.rows:
        return large.rows
    rows = Counter(large.rows)
    for row, count in (large.rows - small.rows).items():
        rows[row] += steps * count
    return rows
