"""Traces are made once; what is torn, rotten or of another program is made again."""

from dataclasses import replace
from pathlib import Path

import pytest

from panthalassa.config_model import Model
from panthalassa.planner import cache as cache_module
from panthalassa.planner.cache import TraceCache
from panthalassa.planner.layout import Layout, Workload
from panthalassa.planner.memory import footprints, traces

MODEL = Model(
    vocabulary_size=64, hidden_size=16, layers=1, heads=2, kv_heads=1, head_size=8, ffn_size=24
)
WORKLOAD = Workload(MODEL, 32, 4, "fp32")
LAYOUT, OTHER = Layout(2, 1, 1, 1, "none", False), Layout(2, 1, 1, 2, "none", False)


def test_a_plan_is_traced_once_and_again_when_its_file_is_not_sound(tmp_path: Path) -> None:
    cache = TraceCache(tmp_path / "traces")
    both = footprints(WORKLOAD, [LAYOUT, OTHER], cache, processes=1)
    assert both[LAYOUT].peak < both[OTHER].peak
    (((mine,),), ((other,),)) = traces(WORKLOAD, LAYOUT), traces(WORKLOAD, OTHER)
    file, sound = cache.path(mine), cache.path(mine).read_bytes()

    file.write_bytes(cache.path(other).read_bytes())
    swapped = footprints(WORKLOAD, [LAYOUT], cache)[LAYOUT]
    assert swapped.activations == both[OTHER].activations, "it was not read from the cache"

    for damaged in (b"", sound[:-1], sound[:40] + b"\0" + sound[41:], sound[:20]):
        file.write_bytes(damaged)
        assert cache.read(mine) is None
    assert footprints(WORKLOAD, [LAYOUT], cache, processes=1) == {LAYOUT: both[LAYOUT]}
    assert file.read_bytes()[32:] == sound[32:]
    assert len(list(cache.folder.iterdir())) == 2


def test_whatever_decides_a_trace_decides_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, (((job,),)) = TraceCache(tmp_path), traces(WORKLOAD, LAYOUT)
    changed = [
        replace(job, model=MODEL.model_copy(update={"ffn_size": 32})),
        *(replace(job, **{key: 2 * getattr(job, key)}) for key in ("dp", "tp", "micro_batch")),
        replace(job, precision="bf16"),
        replace(job, activation_checkpointing="full"),
        replace(job, keep_gathered=True),
    ]
    places = {cache.path(each) for each in [job, *changed]}
    assert len(places) == 1 + len(changed)
    monkeypatch.setattr(cache_module, "_torch", lambda: "another")
    assert cache.path(job) not in places
    monkeypatch.undo()
    monkeypatch.setattr(cache_module, "_code", lambda: "another")
    assert cache.path(job) not in places


def test_a_place_that_takes_no_files_keeps_nothing() -> None:
    cache, (((job,),)) = TraceCache(Path("/dev/null/traces")), traces(WORKLOAD, LAYOUT)
    cache.write(job, b"payload")
    assert cache.read(job) is None
