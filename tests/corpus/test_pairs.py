"""Pairs become documents with their image, once in each language, on one side of the split."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pictures import VISION, caption, file_of, pairs, picture, write_jsonl, write_parquet, write_tar

from panthalassa.config import Corpus
from panthalassa.corpus.funnel import REPORT, Report
from panthalassa.corpus.images import prepared
from panthalassa.corpus.manifest import Images, Manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.corpus.shards import decode_shard
from panthalassa.corpus.tokenizer import Tokenizer, read_tokenizer
from panthalassa.storage import Storage, open_storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

Config = Callable[..., Corpus]
Found = tuple[str, str, str, bytes]


def read_pairs(manifest: Manifest, storage: Storage) -> Iterator[Found]:
    """Split, domain, caption and image of each pair, checked token by token."""
    tokenizer = read_tokenizer(storage, manifest)
    assert manifest.images == Images(size=32, tokens=16)
    head = [Tokenizer.bos, Tokenizer.image_start, *[Tokenizer.image] * 16, Tokenizer.image_end]
    for shard in manifest.shards:
        if not shard.domain.startswith("images-"):
            assert shard.images is None
            continue
        packed = decode_shard(storage.read(shard.path))
        assert packed.images is not None
        assert packed.answers is not None
        assert shard.images == sum(map(len, packed.images))
        for row, lengths, answers, images in zip(
            packed.tokens, packed.lengths, packed.answers, packed.images, strict=True
        ):
            start, runs = 0, []
            for length, image in zip(lengths, images, strict=True):
                ids = row[start : start + length].tolist()
                assert ids[:19] == head
                assert ids[-1] == Tokenizer.eos
                yield shard.split, shard.domain, tokenizer.decode(ids[19:-1]), image
                runs += [start + 19, start + length]
                start += length
            assert answers == runs


def test_pairs_of_all_kinds_of_sources_beside_texts(
    tmp_path: Path, make_config: Config, make_sources: Callable[..., Path]
) -> None:
    raw = make_sources(tmp_path / "raw")
    write_parquet(raw / "table" / "a.parquet", pairs(range(20), "en", "de"))
    write_parquet(raw / "table" / "b.parquet", pairs(range(20, 30), "en"), struct=True)
    write_tar(raw / "web" / "a.tar", pairs(range(30, 50), "de"))
    write_jsonl(raw / "mine" / "a.jsonl", pairs(range(50, 60), "en"))
    again = file_of(picture(3), "JPEG", quality=95)
    write_parquet(raw / "more.parquet", [(again, "the same once more, and longer", "en")])
    write_parquet(raw / "some.parquet", pairs([4], "en"))

    manifest = prepare(make_config(tmp_path / "a", raw), lambda line: None, vision=VISION)
    storage = open_storage(str(tmp_path / "a"))
    found = list(read_pairs(manifest, storage))

    expected = {
        (f"images-{language}", caption(number, language))
        for numbers, languages in (
            (range(20), ("en", "de")), (range(20, 30), ("en",)), (range(30, 50), ("de",)),
            (range(50, 60), ("en",)),
        )
        for number in numbers
        for language in languages
    } - {("images-en", caption(3, "en"))}  # fmt: skip
    expected.add(("images-en", "the same once more, and longer"))
    assert Counter((domain, text) for _, domain, text, _ in found) == Counter(expected)
    shown = {text: image for _, _, text, image in found}
    for number in range(20):
        wanted = prepared(file_of(picture(number)), 32)
        assert shown[caption(number, "de")] == wanted
    report = Report.model_validate_json(storage.read(REPORT))
    assert report.total("duplicate")[0] == 1
    assert report.total("near_duplicate")[0] == 1
    sides: dict[bytes, set[str]] = {}
    for split, _, _, image in found:
        sides.setdefault(image, set()).add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert {split for split, *_ in found} == {"train", "held_out"}

    alone = prepare(
        make_config(tmp_path / "texts", make_sources(tmp_path / "only" / "raw")), lambda line: None
    )
    assert alone.images is None
