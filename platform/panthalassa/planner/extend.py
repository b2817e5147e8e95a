"""From recordings of small models and micro-batches to those of large ones, exactly.

All numbers of a recording (bytes at each allocation, FLOPs, what is sent) are affine functions of
the layers, of the tower's layers, and of the micro-batch. So a small one, and one that is larger in
one of them, give any third: `small + steps * (large - small)`.

Which allocation corresponds to which: those of the first block to those of the first, of the last
block to those of the last. The blocks between are left out: in a forward pass they hold less than the
last one, in a backward pass no more than the last one, beside which the head's remains may be alive.
Where something repeats inside a segment (pieces of the loss, parameters to reduce or to clip), its
first and its last repetitions correspond, and those between are left out: what is alive at the n-th
is affine in n. Operations have numbers, so that other programs than that are found out.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from panthalassa.planner.recording import IN_TOWER, Column, Recording, Segment, Sent

Larger = tuple[Recording, int]
"""A larger recording, and how many times what it has more than the small one is added to that."""


def extend(small: Recording, *larger: Larger) -> Recording:
    """The recording that has of each `larger` one's surplus so many times as much.

    Each differs from the small one by a layer, by a layer of the tower, or by its micro-batch. Raises
    ValueError when they are not of the same program.
    """
    known = [({(s.part, s.phase, s.block): s for s in one.segments}, one, n) for one, n in larger]
    found = []
    for segment in small.segments:
        events, block, last = segment.events, segment.block, _last(small, segment)
        for partners, one, times in known:
            at = segment.block
            if block and at == last:
                at = _last(one, segment)
                block += times * (at - last)
            try:
                partner = partners[segment.part, segment.phase, at]
            except KeyError:
                raise ValueError(f"no segment {segment.part} {segment.phase} {at}") from None
            events = events + times * _surplus(segment.events, partner.events)
        found.append(Segment(segment.part, segment.phase, block, events))
    flops = {
        part: value + sum(times * (one.flops[part] - value) for one, times in larger)
        for part, value in small.flops.items()
    }
    return Recording(found, flops, _sent(small, larger), _rows(small, larger))


def _last(recording: Recording, like: Segment) -> int:
    """The last block there of the decoder or of the tower, as the block of a segment is."""
    tower = like.phase in IN_TOWER
    found = (s.block for s in recording.segments if (s.phase in IN_TOWER) is tower)
    return max((block for block in found if block is not None), default=0)


def _surplus(small: NDArray[np.int64], large: NDArray[np.int64]) -> NDArray[np.int64]:
    """What `large` has more at the events that correspond. Raises ValueError when the operations are
    not the same."""
    cut = _cut(small[:, Column.OPERATION], large[:, Column.OPERATION])
    rest = len(small) - cut
    surplus: NDArray[np.int64] = np.concatenate((large[:cut], large[len(large) - rest :])) - small
    return surplus


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


def _sent(small: Recording, larger: Sequence[Larger]) -> list[Sent]:
    found = []
    for sent in small.sent:
        calls, size = sent.calls, sent.bytes
        for one, times in larger:
            (more,) = (s for s in one.sent if _same(s, sent))
            calls += times * (more.calls - sent.calls)
            size += times * (more.bytes - sent.bytes)
        found.append(Sent(sent.part, sent.kind, sent.group, calls, size))
    return found


def _same(one: Sent, other: Sent) -> bool:
    return (one.part, one.kind, one.group) == (other.part, other.kind, other.group)


def _rows(small: Recording, larger: Sequence[Larger]) -> Counter[tuple[int, int]]:
    rows = Counter(small.rows)
    for one, times in larger:
        for row, count in (one.rows - small.rows).items():
            rows[row] += times * count
    return rows
