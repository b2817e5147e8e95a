"""What people claim of a training run: the quantities, their units, and the equations between them.

A claim `days=14d` comes in as text and goes out as a number in the quantity's own unit, or is refused
with the remedy. The one idea: every equation is a product, so that in logarithms all of them are linear,
and what is only known roughly (bytes a token, a GPU's share of the power) is a quantity with a range.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from panthalassa.errors import ConfigError, PanthalassaError
from panthalassa.model.flops import PEAK_BF16, known_gpu
from panthalassa.planner.hardware import tdp

COUNT = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
SHARE = {"": 1.0, "%": 0.01}
DAYS = {"": 1.0, "d": 1.0, "days": 1.0, "h": 1 / 24, "weeks": 7.0}
SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0}
BYTES = {
    **{"": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "PB": 1e15},
    **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
}
MWH = {"": 1.0, "kWh": 1e-3, "MWh": 1.0, "GWh": 1e3}
TONNES = {"": 1.0, "kg": 1e-3, "t": 1.0}
WATTS = {"": 1.0, "W": 1.0, "kW": 1e3}
FLOP = {"": 1.0, "GFLOP": 1e9, "TFLOP": 1e12, "PFLOP": 1e15, "EFLOP": 1e18}
FLOP_S = {"": 1.0, "TFLOP/s": 1e12, "TFLOPS": 1e12, "PFLOP/s": 1e15}
PLAIN = {"": 1.0}

TDP = tdp()
"""Watts by chip, as `PEAK_BF16` has its FLOP/s."""


@dataclass(frozen=True)
class Quantity:
    """Something that can be claimed, and what is taken for plausible where it is not."""

    unit: str
    """Behind its number, for people."""
    units: Mapping[str, float] | None
    """What may follow the number of a claim, and what that is in the quantity's own unit; None: nobody
    claims it."""
    low: float = 1e-15
    high: float = 1e40
    why: str = ""
    """The source of the range."""
    holds: bool = False
    """The range also binds a claim; otherwise a claim takes its place."""
    whole: bool = False


ARENA = (
    "subword tokenizers make 1.8 to 4.7 of Chinese and English (40 of them on cc100, Hugging Face space "
    "eson/tokenizer-arena); no token is shorter than a byte"
)

QUANTITIES: dict[str, Quantity] = {
    "gpus": Quantity("GPUs", COUNT, low=1, whole=True),
    "days": Quantity("days", DAYS),
    "params": Quantity("parameters", COUNT),
    "peak_flops": Quantity(
        "FLOP/s",
        FLOP_S,
        min(PEAK_BF16.values()),
        max(PEAK_BF16.values()),
        "the GPUs that are known",
    ),
    "tdp_watts": Quantity(
        "W", WATTS, min(TDP.values()), max(TDP.values()), "the GPUs that are known"
    ),
    "text_bytes": Quantity("bytes", BYTES),
    "epochs": Quantity("epochs", PLAIN, 1, 1, "the text is trained on once, if nothing is claimed"),
    "sequence_length": Quantity("tokens", COUNT, low=1, whole=True),
    "global_batch": Quantity("sequences", COUNT, low=1, whole=True),
    "steps": Quantity("steps", COUNT, low=1, whole=True),
    "goodput": Quantity(
        "", SHARE, 0.5, 1, "published runs: 59 % (OPT-175B's logbook) to above 90 % (Llama 3 405B)"
    ),
    "pue": Quantity("", PLAIN, 1, 2, "data centres: about 1.1 to 1.6 (Uptime Institute's surveys)"),
    "dollars_per_gpu_hour": Quantity("$/GPU-hour", PLAIN, 0.2, 20, "assumed"),
    "kg_co2_per_kwh": Quantity("kg/kWh", PLAIN, 0.004, 1.3, "from hydropower to coal (IPCC 2014)"),
    "attention": Quantity("", None, 1, 1.5, "attention's FLOPs beside 6 a parameter, 0 to 50 %"),
    "recomputation": Quantity("", None, 1, 4 / 3, "from none to a second forward pass"),
    "power_share": Quantity(
        "",
        None,
        0.3,
        2.04,
        "from near idle to the nameplate of a DGX A100, 6.5 kW for eight of 400 W",
    ),
    "tokens_per_second_per_gpu": Quantity("tokens/s/GPU", COUNT),
    "tokens_per_second": Quantity("tokens/s", COUNT),
    "step_seconds": Quantity("s", SECONDS),
    "batch_tokens": Quantity("tokens", COUNT),
    "tokens": Quantity("tokens", COUNT),
    "gpu_hours": Quantity("GPU-hours", COUNT),
    "flops_per_token": Quantity("FLOPs", FLOP),
    "flops": Quantity("FLOPs", FLOP),
    "mfu": Quantity(
        "", SHARE, 0.01, 1, "published runs have 13 to 64 %; none is above the peak", holds=True
    ),
    "hfu": Quantity("", SHARE, high=1, why="none is above the peak", holds=True),
    "bytes_per_token": Quantity("bytes/token", PLAIN, 1, 8, ARENA, holds=True),
    "watts_per_gpu": Quantity("W", WATTS),
    "energy_mwh": Quantity("MWh", MWH),
    "co2_tonnes": Quantity("t", TONNES),
    "cost_dollars": Quantity("$", COUNT),
}
"""By name, from what is given to what follows from it: of two claims, the later is sooner doubted."""

NEED_A_UNIT = {
    "time": ("days", "d"),
    "text": ("text_bytes", "TB"),
    "energy": ("energy_mwh", "MWh"),
    "co2": ("co2_tonnes", "t"),
    "power": ("watts_per_gpu", "W"),
}
"""Short names, which do not say the unit: the quantity, and an example."""


@dataclass(frozen=True)
class Relation:
    """target = constant x the product of quantities to these powers."""

    target: str
    constant: float
    powers: Mapping[str, int]

    def __str__(self) -> str:
        return f"{self.target} = {self.written(lambda name: name)}"

    def written(self, show: Callable[[str], str]) -> str:
        """The right side, with `show(name)` for each quantity."""
        above = [show(name) for name, power in self.powers.items() if power > 0]
        below = [show(name) for name, power in self.powers.items() if power < 0]
        if self.constant >= 1:
            above = [f"{self.constant:,g}", *above] if self.constant > 1 else above
        else:
            below.append(f"{1 / self.constant:,.0f}")
        return " / ".join([" x ".join(above), *below])


RELATIONS = (
    Relation("gpu_hours", 24, {"gpus": 1, "days": 1}),
    Relation("tokens_per_second", 1, {"tokens_per_second_per_gpu": 1, "gpus": 1}),
    Relation("tokens", 3600, {"gpu_hours": 1, "tokens_per_second_per_gpu": 1, "goodput": 1}),
    Relation("batch_tokens", 1, {"global_batch": 1, "sequence_length": 1}),
    Relation("batch_tokens", 1, {"tokens_per_second_per_gpu": 1, "gpus": 1, "step_seconds": 1}),
    Relation("tokens", 1, {"steps": 1, "batch_tokens": 1}),
    Relation("flops_per_token", 6, {"params": 1, "attention": 1}),
    Relation("flops", 1, {"flops_per_token": 1, "tokens": 1}),
    Relation("mfu", 1, {"tokens_per_second_per_gpu": 1, "flops_per_token": 1, "peak_flops": -1}),
    Relation("hfu", 1, {"mfu": 1, "recomputation": 1}),
    Relation("bytes_per_token", 1, {"text_bytes": 1, "epochs": 1, "tokens": -1}),
    Relation("watts_per_gpu", 1, {"tdp_watts": 1, "power_share": 1}),
    Relation("energy_mwh", 1e-6, {"gpu_hours": 1, "watts_per_gpu": 1, "pue": 1}),
    Relation("co2_tonnes", 1, {"energy_mwh": 1, "kg_co2_per_kwh": 1}),
    Relation("cost_dollars", 1, {"gpu_hours": 1, "dollars_per_gpu_hour": 1}),
)
"""Of a dense model. Days and GPU-hours are of wall time; goodput is its share that trains."""

NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Claim:
    """One claim, read."""

    name: str
    text: str
    """As it was written, with its name."""
    values: Mapping[str, float]
    """What it says of which quantities: of one, or, if it names a GPU, of its peak and its power."""

    @property
    def said(self) -> str:
        """The value alone, for people."""
        if self.name == "gpu":
            return self.text.partition("=")[2].strip()
        return told(self.name, self.values[self.name])


def read_claim(text: str) -> Claim:
    """Read `NAME=VALUE`: a number, with a unit or without, or the name of a GPU.

    Raises PanthalassaError that names the remedy.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not value:
        raise PanthalassaError(f"claim {text!r}: expected NAME=VALUE, such as days=14")
    if name == "gpu":
        return _gpu(text, value)
    needs_unit = name in NEED_A_UNIT
    quantity, example = NEED_A_UNIT.get(name, (name, ""))
    found = QUANTITIES.get(quantity)
    if found is None or found.units is None:
        raise PanthalassaError(f"claim {text!r}: unknown quantity {name!r}; {_names(name)}")
    number = NUMBER.match(value)
    if number is None:
        raise PanthalassaError(
            f"claim {text!r}: {value!r} is not a number; write {name}=1.5e3, say"
        )
    unit = value[number.end() :].strip()
    if needs_unit and not unit:
        raise PanthalassaError(
            f"claim {text!r} has no unit: write {name}={value}{example} or {quantity}=…"
        )
    if unit not in found.units:
        known = ", ".join(unit for unit in found.units if unit) or "none"
        raise PanthalassaError(
            f"claim {text!r}: unknown unit {unit!r}; {quantity} is in {found.unit or 'shares'} without "
            f"one; those that may be written: {known}"
        )
    amount = float(number.group().replace(",", "")) * found.units[unit]
    _possible(text, quantity, amount)
    return Claim(quantity, text, {quantity: amount})


