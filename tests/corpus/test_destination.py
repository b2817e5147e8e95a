"""A destination that is looked at first: what is there already is returned, gone on with or refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from preparations import files_of, run

from panthalassa.config import Corpus
from panthalassa.corpus.destination import claim
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

pytestmark = pytest.mark.usefixtures("ray_cluster")

Config = Callable[..., Corpus]


def test_a_finished_corpus_is_returned_without_any_work(
    prepared: tuple[Manifest, Storage],
    sources: Path,
    make_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest, storage = prepared
    monkeypatch.setattr("panthalassa.corpus.prepare.select", pytest.fail)
    lines: list[str] = []
    assert prepare(make_config(storage.root, sources), lines.append) == manifest
    assert lines == [f"{storage.uri} is already prepared, fingerprint {manifest.fingerprint}"]


def test_what_a_kill_behind_the_manifest_has_left_goes_the_next_time(
    prepared: tuple[Manifest, Storage], sources: Path, tmp_path: Path, make_config: Config
) -> None:
    manifest, storage = prepared
    shutil.copytree(storage.root, tmp_path / "corpus")
    left = tmp_path / "corpus" / "staging" / "documents"
    left.mkdir(parents=True)
    (left / "00000.json").write_text("{}")
    assert run(make_config(tmp_path / "corpus", sources))[0] == manifest
    assert not left.parent.exists()


def test_an_unfinished_preparation_of_the_same_input_is_gone_on_with(
    prepared: tuple[Manifest, Storage], sources: Path, tmp_path: Path, make_config: Config
) -> None:
    manifest, storage = prepared
    shutil.copytree(storage.root, tmp_path / "corpus")
    (tmp_path / "corpus" / "manifest.json").unlink()
    (tmp_path / "corpus" / manifest.shards[0].path).unlink()
    again, copy = run(make_config(tmp_path / "corpus", sources))
    assert again == manifest
    assert files_of(copy) == files_of(storage)


def test_a_corpus_of_other_settings_or_sources_is_never_written_over(
    prepared: tuple[Manifest, Storage],
    sources: Path,
    tmp_path: Path,
    make_sources: Callable[..., Path],
    make_config: Config,
) -> None:
    _, storage = prepared
    before = files_of(storage)
    others = make_sources(tmp_path / "sources", 31)
    for corpus in (
        make_config(storage.root, sources, sequence_length=32),
        make_config(storage.root, others),
    ):
        with pytest.raises(CorpusError, match=r"Choose another corpus\.directory or remove"):
            run(corpus)
    assert files_of(storage) == before


def test_a_destination_with_anything_else_in_it_is_refused(
    prepared: tuple[Manifest, Storage], sources: Path, tmp_path: Path, make_config: Config
) -> None:
    _, storage = prepared
    shutil.copytree(storage.root, tmp_path / "unfinished")
    (tmp_path / "unfinished" / "manifest.json").unlink()
    with pytest.raises(CorpusError, match="an unfinished preparation of other sources"):
        run(make_config(tmp_path / "unfinished", sources, sequence_length=32))
    (tmp_path / "unfinished" / "preparation.json").write_text("{")
    with pytest.raises(CorpusError, match="an unfinished preparation of other sources"):
        run(make_config(tmp_path / "unfinished", sources))
    (tmp_path / "unfinished" / "preparation.json").unlink()
    with pytest.raises(CorpusError, match="files that are not of this preparation"):
        run(make_config(tmp_path / "unfinished", sources))


def test_a_destination_inside_a_source_is_refused(sources: Path, make_config: Config) -> None:
    for inside in (sources, sources / "en" / "corpus"):
        with pytest.raises(CorpusError, match="lies inside the source"):
            run(make_config(inside, sources))


def test_a_destination_that_can_not_be_written_is_named_before_the_work(
    sources: Path, tmp_path: Path, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("panthalassa.corpus.prepare.select", pytest.fail)
    (tmp_path / "file").write_text("not a folder")
    for place in (tmp_path / "file", tmp_path / "file" / "corpus"):
        with pytest.raises(CorpusError, match=r"corpus\.directory .*file.* is no folder\. Choose"):
            run(make_config(place, sources))


@pytest.mark.parametrize("place", ["train", "staging/documents", "staging/kept", "staging/encoded"])
def test_a_task_that_can_not_write_says_where(
    prepared: tuple[Manifest, Storage],
    sources: Path,
    tmp_path: Path,
    make_config: Config,
    place: str,
) -> None:
    _, storage = prepared
    (tmp_path / "corpus").mkdir()
    shutil.copy(Path(storage.root) / "preparation.json", tmp_path / "corpus")
    (tmp_path / "corpus" / place).parent.mkdir(exist_ok=True)
    (tmp_path / "corpus" / place).write_text("in the way")
    with pytest.raises(CorpusError, match=rf"{place}/.*\.parquet can not be written: .*Free space"):
        run(make_config(tmp_path / "corpus", sources))


def test_a_source_that_changes_while_it_is_read_makes_no_corpus(
    sources: Path, tmp_path: Path, make_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(sources, tmp_path / "raw")
    changing = tmp_path / "raw" / "en" / "007.txt"

    def claim_and_change(*arguments: object) -> None:
        claim(*arguments)
        changing.write_text("other words")

    monkeypatch.setattr("panthalassa.corpus.prepare.claim", claim_and_change)
    with pytest.raises(CorpusError, match=r"007\.txt has changed since the preparation began"):
        run(make_config(tmp_path / "corpus", tmp_path / "raw"))
    assert not (tmp_path / "corpus" / "manifest.json").exists()
