"""Images through the stream: all those of a sample, in the order of its tokens."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_shards import (
    LENGTH,
    ImageCorpus,
    Rows,
    as_text,
    jpeg,
    packed,
    picture,
    small_corpus,
    write_corpus,
)
from phases import phase

from panthalassa.config import Stream
from panthalassa.corpus.images import encoded
from panthalassa.corpus.manifest import Images
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.errors import ConfigError, PanthalassaError, ShardError
from panthalassa.stream import reader as reader_module
from panthalassa.stream.curriculum import Curriculum, Phase
from panthalassa.stream.images import bytes_of, from_arrow, positions_of, to_arrow
from panthalassa.stream.ledger import Consumed, SampleHashes, digest_of
from panthalassa.stream.order import Location, Mixture, Order, evenly
from panthalassa.stream.partition import Partition
from panthalassa.stream.reader import (
    BYTES_PER_TOKEN,
    GROWTH,
    PADDING,
    SHORTEST,
    Batch,
    Samples,
    ShardReader,
    open_stream,
    sample_bytes,
    segments,
)
from panthalassa.stream.row_group import read_row_group

GLOBAL_BATCH = 7
STEPS = 9

documents = st.lists(st.integers(0, 3), min_size=1, max_size=3)
fitting = documents.filter(lambda row: sum(5 + 5 * images for images in row) <= LENGTH)
layouts = st.lists(fitting, min_size=1, max_size=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> ImageCorpus:
    return small_corpus(tmp_path_factory.mktemp("pairs"))


def phase_of(corpus: ImageCorpus, **changes: Any) -> Phase:
    first = phase(0, corpus=corpus.manifest.fingerprint, sequence_length=LENGTH)
    return first.model_copy(update={"global_batch": GLOBAL_BATCH, **changes})


def stream(
    corpus: ImageCorpus, dp_size: int, rank: int, reader: ShardReader | None = None
) -> Iterator[Batch]:
    pieces = list(Curriculum([phase_of(corpus)], corpus.manifest).pieces(range(STEPS)))
    return open_stream(reader or corpus.reader(), pieces, dp_size, rank, Stream(ahead_megabytes=1))


def order_of(corpus: ImageCorpus) -> Order:
    return Order(corpus.manifest, LENGTH, Mixture(), phase_of(corpus).seed)


def assert_same(found: Samples, expected: Samples) -> None:
    for name in ("tokens", "documents", "counted", "images"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    assert found.images is not None
    assert found.images.dtype == np.uint8


def together(parts: list[Samples]) -> Samples:
    names = ("tokens", "documents", "counted", "images")
    return Samples(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@settings(max_examples=25, deadline=None)
@given(layouts, layouts, st.integers(1, 4), st.integers(1, 5), st.data())
def test_samples_read_in_parts_are_those_read_whole(
    text: Rows, pairs: Rows, rows_per_group: int, dp_size: int, data: st.DataObject
) -> None:
    """Any positions, cut among ranks and micro-batches: all images, in the order of the tokens."""
    with tempfile.TemporaryDirectory() as folder:
        plain = as_text(packed([[0] * len(row) for row in text], 0))
        shards = {"train/aa": [plain], "train/images-aa": [packed([[1], *pairs], 10)]}
        corpus = write_corpus(Path(folder), shards, rows_per_group)
        positions = np.array(data.draw(st.lists(st.integers(0, 999), min_size=1, max_size=20)))
        place, reader = order_of(corpus).locate(positions), corpus.reader()
        whole = reader.fetch(place, LENGTH)
        assert_same(whole, corpus.expected(place))
        for rank in range(dp_size):
            share = Partition(len(positions), dp_size, rank)
            mine = np.arange(share.start, share.start + share.samples)
            size = data.draw(st.integers(1, 5))
            parts = [mine[at : at + size] for at in range(0, len(mine), size)]
            found = [reader.fetch(place[part], LENGTH) for part in parts]
            if found:
                assert_same(together(found), reader.fetch(place[mine], LENGTH))
        every = [reader.fetch(place[np.array([number])], LENGTH) for number in range(len(place))]
        assert_same(together(every), whole)


def test_the_images_of_a_row_by_hand(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, {"train/images-aa": [packed([[2, 1], [0], [1]], 5)]})
    row = Location(*np.array([[0, 0, 0, 0, row, 0] for row in (2, 0, 1, 0)]).T)
    found = corpus.reader().fetch(row, LENGTH)
    expected = [picture(number) for number in (8, 5, 6, 7, 5, 6, 7)]
    np.testing.assert_array_equal(found.images, expected)
    assert positions_of(found.tokens).tolist() == [3, 9, 0, 9]
    assert not found.counted[found.tokens == Tokenizer.image].any()


@pytest.mark.parametrize("dp_size", [1, 2, 3])
def test_the_ranks_together_read_the_images_of_the_order_step_for_step(
    ray_cluster: None, corpus: ImageCorpus, dp_size: int
) -> None:
    by_rank = [list(stream(corpus, dp_size, rank)) for rank in range(dp_size)]
    order = order_of(corpus)
    for step in range(STEPS):
        place = order.locate(np.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH))
        batches = [batches[step] for batches in by_rank]
        assert_same(together([batch.samples for batch in batches]), corpus.expected(place))
        assert sum(batch.image_samples for batch in batches) == order.has_images[place.domain].sum()
        assert all(
            len(b.samples) == Partition(GLOBAL_BATCH, dp_size, r).samples
            for r, b in enumerate(batches)
        )
    assert by_rank[0][0].samples.images is not None


def test_a_rank_without_samples_has_no_images_in_the_right_shape(corpus: ImageCorpus) -> None:
    found = [batch.samples.images for batch in stream(corpus, 9, 8)]
    assert [images.shape for images in found if images is not None] == [(0, 4, 4, 3)] * STEPS


def test_a_batch_of_text_has_no_images_where_others_have(
    ray_cluster: None, corpus: ImageCorpus
) -> None:
    text = phase_of(corpus, image_share=0.0)
    pieces = list(Curriculum([text], corpus.manifest).pieces(range(2)))
    for batch in open_stream(corpus.reader(), pieces, 1, 0, Stream()):
        assert batch.samples.images is not None
        assert batch.samples.images.shape == (0, 4, 4, 3)
        assert batch.image_samples == 0


def test_a_corpus_of_text_pays_nothing(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No column of images goes through Ray, and none is in the samples."""
    columns = set()
    original = reader_module._batch

    def watched(found: pa.Table, *rest: Any) -> Batch:
        columns.update(found.column_names)
        return original(found, *rest)

    monkeypatch.setattr(reader_module, "_batch", watched)
    text = as_text(packed([[0], [0, 0]], 0))
    corpus = write_corpus(tmp_path, {"train/aa": [text]}, kind=None)
    batches = list(stream(corpus, 1, 0))
    assert columns == {"tokens", "documents", "account"}
    assert {type(batch.samples.images) for batch in batches} == {type(None)}
    assert corpus.reader().fetch(order_of(corpus).locate(np.arange(3)), LENGTH).images is None


