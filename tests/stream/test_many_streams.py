"""Streams of several ranks at once, on a cluster with CPUs for few."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from image_shards import LENGTH, small_corpus
from phases import phase
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from panthalassa.config import Stream
from panthalassa.stream.curriculum import Curriculum
from panthalassa.stream.reader import BYTES_PER_TOKEN, open_stream

STREAMS = 8
STEPS = 5_000
GLOBAL_BATCH = 16


def test_no_scheduler_spins_while_others_read(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data's looks for finished tasks ten times a second. One without a share of CPUs would look
    hundreds of times, in the process of a rank."""
    looks: Counter[StreamingExecutor] = Counter()
    original = StreamingExecutor._scheduling_loop_step

    def counted(executor: StreamingExecutor, *rest: Any) -> bool:
        looks[executor] += 1
        return original(executor, *rest)

    monkeypatch.setattr(StreamingExecutor, "_scheduling_loop_step", counted)
    monkeypatch.setattr("panthalassa.stream.reader.BLOCK_BYTES", 64 * LENGTH * BYTES_PER_TOKEN)
    monkeypatch.setattr("panthalassa.stream.reader.SHORTEST", 1)
    corpus = small_corpus(tmp_path)
    first = phase(0, corpus=corpus.manifest.fingerprint, sequence_length=LENGTH)
    first = first.model_copy(update={"global_batch": GLOBAL_BATCH})
    pieces = list(Curriculum([first], corpus.manifest).pieces(range(STEPS)))
    start = time.monotonic()
    streams = [
        open_stream(corpus.reader(), pieces, 1, 0, Stream(read_tasks=2)) for _ in range(STREAMS)
    ]
    for stream in streams:
        next(stream)
    while any(thread.name.startswith("StreamingExecutor") for thread in threading.enumerate()):
        assert max(looks.values()) < 30 * (2 + time.monotonic() - start), "a scheduler spins"
        time.sleep(0.1)
    assert len(looks) == STREAMS