def _gpu(text: str, value: str) -> Claim:
    try:
        name = known_gpu(value)
    except ConfigError as error:
        raise PanthalassaError(
            f"claim {text!r}: unknown GPU; known are {', '.join(PEAK_BF16)}. Claim peak_flops and "
            "tdp_watts of another"
        ) from error
    return Claim("gpu", text, {"peak_flops": PEAK_BF16[name], "tdp_watts": TDP[name]})


def _names(name: str) -> str:
    known = [*(key for key, one in QUANTITIES.items() if one.units), "gpu", *NEED_A_UNIT]
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _possible(text: str, name: str, amount: float) -> None:
    """Raise PanthalassaError for a value that no run can have."""
    quantity = QUANTITIES[name]
    if not (0 < amount < math.inf):
        raise PanthalassaError(f"claim {text!r} is impossible: {name} is finite and above 0")
    if quantity.units is SHARE and amount > 1:
        percent = f", or {name}={amount:g}% for {amount / 100:g}" if amount <= 100 else ""
        raise PanthalassaError(
            f"claim {text!r} is impossible: {amount:.4g} is {amount:.4%} and {name} is at most 100 %; "
            f"write a share up to 1{percent}"
        )
    if quantity.whole and abs(amount - round(amount)) > 1e-9 * amount:
        raise PanthalassaError(f"claim {text!r} is impossible: {name} is a whole number")
    if name == "pue" and amount < 1:
        raise PanthalassaError(f"claim {text!r} is impossible: a PUE is at least 1")


def told(name: str, amount: float) -> str:
    """A quantity's value for people, with its unit."""
    quantity = QUANTITIES[name]
    if quantity.units is SHARE:
        return f"{100 * amount:.3g} %"
    return f"{number(amount)} {quantity.unit}".strip()


def told_between(name: str, low: float, high: float) -> str:
    """The same for a range."""
    if high <= low * (1 + 1e-6):
        return told(name, low)
    if high > 1e30:
        return f"at least {told(name, low)}"
    if low < 1e-12:
        return f"at most {told(name, high)}"
    scale, show = (100, "{:.3g}".format) if QUANTITIES[name].units is SHARE else (1, number)
    if show(scale * low) == show(scale * high):
        return told(name, low)
    return f"{show(scale * low)} to {told(name, high)}"


def number(amount: float) -> str:
    """172,032; 1.115 trillion; 0.0041."""
    for size, word in ((1e12, "trillion"), (1e9, "billion")):
        if size <= amount < 1e15:
            return f"{amount / size:.4g} {word}"
    if 1000 <= amount < 1e9:
        return f"{amount:,.0f}"
    return f"{amount:.4g}"
