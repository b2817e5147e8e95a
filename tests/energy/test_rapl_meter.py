"""What the RAPL meter promises, over a powercap tree on disk.

The root user reads files of any mode, so a forbidden one is a `Path.read_text` that raises.
"""

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panthalassa.energy.meters import Absent, MeterLost
from panthalassa.energy.rapl import Rapl
from panthalassa.energy.sources import choose
from panthalassa.errors import ConfigError

if TYPE_CHECKING:
    from conftest import RaplTree

RANGE = 262_143_328_850


class Clock:
    def __init__(self) -> None:
        self.seconds, self.ticks = 0.0, 0

    def __call__(self) -> float:
        self.ticks += 1
        return self.seconds


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.02)
    pytest.fail("what was waited for did not come")


@pytest.fixture
def no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter reads only when it is read."""
    monkeypatch.setattr(Rapl, "period", None)


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> set[Path]:
    """Files put in here may not be read."""
    paths: set[Path] = set()
    read_text = Path.read_text

    def guarded(path: Path, *arguments: Any, **options: Any) -> str:
        if path in paths:
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", guarded)
    return paths


def test_packages_and_dram_are_summed_and_nothing_is_counted_twice(rapl: "RaplTree") -> None:
    counted = {"intel-rapl:0": "package-0", "intel-rapl:0:2": "dram"}
    counted |= {"intel-rapl:1": "package-1-die-0", "intel-rapl:1:0": "dram"}
    within = {"intel-rapl:0:0": "core", "intel-rapl:0:1": "uncore"}
    around = {"intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-1"}
    zones = counted | within | around
    for zone, name in zones.items():
        rapl.add(zone, name, energy_uj=5_000_000)
    with closing(Rapl(rapl.root)) as meter:
        packages = ("package-0", "package-1-die-0")
        assert meter.devices == tuple(p + s for p in packages for s in ("", "/dram"))
        assert meter.read() == 0
        for power, zone in enumerate(zones):
            rapl.set(zone, 5_000_000 + 10**power * 1_000_000)
        assert meter.read() == pytest.approx(1 + 10 + 100 + 1000)


def test_a_wrap_around_goes_on_counting(rapl: "RaplTree") -> None:
    rapl.add("intel-rapl:0", "package-0", RANGE - 20_000_000, RANGE)
    with closing(Rapl(rapl.root)) as meter:
        rapl.set("intel-rapl:0", 30_000_000)
        assert meter.read() == pytest.approx(50)
        rapl.set("intel-rapl:0", 31_000_000)
        assert meter.read() == pytest.approx(51)


def test_every_wrap_around_between_two_reads_is_seen(
    rapl: "RaplTree", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rapl, "period", 0.01)
    clock = Clock()
    rapl.add("intel-rapl:0", "package-0", 0, 100)
    with closing(Rapl(rapl.root, clock)) as meter:
        for energy in (40, 80, 20, 60, 0, 40):  # 40 µJ each time, twice around
            rapl.set("intel-rapl:0", energy)
            seen = clock.ticks
            wait_until(lambda seen=seen: clock.ticks >= seen + 2)  # type: ignore[misc]
        assert meter.read() == pytest.approx(240e-6)


@pytest.mark.usefixtures("no_thread")
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.integers(0, 1000), gains=st.lists(st.integers(0, 500), max_size=20))
def test_no_joule_is_lost_whatever_the_wraps(
    start: int, gains: list[int], rapl: "RaplTree"
) -> None:
    shutil.rmtree(rapl.root / "intel-rapl:0", ignore_errors=True)
    rapl.add("intel-rapl:0", "package-0", start, 1000)
    with closing(Rapl(rapl.root)) as meter:
        total, before = start, 0.0
        for gain in gains:
            total += gain
            rapl.set("intel-rapl:0", total % 1000)
            joules = meter.read()
            assert joules >= before
            assert joules == pytest.approx((total - start) / 1e6)
            before = joules


def test_a_reset_is_not_taken_for_a_wrap_around(rapl: "RaplTree") -> None:
    rapl.add("intel-rapl:0", "package-0", 50_000_000, RANGE)
    with closing(Rapl(rapl.root)) as meter:
        rapl.set("intel-rapl:0", 1_000_000)
        with pytest.raises(MeterLost, match=r"package-0.*fell from 50000000 to 1000000"):
            meter.read()
        rapl.set("intel-rapl:0", 60_000_000)
        with pytest.raises(MeterLost, match="fell from 50000000"):
            meter.read()


@pytest.mark.usefixtures("no_thread")
def test_after_a_stall_wraps_may_have_been_missed(rapl: "RaplTree") -> None:
    clock = Clock()
    rapl.add("intel-rapl:0", "package-0")
    with closing(Rapl(rapl.root, clock)) as meter:
        clock.seconds = 30.0
        rapl.set("intel-rapl:0", 9_000_000)
        assert meter.read() == pytest.approx(9)
        clock.seconds = 61.0
        with pytest.raises(MeterLost, match=r"rapl was not read for 31\.0 s"):
            meter.read()


def test_a_zone_that_becomes_forbidden_loses_the_meter(
    rapl: "RaplTree", forbidden: set[Path]
) -> None:
    rapl.add("intel-rapl:0", "package-0")
    with closing(Rapl(rapl.root)) as meter:
        assert meter.read() == 0
        forbidden.add(rapl.root / "intel-rapl:0" / "energy_uj")
        with pytest.raises(MeterLost, match="energy_uj may not be read"):
            meter.read()
        forbidden.clear()
        with pytest.raises(MeterLost, match="energy_uj may not be read"):
            meter.read()


@pytest.mark.parametrize("harm", ["gone", "folder", "text"])
def test_a_zone_that_can_not_be_read_any_more_loses_the_meter(rapl: "RaplTree", harm: str) -> None:
    rapl.add("intel-rapl:0", "package-0")
    energy = rapl.root / "intel-rapl:0" / "energy_uj"
    with closing(Rapl(rapl.root)) as meter:
        energy.unlink()
        if harm == "folder":
            energy.mkdir()
        elif harm == "text":
            energy.write_text("-1 µJ")
        with pytest.raises(MeterLost, match=str(energy)):
            meter.read()


def test_close_ends_the_thread_and_the_meter(rapl: "RaplTree") -> None:
    rapl.add("intel-rapl:0", "package-0")
    meter = Rapl(rapl.root)
    assert "rapl" in [thread.name for thread in threading.enumerate()]
    meter.close()
    assert "rapl" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(MeterLost, match="closed"):
        meter.read()


def test_auto_takes_rapl_for_a_rank_without_gpu(rapl: "RaplTree") -> None:
    rapl.add("intel-rapl:0", "package-0")
    meter = choose("auto", [], rapl.root)
    assert isinstance(meter, Rapl)
    assert meter.source == "rapl"
    meter.close()


def test_rapl_can_be_asked_for_on_a_rank_with_gpu(rapl: "RaplTree") -> None:
    rapl.add("intel-rapl:0", "package-0")
    meter = choose("rapl", ["GPU-0a"], rapl.root)
    assert isinstance(meter, Rapl)
    meter.close()


@pytest.mark.parametrize("zones", [{}, {"intel-rapl:0": "psys", "intel-rapl:0:0": "core"}])
def test_a_node_without_packages_is_absent(rapl: "RaplTree", zones: dict[str, str]) -> None:
    for zone, name in zones.items():
        rapl.add(zone, name)
    absent = choose("auto", [], rapl.root)
    assert isinstance(absent, Absent)
    assert absent.reason.startswith(
        f"no power source: this rank has no GPU; {rapl.root} has no intel-rapl zone"
    )
    with pytest.raises(ConfigError, match=r"energy\.source=rapl can not be read: .*no intel-rapl"):
        choose("rapl", [], rapl.root)


def test_a_node_without_powercap_is_absent(tmp_path: Path) -> None:
    absent = choose("auto", [], tmp_path / "nowhere")
    assert isinstance(absent, Absent)
    assert "no intel-rapl zone" in absent.reason


def test_one_forbidden_zone_leaves_no_partial_sum_but_a_remedy(
    rapl: "RaplTree", forbidden: set[Path]
) -> None:
    rapl.add("intel-rapl:0", "package-0")
    rapl.add("intel-rapl:1", "package-1")
    forbidden.add(rapl.root / "intel-rapl:1" / "energy_uj")
    absent = choose("auto", [], rapl.root)
    assert isinstance(absent, Absent)
    assert f"chmod a+r {rapl.root}/intel-rapl:*/energy_uj" in absent.reason
    with pytest.raises(ConfigError, match=r"energy\.source=rapl .*chmod a\+r"):
        choose("rapl", [], rapl.root)


def test_none_measures_nothing_and_says_so(rapl: "RaplTree") -> None:
    rapl.add("intel-rapl:0", "package-0")
    absent = choose("none", ["GPU-0a"], rapl.root)
    assert absent == Absent("energy is not measured: energy.source=none")
