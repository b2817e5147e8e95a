"""Images of a chat stand in front of what a user says, and a corpus of chats holds them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import VISION, file_of, picture

from panthalassa.config import Corpus
from panthalassa.corpus.images import prepared
from panthalassa.corpus.manifest import Images, Manifest
from panthalassa.corpus.shards import decode_shard
from panthalassa.corpus.sources import find_files
from panthalassa.corpus.tokenizer import Tokenizer, ids_of_image
from panthalassa.errors import CorpusError
from panthalassa.exchange.prompts import Prompt
from panthalassa.finetune.chat import Message, encode_chat
from panthalassa.finetune.encode import encode_example
from panthalassa.finetune.examples import Example
from panthalassa.finetune.images import hash_images, read_image
from panthalassa.finetune.prepare import prepare_chats
from panthalassa.finetune.split import positions
from panthalassa.storage import open_storage

TOKENS = VISION.tokens
SPAN = ids_of_image(TOKENS)


def said(role: str, content: str, *images: str) -> Message:
    return Message(role=role, content=content, images=images)  # type: ignore[arg-type]


CHAT = (
    said("system", "Be brief."),
    said("user", "What is the sea? <|image_pad|>", "a.png", "b.png"),
    said("assistant", "deep"),
    said("user", "", "c.png"),
    said("assistant", "slow"),
)
IMAGES = [b"a", b"b", b"c"]


def example(prompt: int = 2) -> Example:
    return Example(CHAT[:prompt], (CHAT[prompt:],), "en", "a.jsonl:1")


def test_images_stand_in_front_of_what_a_user_says(tokenizer: Tokenizer) -> None:
    found = encode_example(tokenizer, example(), 500, IMAGES, TOKENS)
    assert found is not None
    (ids,), (bounds,) = found.documents, found.answers
    text, counted = encode_chat(tokenizer, CHAT, counting_from=2)
    head = [tokenizer.turn_start, *tokenizer.encode("user\n")]
    rest = ids.tolist()
    for images in (2, 1):
        at = rest.index(SPAN[0])
        assert rest[at - len(head) : at] == head
        assert rest[at : at + images * len(SPAN)] == SPAN * images
        del rest[at : at + images * len(SPAN)]
    assert rest == text[: len(rest)].tolist()
    taught = [
        id for a, b in zip(bounds[::2], bounds[1::2], strict=True) for id in ids[a:b].tolist()
    ]
    assert taught == text[counted].tolist()
    assert found.images == [IMAGES]
    assert found.domain == "images-en"
    asked = Prompt(messages=CHAT[:2]).ids(tokenizer, False, None, TOKENS)
    assert ids[: len(asked)].tolist() == asked


def test_what_is_cut_off_takes_its_images_with_it(tokenizer: Tokenizer) -> None:
    whole = encode_example(tokenizer, example(), 500, IMAGES, TOKENS)
    assert whole is not None
    first = whole.answers[0][1]
    cut = encode_example(tokenizer, example(), first, IMAGES, TOKENS)
    assert cut is not None
    assert cut.cut
    assert cut.images == [IMAGES[:2]]
    assert len(cut.documents[0]) == first
    assert encode_example(tokenizer, example(), first - 1, IMAGES, TOKENS) is None
    assert cut.hash != whole.hash
    others = [[b"x", *IMAGES[1:]], IMAGES[::-1]]
    hashes = [encode_example(tokenizer, example(), 500, other, TOKENS) for other in others]
    assert len({whole.hash, *(other.hash for other in hashes if other)}) == 3


@pytest.fixture
def prepare(
    tokenizer: Tokenizer, settings_of: Callable[..., Corpus], tmp_path: Path
) -> Callable[..., tuple[Manifest, list[str]]]:
    """prepare(records, …) -> the corpus of a file of records beside ten images, and what was told."""

    def run(
        records: Sequence[dict[str, Any]],
        objective: Any = "sft",
        vision: Any = VISION,
        **keys: object,
    ) -> tuple[Manifest, list[str]]:
        folder = tmp_path / "chats"
        folder.mkdir()
        for number in range(10):
            (folder / f"{number}.png").write_bytes(file_of(picture(number)))
        (folder / "text.png").write_text("no image")
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / "en.jsonl").write_text(lines)
        told: list[str] = []
        settings = settings_of(folder, sequence_length=128, **keys)
        return prepare_chats(settings, tokenizer, objective, told.append, vision), told

    return run


def question(number: int, text: str = "What is it?") -> dict[str, Any]:
    return {"prompt": text, "images": [f"{number}.png"], "answer": f"the sea {number}"}


def test_a_corpus_of_chats_holds_their_images_and_holds_out_by_image(
    prepare: Callable[..., tuple[Manifest, list[str]]], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    asked = [question(n, text) for n in range(10) for text in ("What is it?", "Is it deep?")]
    tied = [
        {"prompt": "Are they one?", "images": [f"{a}.png", f"{b}.png"], "answer": "yes"}
        for a, b in ((2, 3), (3, 4), (5, 6))
    ]
    chats = [
        {"messages": [{**m.model_dump(), "images": ["1.png"] * len(m.images)} for m in CHAT[:3]]},
        *tied,
        {"prompt": "What is the tide?", "answer": "slow"},
        {"prompt": "What is the sea?", "answer": "deep"},
    ]
    manifest, told = prepare([*asked, *chats])
    assert manifest.images == Images(size=VISION.image_size, tokens=TOKENS)
    assert manifest.objective == "sft"
    assert "26 distinct examples" in " ".join(told)
    expected = {
        number: prepared(file_of(picture(number)), VISION.image_size) for number in range(10)
    }
    sides: dict[bytes, set[str]] = {}
    storage = open_storage(str(tmp_path / "corpus"))
    seen = 0
    for shard in manifest.shards:
        rows = decode_shard(storage.read(shard.path))
        if not shard.domain.startswith("images-"):
            assert (shard.images, rows.images) == (None, None)
            continue
        assert rows.images is not None
        assert rows.answers is not None
        assert shard.images == sum(map(len, rows.images))
        for tokens, lengths, bounds, images in zip(
            rows.tokens, rows.lengths, rows.answers, rows.images, strict=True
        ):
            assert len(images) * TOKENS == int((tokens == Tokenizer.image).sum())
            shown = iter(images)
            for document in np.split(tokens[: sum(lengths)], np.cumsum(lengths)[:-1]):
                answer = tokenizer.decode(document.tolist()).rpartition("assistant\n")[2].strip()
                own = [next(shown) for _ in range(int((document == Tokenizer.image_start).sum()))]
                for image in own:
                    sides.setdefault(image, set()).add(shard.split)
                if answer.startswith("the sea "):
                    assert own == [expected[int(answer.removeprefix("the sea "))]]
                    seen += 1
            for start, end in zip(bounds[::2], bounds[1::2], strict=True):
                assert not np.isin(tokens[start:end], SPAN).any()
    assert seen == 20
    assert set(sides) == set(expected.values())
    assert {len(side) for side in sides.values()} == {1}
    for number in (3, 4):
        assert sides[expected[number]] == sides[expected[2]]
    assert {split for side in sides.values() for split in side} == {"train", "held_out"}


@given(st.lists(st.frozensets(st.integers(0, 30), min_size=1, max_size=3), min_size=1))
def test_examples_with_an_image_in_common_have_one_position_and_no_others(
    tokenizer: Tokenizer,
    shown: list[frozenset[int]],
) -> None:
    found = encode_example(tokenizer, example(), 500, IMAGES, TOKENS)
    assert found is not None
    examples = [replace(found, shown=frozenset(i << 58 for i in own)) for own in shown]
    apart: list[set[int]] = []
    for own in shown:
        touching = [group for group in apart if group & own]
        apart = [group for group in apart if not group & own] + [set(own).union(*touching)]
    group_of = [next(n for n, group in enumerate(apart) if own <= group) for own in shown]
    of_group = set(zip(group_of, positions(examples), strict=True))
    assert len(of_group) == len({position for _, position in of_group}) == len(apart)
    text = [replace(found, shown=frozenset(), position=number) for number in (7, 2**64 - 1)]
    assert positions([*text, *examples]) == [7, 2**64 - 1, *positions(examples)]


def test_a_corpus_of_one_group_is_refused(
    prepare: Callable[..., tuple[Manifest, list[str]]],
) -> None:
    pairs = [{**question(n), "images": [f"{n}.png", f"{n + 1}.png"]} for n in range(9)]
    with pytest.raises(CorpusError, match="without an image that ties them together"):
        prepare(pairs)


def test_other_pictures_under_the_same_names_are_another_preparation(
    tokenizer: Tokenizer, settings_of: Callable[..., Corpus], tmp_path: Path
) -> None:
    chats = tmp_path / "chats"
    chats.mkdir()
    for number in range(4):
        (chats / f"{number}.png").write_bytes(file_of(picture(number)))
    (chats / "en.jsonl").write_text("".join(json.dumps(question(n)) + "\n" for n in range(4)))

    def prepare(source: Path, corpus: str = "corpus") -> Manifest:
        directory = str(tmp_path / corpus)
        settings = settings_of(source, sequence_length=128, directory=directory)
        return prepare_chats(settings, tokenizer, "sft", lambda line: None, VISION)

    first = prepare(chats)
    assert prepare(chats).fingerprint == first.fingerprint
    elsewhere = shutil.copytree(chats, tmp_path / "moved" / "chats")
    assert prepare(elsewhere).fingerprint == first.fingerprint
    (chats / "2.png").write_bytes(file_of(picture(9)))
    for source in (chats, chats / "en.jsonl"):
        with pytest.raises(CorpusError, match="the corpus of other sources or settings"):
            prepare(source)
    assert prepare(chats, "anew").preparation != first.preparation


def test_a_picture_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"as it was")
    (tmp_path / "a.jsonl").write_text(json.dumps(question(0)))
    (file,) = find_files([str(tmp_path)])
    hashes = hash_images([file], "sft")
    assert read_image(file, "0.png", hashes) == b"as it was"
    (tmp_path / "0.png").write_bytes(b"as it is")
    with pytest.raises(CorpusError, match=r"'0\.png' of .*a\.jsonl has changed since"):
        read_image(file, "0.png", hashes)


def test_bad_images_are_counted_and_a_model_of_text_refuses_all(
    prepare: Callable[..., tuple[Manifest, list[str]]], tmp_path: Path
) -> None:
    bad = [{**question(0), "images": [name]} for name in ("none.png", "text.png", "../0.png")]
    roles = [{"messages": [{"role": "assistant", "content": "x", "images": ["0.png"]}]}]
    _, told = prepare([*map(question, range(10)), *bad, *roles], max_bad_share=0.5)
    problems = " ".join(told)
    assert "4" in problems
    assert "there is no file 'none.png'" in problems


def test_images_of_a_model_of_text_and_of_preferences_are_refused(
    prepare: Callable[..., tuple[Manifest, list[str]]], tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="there are images, and the model reads text alone"):
        prepare([question(n) for n in range(10)], vision=None)


def test_preferences_can_not_have_images(
    prepare: Callable[..., tuple[Manifest, list[str]]],
) -> None:
    pair = {"prompt": "x", "images": ["0.png"], "chosen": "a", "rejected": "b"}
    with pytest.raises(CorpusError, match="`images`, which preferences can not have"):
        prepare([pair] * 3, objective="dpo")
