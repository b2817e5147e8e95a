"""Quantities as people read them: a number comes in, a text with the unit that fits it goes out."""


def duration(days: float) -> str:
    for size, unit in ((1.0, "days"), (1 / 24, "h"), (1 / 1440, "min")):
        if days >= size:
            return f"{days / size:,.1f} {unit}"
    return f"{86_400 * days:.3g} s"


def span(low: float, high: float) -> str:
    """Two durations, with one unit where it is the same."""
    first, last = duration(low), duration(high)
    number, _, unit = first.partition(" ")
    return f"{number if last.endswith(f' {unit}') else first} to {last}"


def energy(mwh: float) -> str:
    return _scaled(mwh, ("MWh", "kWh", "Wh"))


def mass(tonnes: float) -> str:
    return _scaled(tonnes, ("t", "kg", "g"))


def dollars(amount: float) -> str:
    return f"${amount:,.0f}" if amount >= 100 else f"${amount:.2g}"


def tokens(count: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3f} {letter}"
    return f"{count:,.0f}"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    """In the first unit, each a thousandth of the one before, of which it is one or more."""
    for unit in units[:-1]:
        if value >= 1:
            return f"{value:,.1f} {unit}"
        value *= 1000
    return f"{value:,.1f} {units[-1]}"
