"""Sources with images give pairs, and what is missing or leads astray is named."""

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import file_of, pairs, picture, write_jsonl, write_parquet, write_tar

from panthalassa.corpus.documents import Document, Problem
from panthalassa.corpus.image_paths import ListedImages
from panthalassa.corpus.images import BadImage
from panthalassa.corpus.sources import content_sha256, list_files, read_documents
from panthalassa.errors import ConfigError, CorpusError
from panthalassa.exchange.pictures import path_of
from panthalassa.storage import Storage, open_storage

LIMIT = 1 << 20
IMAGE = file_of(picture(1))


def read(root: Path) -> list[Document | Problem]:
    files = list_files([str(root)], images=True).files
    return [found for file in files for found in read_documents(file, LIMIT)]


def documents(root: Path) -> list[Document]:
    found = read(root)
    assert not [each for each in found if isinstance(each, Problem)]
    return [each for each in found if isinstance(each, Document)]


def rules(root: Path) -> list[str]:
    """The rule by which each pair is dropped; empty where it has its image."""
    images = [document.image for document in documents(root)]
    return [image.rule if isinstance(image, BadImage) else "" for image in images]


def write_lines(root: Path, *lines: dict[str, object]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))


def write_members(path: Path, *members: tuple[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_the_same_pairs_come_from_each_kind_of_source(tmp_path: Path) -> None:
    expected = pairs(range(5), "en", "de")
    write_parquet(tmp_path / "a" / "a.parquet", expected)
    write_parquet(tmp_path / "b" / "b.parquet", expected, struct=True)
    write_tar(tmp_path / "c" / "c.tar", expected)
    write_jsonl(tmp_path / "d" / "d.jsonl", expected)
    for folder in "abcd":
        found = documents(tmp_path / folder)
        assert [(each.image, each.text, each.domain) for each in found] == expected


def test_without_images_the_same_sources_are_texts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", pairs(range(2), "en"))
    write_tar(tmp_path / "a.tar", pairs(range(2), "en"))
    listing = list_files([str(tmp_path)])
    assert [file.path for file in listing.files] == ["a.jsonl"]
    assert listing.left_out == {".tar": 1, ".png": 2}
    (file,) = listing.files
    assert all(isinstance(d, Document) and d.image is None for d in read_documents(file))


def test_a_path_stays_inside_its_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write_lines(
        root,
        *({"image": path, "text": "a"} for path in (
            "../secret.png", str(tmp_path / "secret.png"), "x/../../secret.png", "link.png",
            "folder/secret.png", "https://example.org/a.png", "a\0.png", "\ud800.png", "x" * 5000,
            "absent.png", "here", "", "large.png", "here/./a.png",
        )),
        {"image": None, "text": "a"},
    )  # fmt: skip
    (tmp_path / "secret.png").write_bytes(IMAGE)
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    (root / "here").mkdir()
    (root / "here" / "a.png").write_bytes(IMAGE)
    (root / "large.png").write_bytes(bytes(LIMIT + 1))
    path, missing = "image-path", "image-missing"
    assert rules(root) == [
        *[path] * 9, missing, missing, missing, "image-too-large", "", missing
    ]  # fmt: skip


def listed(root: Path) -> Iterator[Document | Problem]:
    """What is read with the images as they are listed now."""
    listing = list_files([str(root)], images=True)
    images = ListedImages.of(listing.images, [content_sha256(file) for file in listing.images])
    (file,) = listing.files
    return read_documents(file, LIMIT, images)


def test_only_listed_images_are_taken(tmp_path: Path) -> None:
    names = ["a.png", "b.PNG", "link.png", "a.bin", ".hidden/a.png", "pipe.png", "gone.png"]
    write_lines(tmp_path, *({"image": name, "text": "a"} for name in names))
    (tmp_path / ".hidden").mkdir()
    for number, name in enumerate(["a.png", "b.PNG", "a.bin", ".hidden/a.png"]):
        (tmp_path / name).write_bytes(file_of(picture(number)))
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "gone.png").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    found = [each.image for each in listed(tmp_path) if isinstance(each, Document)]
    assert [image.rule if isinstance(image, BadImage) else "" for image in found] == [
        "", "", "", "image-path", "image-path", "image-missing", "image-missing"
    ]  # fmt: skip
    assert found[:3] == [(tmp_path / name).read_bytes() for name in names[:3]]


@pytest.mark.parametrize("change", [lambda p: p.unlink(), lambda p: p.write_bytes(IMAGE + b"x")])
def test_an_image_that_changes_meanwhile_is_refused(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    write_lines(tmp_path, {"image": "a.png", "text": "a"})
    (tmp_path / "a.png").write_bytes(IMAGE)
    found = listed(tmp_path)
    change(tmp_path / "a.png")
    with pytest.raises(CorpusError, match=r"a\.png has changed"):
        list(found)


def test_a_failing_storage_does_not_decide_what_a_corpus_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(storage: Storage, path: str, sha256: str | None = None) -> bytes:
        raise OSError("AWS Error NETWORK_CONNECTION")

    write_lines(tmp_path, {"image": "a.png", "text": "a"}, {"text": "b"})
    (tmp_path / "a.png").write_bytes(IMAGE)
    monkeypatch.setattr(Storage, "read", fail)
    with pytest.raises(CorpusError, match=r"a\.png can not be read: AWS Error NETWORK"):
        read(tmp_path)


@pytest.mark.parametrize("image", ["a\ud800.png", "../a.png", "https://a.b/c.png", "a\0.png"])
def test_a_model_is_shown_only_what_a_corpus_would_take(tmp_path: Path, image: str) -> None:
    with pytest.raises(ConfigError, match="is not in the folder of the file"):
        path_of(open_storage(str(tmp_path)), "", image)


def test_a_link_to_the_folder_itself_is_no_way_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "real", {"image": "a.png", "text": "a"})
    (tmp_path / "real" / "a.png").write_bytes(IMAGE)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert rules(tmp_path / "link") == [""]


def test_a_tar_is_read_in_its_order_and_half_pairs_are_named(tmp_path: Path) -> None:
    write_members(
        tmp_path / "a.tar.gz",
        ("x/1.png", IMAGE), ("x/1.txt", b"one"), ("x/1.cls", b"7"),
        ("x/2.txt", b"no image"),
        ("x/3.jpg", IMAGE),
        ("x/4.json", json.dumps({"caption": "four", "language": "la", "url": "u"}).encode()),
        ("x/4.png", IMAGE),
        ("y/4.png", bytes(LIMIT + 1)), ("y/4.txt", b"large"),
        ("z.1.png", IMAGE), ("z.2.png", IMAGE), ("z.txt", b"two images"),
        ("only.npy", b"\0"),
    )  # fmt: skip
    found = documents(tmp_path)
    assert [(each.text, each.domain) for each in found] == [
        ("one", ""), ("no image", ""), ("", ""), ("four", "la"), ("large", ""), ("two images", ""),
    ]  # fmt: skip
    assert rules(tmp_path) == [
        "", "image-missing", "", "", "image-too-large", "image-several"
    ]  # fmt: skip
    assert found[3].provenance.url == "u"
    assert found[0].provenance.place.endswith("a.tar.gz, x/1")


def test_links_in_a_tar_are_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(IMAGE)
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            member = tarfile.TarInfo("a.png")
            member.type, member.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(member)
        text = tarfile.TarInfo("a.txt")
        text.size = 1
        tar.addfile(text, io.BytesIO(b"a"))
    assert rules(root) == ["image-missing"]


@pytest.mark.parametrize("kind", [".tar", ".tar.gz"])
def test_of_a_torn_tar_what_is_whole_is_kept(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a{kind}"
    noise = [os.urandom(500_000) for _ in range(4)]
    write_members(path, *((f"{n}.png", data) for n, data in enumerate(noise)))
    path.write_bytes(path.read_bytes()[:1_300_000])
    *whole, last = read(tmp_path)
    assert 1 <= len(whole) <= 2
    assert isinstance(last, Problem)
    assert "lost" in last.reason


def test_rows_without_an_image_or_of_another_kind_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "a.parquet", [(None, "a", "en"), (b"", "b", "en")])
    write_parquet(tmp_path / "a" / "b.parquet", [(None, "a", "en")], struct=True)
    assert rules(tmp_path / "a") == ["image-missing"] * 3
    write_lines(tmp_path / "b", {"caption": "a"}, {"image": None, "text": "a"})
    assert rules(tmp_path / "b") == ["image-missing"] * 2
    write_lines(tmp_path / "c", {"image": 7, "text": "a"}, {"text": "b", "caption": "c"})
    problem, text = read(tmp_path / "c")
    assert isinstance(problem, Problem)
    assert "`image` is 7" in problem.reason
    assert isinstance(text, Document)
    assert text.image is None


@pytest.mark.parametrize(
    "image", ["https://example.org/a.png", 7, [IMAGE], {"path": "a.png"}], ids=str
)
def test_a_column_of_something_else_is_a_problem_of_all_its_rows(
    tmp_path: Path, image: object
) -> None:
    pq.write_table(pa.table({"image": [image] * 3, "text": ["a"] * 3}), tmp_path / "a.parquet")
    (problem,) = read(tmp_path)
    assert isinstance(problem, Problem)
    assert problem.records == 3
    assert "the column `image` is" in problem.reason
    files = list_files([str(tmp_path)]).files
    assert len([found for file in files for found in read_documents(file)]) == 3, "without images"


@pytest.mark.parametrize("image", [IMAGE, "a.png"], ids=["bytes", "text"])
def test_two_columns_of_images_are_a_problem_of_all_rows(tmp_path: Path, image: object) -> None:
    columns = [pa.array([image] * 3), pa.array([image] * 3), pa.array(["a"] * 3)]
    table = pa.Table.from_arrays(columns, ["image", "image", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    (problem,) = read(tmp_path)
    assert isinstance(problem, Problem)
    assert problem.records == 3


def test_a_column_of_nothing_is_one_of_missing_images(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [None, None], "text": ["a", "b"]}), tmp_path / "a.parquet")
    assert rules(tmp_path) == ["image-missing"] * 2


def test_a_bad_caption_is_a_problem_of_its_record(tmp_path: Path) -> None:
    write_members(
        tmp_path / "a.tar",
        ("1.png", IMAGE), ("1.json", b"{"),
        ("2.png", IMAGE), ("2.txt", b"\xff\xfe\xff"),
        ("3.png", IMAGE), ("3.json", b"[1]"),
        ("4.png", IMAGE), ("4.json", b'{"caption": 4}'),
        ("5.png", IMAGE), ("5.txt", b"five"),
    )  # fmt: skip
    found = read(tmp_path)
    assert [isinstance(each, Problem) for each in found] == [True] * 4 + [False]


def header(kind: bytes, body: bytes) -> bytes:
    """A header of tar with what it says about the member behind it."""
    member = tarfile.TarInfo("x.png")
    member.type, member.size = kind, len(body)
    return member.tobuf(tarfile.GNU_FORMAT) + body + bytes(-len(body) % tarfile.BLOCKSIZE)


def test_what_a_header_says_is_bounded(tmp_path: Path) -> None:
    kinds = (
        tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE
    )  # fmt: skip
    for kind in kinds:
        path = tmp_path / "a.tar.gz"
        path.write_bytes(gzip.compress(header(kind, b"a" * (64 << 20)), 1))
        tracemalloc.start()
        (problem,) = read(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(problem, Problem)
        assert "a header of 67108864 bytes" in problem.reason
        assert peak < 32 << 20


@pytest.mark.parametrize(
    "said",
    [
        header(tarfile.XHDTYPE, b"26 GNU.sparse.map=1,x,3,4\n"),
        header(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
        header(tarfile.XHDTYPE, b"1" * 5000 + b" a=b\n"),
        header(tarfile.XHDTYPE, b"8 a=bc\n\n") * 2000,
        header(tarfile.GNUTYPE_SPARSE, b""),
        b"x" * 512,
    ],
    ids=["map", "sparse", "digits", "chain", "old-sparse", "noise"],
)
def test_a_hostile_tar_is_damaged_and_no_more(tmp_path: Path, said: bytes) -> None:
    write_members(
        tmp_path / "a.tar", ("1.png", IMAGE), ("1.txt", b"one"), ("2.txt", b"2"), ("3.txt", b"3")
    )
    good = (tmp_path / "a.tar").read_bytes()
    at = good.index(b"3.txt")
    (tmp_path / "a.tar").write_bytes(good[:at] + said + good[at:])
    first, *_, last = read(tmp_path)
    assert isinstance(first, Document)
    assert isinstance(last, Problem)
    assert "lost" in last.reason


def test_what_is_wrong_with_names_in_a_tar_is_said(tmp_path: Path) -> None:
    write_members(
        tmp_path / "a.tar",
        ("p.v1.png", IMAGE), ("p.v2.png", IMAGE), ("p.v3.png", b"x" * LIMIT), ("p.txt", b"p"),
        ("q.png", IMAGE), ("r.png", IMAGE), ("q.txt", b"q"),
    )  # fmt: skip
    p, _, _, q = (each.image for each in documents(tmp_path))
    assert isinstance(p, BadImage)
    assert "ends at the first dot" in str(p)
    assert isinstance(q, BadImage)
    assert "follow each other" in str(q)
