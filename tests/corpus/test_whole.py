"""From real texts of many languages to a corpus, whole, on a disk and in object storage."""

import gzip
import hashlib
import io
import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import udhr
from s3 import BUCKET, Server

from panthalassa.config import Corpus
from panthalassa.corpus import staging
from panthalassa.corpus.funnel import REPORT, Report, table
from panthalassa.corpus.manifest import TOKENIZER, Manifest, read_manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.corpus.tokenizer import read_tokenizer
from panthalassa.storage import Storage, open_storage

ARTICLE = (
    "The harbour of the island was built in the last years of the old kingdom, when timber was still "
    "cheap and stone had to be brought over by boat. It has been moved twice since then. After the "
    "great storm the council decided that the mole should be longer, and every family gave a son for "
    "one summer to carry rock. Nobody wrote down how much it cost them, but the letters that are kept "
    "in the church tell of hunger and of a winter without oil for the lamps."
)
STORY = (
    "My grandmother kept the light for forty years and never once left the tower at night. She said "
    "that a keeper who sleeps is worse than none, because sailors trust what they have been promised. "
    "When the new lamp came, with a motor that turned it, she sat beside the machine as she had sat "
    "beside the clockwork before, and listened for the moment at which it would fail. It never did, "
    "and that made her sad in a way which none of us could understand at the time."
)
PAGES = [("Harbour", f"{ARTICLE} '''Ships''' came [[again]]."), ("Stub", "A stub.")]
DUMP = "\n".join(  # a tag a line, as MediaWiki writes it
    [
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="en">',
        "<siteinfo><base>https://en.wikipedia.org/wiki/Main_Page</base></siteinfo>",
        *(
            f"<page>\n<title>{title}</title>\n<ns>0</ns>\n<revision><text>{text}</text></revision>\n</page>"
            for title, text in PAGES
        ),
        "</mediawiki>\n",
    ]
)
PAGE = f"""<html><body><main><article><p>{STORY}</p>
<p>Write to keeper@harbour.org about it.</p></article></main></body></html>"""


def warc(*bodies: str) -> bytes:
    """Responses with these pages, and one that is cut off."""
    records = b""
    for number, body in enumerate((*bodies, "cut off")):
        block = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{body}".encode()
        records += (
            f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n"
            f"WARC-Target-URI: http://harbour.example/{number}\r\nWARC-Date: 2024-01-01T00:00:00Z\r\n"
            f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
        ).encode() + block
        records += b"\r\n\r\n"
    return records[:-30]


def write_raw(root: Path) -> None:
    """The declarations in all languages, a dump, a crawl, copies and near-copies."""
    for folder in ("udhr", "again", "articles", "crawl"):
        (root / folder).mkdir(parents=True)
    declarations = udhr.read_declarations(udhr.folder())
    texts = ["\n".join(declaration.paragraphs[:40]) for declaration in declarations]
    copied = texts[::40]
    near = [text.rstrip(".").rpartition(" ")[0] for text in copied]
    for name, content in {"udhr/a": texts, "again/b": [f"{t}\r\n" for t in copied] + near}.items():
        lines = [json.dumps({"text": text}) for text in content]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
    (root / "articles" / "enwiki-pages-articles.xml").write_text(DUMP)
    (root / "crawl" / "a.warc.gz").write_bytes(gzip.compress(warc(PAGE)))


def config(directory: str, source: str) -> Corpus:
    return Corpus(
        directory=directory,
        sources=[source],
        domains="language",
        vocabulary_size=1024,
        sequence_length=512,
    )


def read_back(storage: Storage) -> tuple[Manifest, Report, list[dict[str, object]]]:
    """The manifest, the report and all of the index, after each file's hash was compared."""
    manifest = read_manifest(storage)
    hashes = {file.path: file.sha256 for file in (*manifest.shards, *manifest.index)}
    hashes |= {REPORT: manifest.report_sha256, TOKENIZER: manifest.tokenizer_sha256}
    content = {path: storage.read(path, digest) for path, digest in hashes.items()}
    assert {path: hashlib.sha256(data).hexdigest() for path, data in content.items()} == hashes
    listed = {path for path, _ in storage.files()} - {"manifest.json", "preparation.json"}
    assert listed == hashes.keys()
    documents = [
        row
        for file in manifest.index
        for row in pq.read_table(io.BytesIO(content[file.path])).to_pylist()
    ]
    return manifest, Report.model_validate_json(content[REPORT]), documents


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "raw"
    write_raw(root)
    return root


def test_a_hundred_and_twenty_languages_become_a_corpus_that_tells_its_funnel(
    ray_cluster: str,
    raw: Path,
    tmp_path: Path,
    server: Server,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines: list[str] = []
    prepare(config(str(tmp_path / "corpus"), str(raw)), lines.append)
    storage = open_storage(str(tmp_path / "corpus"))
    manifest, report, documents = read_back(storage)

    domains = {group.partition("/")[2] for group in manifest.documents}
    assert len(domains - {"und"}) >= 120
    assert Counter(f"{row['split']}/{row['domain']}" for row in documents) == manifest.documents
    assert sum(row["bytes"] for row in documents) == sum(manifest.text_bytes.values())
    by_place = {f"{row['source']}/{row['place']}": row for row in documents}
    [article] = [row for row in documents if row["url"] == "https://en.wikipedia.org/wiki/Harbour"]
    assert (article["license"], article["domain"]) == ("CC BY-SA", "en")
    [page] = [row for row in documents if row["url"] == "http://harbour.example/0"]
    assert str(page["place"]).startswith("crawl/a.warc.gz")
    assert len(by_place) == len(documents)

    assert report.total("unreadable")[0] == 1
    assert report.total("duplicate")[0] >= 10
    assert report.total("near_duplicate")[0] >= 10
    assert report.total("rule", rule="too_few_words")[0] >= 1
    assert report.total("masked") == (1, 0)
    assert report.total("held_out", "train")[0] == len(documents)
    assert sum(report.tokens.values()) == sum(shard.tokens for shard in manifest.shards)
    assert lines[-len(list(table(report))) :] == list(table(report))
    examples = [e for entry in report.entries if entry.step == "rule" for e in entry.examples]
    assert any(e.place.startswith("raw/articles/") and e.text == "A stub." for e in examples)
    assert any("[EMAIL]" in text for text in texts_of(manifest, storage, "en"))

    # The same on an S3 server: sources as well as the corpus.
    shutil.copytree(raw, server.folder / BUCKET / "raw")
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for task in (staging.TASK, staging.COMPUTING):
        monkeypatch.setitem(task, "runtime_env", {"env_vars": aws})
    remote = prepare(config(f"s3://{BUCKET}/corpus", f"s3://{BUCKET}/raw"), lines.append)
    assert remote.fingerprint == manifest.fingerprint
    assert read_back(open_storage(f"s3://{BUCKET}/corpus")) == (manifest, report, documents)


def texts_of(manifest: Manifest, storage: Storage, domain: str) -> list[str]:
    """The rows of a domain, decoded."""
    tokenizer = read_tokenizer(storage, manifest)
    return [
        tokenizer.decode(row)
        for shard in manifest.shards
        if shard.domain == domain
        for row in pq.read_table(io.BytesIO(storage.read(shard.path)))["tokens"].to_pylist()
    ]
