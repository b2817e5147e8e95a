"""`panthalassa corpus verify` finds every damage and names it; `corpus show` counts what is there.

The corpus of these tests is written without a preparation; on S3 its files are damaged below the
server, as a disk would.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import Result
from phases import bare_manifest
from s3 import BUCKET, FaultyProxy, Server, use_s3
from shards import flip_a_bit
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.corpus.funnel import REPORT
from panthalassa.corpus.manifest import MANIFEST, TOKENIZER, Index, Manifest, Split, read_manifest
from panthalassa.corpus.pack import pack
from panthalassa.corpus.shards import write_shard
from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.corpus.verify import verify
from panthalassa.storage import open_storage

ROWS = {"train/en": 40, "train/sw": 10, "held_out/en": 3}
LENGTH = 32
FIRST, SECOND, HELD_OUT = (f"{group}/00000.parquet" for group in ROWS)
INDEX = "documents/all.parquet"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of three shards."""
    folder = tmp_path_factory.mktemp("pristine") / "corpus"
    storage, chance = open_storage(str(folder)), np.random.default_rng(0)
    tokenizer = Tokenizer.train(["the sea is deep"], 320)
    storage.write(TOKENIZER, tokenizer.to_bytes())
    shards = []
    for path, rows in zip((FIRST, SECOND, HELD_OUT), ROWS.values(), strict=True):
        split: Split = "train" if path.startswith("train") else "held_out"
        documents = [chance.integers(3, 260, LENGTH - 5).astype(np.int32) for _ in range(rows)]
        packed = pack(documents, LENGTH, tokenizer.pad).filled()
        shards.append(write_shard(storage, path, split, path.split("/")[1], packed, 16))
    (folder / INDEX).parent.mkdir()
    groups = [group.split("/") for group, rows in ROWS.items() for _ in range(rows)]
    split_and_domain = {"split": [g[0] for g in groups], "domain": [g[1] for g in groups]}
    pq.write_table(pa.table({**split_and_domain, "bytes": [100] * 53}), folder / INDEX)
    index = (folder / INDEX).read_bytes()
    storage.write(REPORT, b"{}")
    changes = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer_sha256": sha256(tokenizer.to_bytes()),
        "documents": ROWS,
        "text_bytes": {group: rows * 100 for group, rows in ROWS.items()},
        "characters": {group: rows * (40 if "sw" in group else 50) for group, rows in ROWS.items()},
        "index": [Index(path=INDEX, documents=53, size=len(index), sha256=sha256(index))],
        "report_sha256": sha256(b"{}"),
    }
    manifest = bare_manifest(shards, LENGTH).model_copy(update=changes)
    storage.write(MANIFEST, manifest.encode())
    storage.write("preparation.json", b"{}")
    return folder


@pytest.fixture(params=["local", "s3"])
def copy(request: pytest.FixtureRequest, pristine: Path, tmp_path: Path) -> tuple[Path, str]:
    """A corpus to damage: its folder, and the place that it is verified at."""
    if request.param == "local":
        folder = tmp_path / "corpus"
        place = str(folder)
    else:
        request.getfixturevalue("s3")
        server: Server = request.getfixturevalue("server")
        folder = server.folder / BUCKET / tmp_path.name
        place = f"s3://{BUCKET}/{tmp_path.name}"
    shutil.copytree(pristine, folder)
    return folder, place


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["corpus", *arguments])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def swap(folder: Path) -> None:
    (folder / FIRST).rename(folder / "aside")
    (folder / SECOND).rename(folder / FIRST)
    (folder / "aside").rename(folder / SECOND)


def rewrite(**changes: object) -> Callable[[Path], None]:
    """Change the record of the first shard, or the manifest's own keys."""

    def damage(folder: Path) -> None:
        tree = json.loads((folder / MANIFEST).read_bytes())
        record = tree["shards"][0]
        (record if changes.keys() <= record.keys() else tree).update(changes)
        (folder / MANIFEST).write_bytes(Manifest.model_validate(tree).encode())

    return damage


def reformat(folder: Path) -> None:
    text = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(json.dumps(json.loads(text)))