def damaged(folder: Path, file: bytes | None) -> ImageCorpus:
    """The second row with images has another second file, or none; all hashes are right."""
    pairs = packed([[1], [2], [1], [3], [1]], 10)
    assert pairs.images
    pairs.images[1][1:] = [] if file is None else [file]
    text = as_text(packed([[0], [0, 0]], 0))
    return write_corpus(folder, {"train/aa": [text], "train/images-aa": [pairs]})


NAMES = ["truncated", "no image", "another size", "missing"]
DAMAGES = [
    (jpeg(3)[:-20], r"image 2 of 2: no sound JPEG: Premature end"),
    (b"no image", "image 2 of 2: no sound JPEG"),
    (jpeg(3, 5), r"image 2 of 2: 5 × 5 pixels, expected 4 × 4"),
    (None, "1 images and 6 tokens of images, of which each takes 3"),
]


@pytest.mark.parametrize(("file", "reason"), DAMAGES, ids=NAMES)
def test_an_image_that_is_none_is_named_with_its_shard(
    tmp_path: Path, file: bytes | None, reason: str
) -> None:
    corpus = damaged(tmp_path, file)
    place = evenly(corpus.manifest, "train", LENGTH, 99)
    where = f"shard {tmp_path}/train/images-aa/00000.parquet: row 1 of row group 0: "
    with pytest.raises(ShardError, match=where + reason) as refusal:
        corpus.reader().fetch(place, LENGTH)
    assert "stream.on_bad_shard=quarantine" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    good = np.flatnonzero((place.shard == 0) | (place.row != 1) | (place.row_group != 0))
    assert_same(corpus.reader().fetch(place[good], LENGTH), corpus.expected(place[good]))


