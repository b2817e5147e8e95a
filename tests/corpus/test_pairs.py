"""Pairs become documents with their image, once in each language, on one side of the split."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pictures import (
    VISION,
    bomb,
    caption,
    file_of,
    moving,
    pairs,
    picture,
    write_jsonl,
    write_parquet,
    write_tar,
)

from panthalassa.config import Corpus
from panthalassa.corpus.funnel import REPORT, Report
from panthalassa.corpus.images import prepared
from panthalassa.corpus.manifest import MANIFEST, Images, Manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.corpus.shards import decode_shard
from panthalassa.corpus.show import table
from panthalassa.corpus.tokenizer import Tokenizer, read_tokenizer
from panthalassa.corpus.verify import verify
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage, open_storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

Config = Callable[..., Corpus]
Found = tuple[str, str, str, bytes]


def killed_at(create: Callable[..., None], name: str) -> Callable[..., None]:
    """Storage.create that is interrupted before it writes a file of that name."""

    def interrupted(storage: Storage, path: str, data: bytes) -> None:
        if path == name:
            raise KeyboardInterrupt
        create(storage, path, data)

    return interrupted


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
    (raw / "mine" / "unlisted").write_bytes(file_of(picture(70)))
    with (raw / "mine" / "a.jsonl").open("a") as lines:
        lines.write('{"image": "unlisted", "text": "ends as no image does"}\n')
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
    assert report.total("rule", rule="image-path")[0] == 1
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


BAD: dict[str, bytes | None] = {
    "image-unreadable": file_of(picture(200))[:-700],
    "image-animated": moving(),
    "image-too-large": bomb(30_000, 30_000),
    "image-missing": None,
}


def test_bad_pairs_are_counted_and_a_killed_preparation_goes_on(
    tmp_path: Path, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "raw"
    good = pairs(range(30), "en")
    bad = [(data, f"bad {rule}", "en") for rule, data in BAD.items()]
    more = [
        (file_of(picture(300)), "", "en"),
        (file_of(picture(301)), "long " * 200, "en"),
        (file_of(picture(302)), "Der Himmel über dem weiten Meer ist heute blau und hell.", None),
        (file_of(picture(303)), "x", None),
    ]
    write_tar(raw / "a.tar", [*good, *bad, *more])
    config = make_config(tmp_path / "corpus", raw)
    monkeypatch.setattr(Storage, "create", killed_at(Storage.create, MANIFEST))
    with pytest.raises(KeyboardInterrupt):
        prepare(config, lambda line: None, vision=VISION)
    monkeypatch.undo()
    lines: list[str] = []
    manifest = prepare(config, lines.append, vision=VISION)
    storage = open_storage(config.directory)

    report = Report.model_validate_json(storage.read(REPORT))
    for rule in (*BAD, "caption-missing", "caption-too-long"):
        assert report.total("rule", rule=rule)[0] == 1, rule
    found = {(domain, text) for _, domain, text, _ in read_pairs(manifest, storage)}
    assert {("images-de", more[2][1]), ("images-und", "x")} < found
    assert len(found) == 32
    assert any("32 images of 32 × 32 pixels, 16 tokens each" in line for line in lines)
    (told,) = (line for line in lines if "4 pairs are left out for their images: " in line)
    assert "1 image-animated (raw/a.tar, train/000031: GIF of several frames)" in told
    assert not storage.exists("staging")

    other = prepare(make_config(tmp_path / "again", raw), lambda line: None, vision=VISION)
    assert other == manifest
    assert prepare(config, lambda line: None, vision=VISION) == manifest

    assert not verify(storage).problems
    path = next(shard.path for shard in manifest.shards)
    data = bytearray(storage.read(path))
    data[len(data) // 2] ^= 1
    storage.write(path, bytes(data))
    (problem,) = verify(storage).problems
    assert path in problem

    header, *_, all = table(manifest, {})
    assert header.split()[-3:] == ["images", "its", "images"]
    assert sum(map(int, all.split()[-2:])) == 32


def test_why_nothing_is_left_of_the_pairs_is_said(tmp_path: Path, make_config: Config) -> None:
    write_tar(tmp_path / "a" / "a.tar", [(b"no image", "a caption", "en")] * 3)
    config = make_config(tmp_path / "none", tmp_path / "a")
    with pytest.raises(
        CorpusError, match=r"all of the 3 .* no image .* Add documents to corpus\.s"
    ) as e:
        prepare(config, lambda line: None, vision=VISION)
    assert "corpus.clean" not in str(e.value)
    write_tar(
        tmp_path / "b" / "b.tar", [(file_of(picture(n)), "long " * 200, "en") for n in (1, 2)]
    )
    config = make_config(tmp_path / "long", tmp_path / "b")
    config = config.model_copy(
        update={"images": config.images.model_copy(update={"near_duplicates": None})}
    )
    with pytest.raises(CorpusError, match="dropped are 2 by caption-too-long") as e:
        prepare(config, lambda line: None, vision=VISION)
    assert "near_duplicates" not in str(e.value)


def test_an_image_that_leaves_no_room_is_refused_at_once(
    tmp_path: Path, make_config: Config
) -> None:
    config = make_config(tmp_path / "corpus", tmp_path, sequence_length=20)
    with pytest.raises(CorpusError, match=r"takes 16 positions .* corpus\.sequence_length is 20"):
        prepare(config, lambda line: None, vision=VISION)
    assert not (tmp_path / "corpus").exists()
