"""From recordings of small models and micro-batches to those of large ones, exactly.

All numbers of a recording (bytes at each allocation, FLOPs, what is sent) are affine functions of
the layers and of the micro-batch, so two recordings give any third:
`large + steps * (large - small)`.

Which allocation corresponds to which: those of the first block to those of the first, of the last
block to those of the last. The blocks between are left out: in a forward pass they hold less than the
last one, in a backward pass no more than the last one, beside which the head's remains may be alive.
Where something repeats inside a segment (pieces of the loss, parameters to reduce or to clip), its
first and its last repetitions correspond, and those between are left out: what is alive at the n-th
is affine in n. Operations have numbers, so that other programs than that are found out.
"""

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from panthalassa.planner.recording import Column, Recording, Segment, Sent


def extend(small: Recording, large: Recording, steps: int) -> Recording:
    """The recording that lies `steps` times as far beyond `large` as `large` beyond `small`.

    The two differ by one layer, or by their micro-batch. Raises ValueError when they are not of the
    same program.
    """
    last, last_small = blocks(large) - 1, blocks(small) - 1
    known = {(s.part, s.phase, s.block): s for s in small.segments}
    segments = []
    for segment in large.segments:
        block = partner = segment.block
        if block and block == last:
            block, partner = last + steps * (last - last_small), last_small
        elif block and last != last_small:
            continue
        try:
            before = known[segment.part, segment.phase, partner]
        except KeyError:
            raise ValueError(f"no segment {segment.part} {segment.phase} {partner}") from None
        events = _line(before.events, segment.events, steps)
        segments.append(Segment(segment.part, segment.phase, block, events))
    flops = {
        part: value + steps * (value - small.flops[part]) for part, value in large.flops.items()
    }
    return Recording(segments, flops, _sent(small, large, steps), _rows(small, large, steps))


def blocks(recording: Recording) -> int:
    """How many blocks the model of a recording has."""
    return 1 + max(s.block for s in recording.segments if s.block is not None)


def _line(small: NDArray[np.int64], large: NDArray[np.int64], steps: int) -> NDArray[np.int64]:
    """Events that correspond, extended. Raises ValueError when the operations are not the same."""
    cut = _cut(small[:, Column.OPERATION], large[:, Column.OPERATION])
    rest = len(small) - cut
    partners = np.concatenate((large[:cut], large[len(large) - rest :]))
    extended: NDArray[np.int64] = partners + steps * (partners - small)
    return extended


def _cut(small: NDArray[np.int64], large: NDArray[np.int64]) -> int:
    """Where, in the middle of what repeats, `large` has more of it."""
    if len(small) > len(large):
        raise ValueError("the larger program has fewer operations")
    same = small == large[: len(small)]
    prefix = len(same) if same.all() else int(same.argmin())
    same = (small == large[len(large) - len(small) :])[::-1]
    suffix = len(same) if same.all() else int(same.argmin())
    if prefix + suffix < len(small):
        raise ValueError("the operations are not those of the same program")
    return (len(small) - suffix + prefix) // 2


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