@pytest.mark.parametrize(("file", "reason"), DAMAGES[:2], ids=NAMES[:2])
def test_the_error_comes_out_of_the_stream_in_one_line(
    ray_cluster: None, tmp_path: Path, file: bytes | None, reason: str
) -> None:
    with pytest.raises(PanthalassaError, match=reason) as refusal:
        list(stream(damaged(tmp_path, file), 1, 0))
    assert "Traceback" not in str(refusal.value)
    assert "UDF" not in str(refusal.value)


@pytest.mark.parametrize(("file", "reason"), DAMAGES, ids=NAMES)
def test_with_a_quarantine_such_a_sample_is_padding_and_loses_all_its_images(
    tmp_path: Path, file: bytes | None, reason: str
) -> None:
    corpus = damaged(tmp_path, file)
    place = evenly(corpus.manifest, "train", LENGTH, 99)
    found, whole = corpus.reader(quarantine=True).fetch_readable(place, LENGTH)
    (ill,) = np.flatnonzero(~whole)
    assert (place.shard[ill], place.row_group[ill], place.row[ill]) == (1, 0, 1)
    assert (found.documents[ill] == PADDING).all()
    assert not found.counted[ill].any()
    assert positions_of(found.tokens)[ill] == 0
    kept = np.flatnonzero(whole)
    rest = Samples(found.tokens[kept], found.documents[kept], found.counted[kept], found.images)
    assert_same(rest, corpus.expected(place[kept]))


def test_the_quarantine_comes_through_the_stream(ray_cluster: None, tmp_path: Path) -> None:
    corpus = damaged(tmp_path, b"no image")
    order = order_of(corpus)
    for step, batch in enumerate(stream(corpus, 1, 0, corpus.reader(quarantine=True))):
        place = order.locate(np.arange(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH))
        paired = order.has_images[place.domain]
        ill = np.flatnonzero(paired & (place.row_group == 0) & (place.row == 1))
        good = np.setdiff1d(np.arange(GLOBAL_BATCH), ill)
        assert batch.unreadable == ill.tolist()
        assert (batch.read, batch.image_samples) == (len(good), paired[good].sum())
        np.testing.assert_array_equal(batch.samples.images, corpus.expected(place[good]).images)


def test_a_missing_shard_of_images_is_quarantined_like_one_of_text(tmp_path: Path) -> None:
    corpus = damaged(tmp_path, jpeg(3))
    (tmp_path / "train/images-aa/00000.parquet").unlink()
    place = evenly(corpus.manifest, "train", LENGTH, 99)
    found, whole = corpus.reader(quarantine=True).fetch_readable(place, LENGTH)
    assert whole.tolist() == (place.shard == 0).tolist()
    assert found.images is not None
    assert found.images.shape == (0, 4, 4, 3)


