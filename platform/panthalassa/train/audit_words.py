"""How an audit speaks of steps and samples."""

from collections.abc import Sequence


def named_steps(first: int, last: int) -> str:
    """Steps as they are shown while a run trains, the first of which is number 1."""
    return f"step {first + 1}" if first == last else f"steps {first + 1} to {last + 1}"


def named_ranges(passed: Sequence[tuple[int, int]]) -> str:
    return ", ".join(named_steps(first, end - 1) for first, end in passed) or "nothing"


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def with_images(samples: int) -> str:
    return f" ({samples:,} with images)" if samples else ""