def recount(folder: Path) -> None:
    tree = json.loads((folder / MANIFEST).read_bytes())
    tree["index"][0]["documents"] = 54
    (folder / MANIFEST).write_bytes(Manifest.model_validate(tree).encode())


def list_twice(folder: Path) -> None:
    tree = json.loads((folder / MANIFEST).read_bytes())
    tree["shards"].append(tree["shards"][0])
    (folder / MANIFEST).write_bytes(Manifest.model_validate(tree).encode())


DAMAGES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "nothing": (lambda folder: None, []),
    "flipped": (lambda f: flip_a_bit(f / SECOND), [f"{SECOND} is rotten: its SHA-256 is"]),
    "cut": (lambda f: cut(f / HELD_OUT), [f"{HELD_OUT} is cut off: it has"]),
    "longer": (lambda f: lengthen(f / FIRST), [f"{FIRST} is too long: it has"]),
    "empty": (lambda f: (f / FIRST).write_bytes(b""), [f"{FIRST} is cut off: it has 0 bytes"]),
    "deleted": (lambda f: (f / FIRST).unlink(), [f"{FIRST} is missing."]),
    "added": (
        lambda f: shutil.copy(f / FIRST, f / "train/en/00001.parquet"),
        ["train/en/00001.parquet is not listed"],
    ),
    "swapped": (
        swap,
        [f"{FIRST} holds the bytes of {SECOND}.", f"{SECOND} holds the bytes of {FIRST}."],
    ),
    "two": (
        lambda f: (flip_a_bit(f / FIRST), (f / SECOND).unlink()),
        [f"{FIRST} is rotten", f"{SECOND} is missing"],
    ),
    "tokenizer flipped": (lambda f: flip_a_bit(f / TOKENIZER), [f"{TOKENIZER} is corrupt"]),
    "tokenizer deleted": (lambda f: (f / TOKENIZER).unlink(), [f"{TOKENIZER} can not be read"]),
}
DAMAGES |= {
    "index flipped": (lambda f: flip_a_bit(f / INDEX), [f"{INDEX} is rotten"]),
    "report changed": (lambda f: (f / REPORT).write_bytes(b"{ }"), [f"{REPORT} is rotten"]),
}
IN_THE_MANIFEST: dict[str, tuple[Callable[[Path], None], str]] = {
    "rows": (rewrite(rows=41), f"{FIRST} has as rows 40, the manifest says 41"),
    "row groups": (rewrite(row_groups=(8, 16, 16)), r"has as rows in its row groups \(16, 16, 8\)"),
    "tokens": (rewrite(tokens=7), f"has as tokens {40 * (LENGTH - 5)}, the manifest says 7"),
    "size": (rewrite(size=7), "has as size"),
    "sequence": (rewrite(sequence_length=16), "has as tokens in a row 32, the manifest says 16"),
    "split": (rewrite(split="held_out"), "has as folder train/en, the manifest says held_out/en"),
    "hash": (rewrite(sha256="0" * 64), f"{FIRST} is rotten"),
    "index": (recount, f"{INDEX} has as documents 53, the manifest says 54"),
    "twice": (list_twice, f"{FIRST} is listed more than once"),
    "bos": (rewrite(bos=1), r"tokenizer.json has \(vocabulary, bos, eos\)"),
    "form": (reformat, "manifest.json is not in the form in which it was written"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damaged_file_is_named_with_a_remedy(copy: tuple[Path, str], name: str) -> None:
    folder, place = copy
    damage, expected = DAMAGES[name]
    damage(folder)
    result = command("verify", place)
    assert result.exit_code == bool(expected), result.output
    *problems, corpus, fingerprint, read, time, verdict = result.output.splitlines()
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert start in problem
        assert any(word in problem for word in ("Restore", "restore", "Put", "Remove"))
    assert place in corpus
    assert read_manifest(open_storage(place)).fingerprint in fingerprint
    assert "6 files" in read
    assert "MB/s" in time
    assert ("each file is what the manifest says" in verdict) == (not expected)


@pytest.mark.parametrize("name", IN_THE_MANIFEST)
def test_what_is_wrong_in_the_manifest_is_named(pristine: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(pristine, tmp_path / "corpus")
    damage, expected = IN_THE_MANIFEST[name]
    damage(tmp_path / "corpus")
    found = verify(open_storage(str(tmp_path / "corpus")))
    assert re.search(expected, found.problems[0])


def test_a_changed_count_is_found_by_the_fingerprint(pristine: Path, tmp_path: Path) -> None:
    shutil.copytree(pristine, tmp_path / "corpus")
    fingerprint = read_manifest(open_storage(str(pristine))).fingerprint
    assert command("verify", str(tmp_path / "corpus"), "--fingerprint", fingerprint).exit_code == 0
    rewrite(unigram_loss=4.0)(tmp_path / "corpus")
    assert command("verify", str(tmp_path / "corpus")).exit_code == 0
    result = command("verify", str(tmp_path / "corpus"), "--fingerprint", fingerprint)
    assert result.exit_code == 1
    assert f"expected {fingerprint}: it is that of another corpus, or was changed" in result.output


def test_a_bit_that_flips_on_the_way_is_no_damage(
    pristine: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pristine, server.folder / BUCKET / "flips")
    with FaultyProxy(server.url, seed=1) as proxy:
        use_s3(monkeypatch, proxy.url)
        storage = open_storage(f"s3://{BUCKET}/flips")
        proxy.next([*[None] * 14, "flip"])
        assert verify(storage).problems == []
        assert proxy.faults["flip"] == 1
        keys = [
            f"{BUCKET}/flips/{path}" for path in (TOKENIZER, FIRST, SECOND, HELD_OUT, INDEX, REPORT)
        ]
        assert sorted(proxy.downloads(key) for key in keys) == [1, 1, 1, 1, 1, 2]


@pytest.mark.parametrize("what", ["documents", "text_bytes"])
def test_totals_that_the_index_does_not_have_are_named(
    pristine: Path, tmp_path: Path, what: str
) -> None:
    shutil.copytree(pristine, tmp_path / "corpus")
    storage = open_storage(str(tmp_path / "corpus"))
    manifest = read_manifest(storage)
    changed = {**getattr(manifest, what), "train/sw": 11}
    storage.write(MANIFEST, manifest.model_copy(update={what: changed}).encode())
    [problem] = verify(storage).problems
    right = getattr(manifest, what)["train/sw"]
    assert problem.startswith(
        f"manifest.json says that {what} of train/sw are 11, the index {right}"
    )


def test_a_place_without_a_corpus_is_refused(tmp_path: Path) -> None:
    result = command("verify", str(tmp_path))
    assert result.exit_code == 1
    assert "Make one with `panthalassa prepare`" in result.stderr


def test_the_table_counts_what_there_is_and_what_is_drawn(pristine: Path) -> None:
    shown = command("show", str(pristine)).output
    assert [" ".join(line.split()) for line in shown.splitlines()] == [
        "documents MB tokens share drawn tokens/byte tokens/char parity held out its tokens",
        "en 40 0.00 1,080 80.00% 79.98% 0.250 0.500 1.00 3 81",
        "sw 10 0.00 270 20.00% 20.02% 0.250 0.625 1.25 0 0",
        "all 50 0.01 1,350 100.00% 100.00% 0.250 0.520 1.04 3 81",
    ]
    assert len({len(line) for line in shown.splitlines()}) == 1  # columns are aligned
    warm = command("show", str(pristine), "--temperature", "2").output
    assert "66.70%" in warm  # sqrt(40) of sqrt(40) + sqrt(10), in 1024 slots


def test_a_configuration_names_corpus_and_mixture(pristine: Path, tmp_path: Path) -> None:
    tree = {
        "run": {"name": "small"},
        "corpus": {"directory": str(pristine)},
        "model": {"preset": "laptop"},
        "stream": {"temperature": 2},
        "train": {"steps": 20, "global_batch": 4, "micro_batch": 4, "sequence_length": 32},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(tree))
    override = "train.schedule.warmup_steps=2"
    assert command("verify", str(file), override).exit_code == 0
    assert "66.70%" in command("show", str(file), override).output
    weighted = command("show", str(file), override, "stream.weights={sw: 1}").output
    assert "100.00%" in next(line for line in weighted.splitlines() if line.startswith("sw"))
    refused = command("show", str(pristine), override)
    assert f"is a corpus, which {override} can not change" in refused.stderr