def test_row_groups_are_kept_with_files_and_not_with_pixels(tmp_path: Path) -> None:
    big = Images(size=96, tokens=3)
    black = encoded(np.zeros((96, 96, 3), np.uint8))
    rows = packed([[1]] * 20, 0)
    rows = replace(rows, images=[[black]] * 20)
    corpus = write_corpus(tmp_path, {"train/images-aa": [rows]}, 20, big)
    kept = read_row_group(corpus.reader().cache, corpus.manifest.shards[0], 0)
    assert kept.images is not None
    assert kept.images.nbytes < 20 * (len(black) + 20) < bytes_of(big)
    assert len(corpus.reader().fetch(order_of(corpus).locate(np.arange(20)), LENGTH).images) == 20


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9), st.integers(1, 5))
def test_pixels_come_back_from_arrow(counts: list[int], size: int) -> None:
    kind = Images(size=size, tokens=1)
    shape = (sum(counts), size, size, 3)
    pixels = np.random.default_rng(size).integers(0, 256, shape, dtype=np.uint8)
    column = to_arrow(pixels, np.array(counts), kind)
    assert [len(value) for value in column.to_pylist()] == [bytes_of(kind) * n for n in counts]
    np.testing.assert_array_equal(from_arrow(pa.chunked_array([column]), kind), pixels)
    pieces = [column[at : at + 2] for at in range(0, len(column), 2)]
    np.testing.assert_array_equal(from_arrow(pa.chunked_array(pieces), kind), pixels)


def test_segments_count_the_bytes_of_pixels(corpus: ImageCorpus) -> None:
    kind = Images(size=512, tokens=3)
    (piece,) = Curriculum([phase_of(corpus)], corpus.manifest).pieces(range(1000))
    place = piece.order.locate(np.arange(10 * len(piece.order.slots)))
    images = len(corpus.expected(place).images) / len(place)
    assert piece.order.images_per_sample == pytest.approx(images, rel=0.02)
    sample = LENGTH * BYTES_PER_TOKEN + piece.order.images_per_sample * bytes_of(kind)
    for most in (2e7, 4e8):
        cut = list(segments(piece, 2, most, kind))
        assert [step for segment in cut for step in segment.steps] == list(range(1000))
        lengths, longest = [len(segment.steps) for segment in cut], int(most / (4 * sample))
        assert lengths[0] == max(1, longest // SHORTEST)
        for one, following in pairwise(lengths[:-1]):
            assert following == min(one * GROWTH, longest)
    without = list(segments(piece, 2, 1e8))
    assert len(without) == 1
    assert sample_bytes(piece, kind) == sample
    assert sample_bytes(piece, None) == LENGTH * BYTES_PER_TOKEN


def test_rows_with_images_are_never_cut(corpus: ImageCorpus) -> None:
    with pytest.raises(ConfigError, match=f"would cut rows of images: set it to {LENGTH}"):
        Order(corpus.manifest, LENGTH // 2, Mixture(), 0)
    cut = Location(*np.array([[0, 0, 2, 0, 0, 1]]).T)
    with pytest.raises(AssertionError, match="never cut"):
        corpus.reader().fetch(cut, LENGTH // 2)


def consumed(corpus: ImageCorpus, batches: list[Batch], step: int) -> Consumed:
    """What the ranks of a step record together."""
    return Consumed(
        step=step,
        samples=sum(batch.read for batch in batches),
        digest=digest_of(sum(batch.limbs for batch in batches)),
        images=sum(batch.image_samples for batch in batches),
    )


def test_what_the_ledger_says_of_images_does_not_depend_on_the_ranks(
    ray_cluster: None, corpus: ImageCorpus
) -> None:
    lines = [
        [
            consumed(corpus, list(ranks), step)
            for step, ranks in enumerate(zip(*streams, strict=True))
        ]
        for streams in ([stream(corpus, 1, 0)], [stream(corpus, 2, rank) for rank in range(2)])
    ]
    assert lines[0] == lines[1]
    order, hashes = order_of(corpus), SampleHashes(corpus.manifest.shards)
    place = order.locate(np.arange(GLOBAL_BATCH))
    assert lines[0][0].digest == digest_of(hashes.limbs(place).sum(axis=0))
    assert sum(line.images for line in lines[0]) > 0


def test_held_out_images_are_read_as_well(corpus: ImageCorpus) -> None:
    place = evenly(corpus.manifest, "held_out", LENGTH, 99)
    found = corpus.reader().fetch(place, LENGTH)
    assert_same(found, corpus.expected(place))
    assert found.images is not None
    assert len(found.images) == 9
