"""What a model says of images is what its logits say, and tasks make their figures of it."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from answered import scored
from llava import SPAN, save_images, save_seeing

from panthalassa.errors import ConfigError, CorruptError, PanthalassaError
from panthalassa.evaluate import answering, seen
from panthalassa.evaluate.answering import Answerer, encode
from panthalassa.evaluate.kept import key_of
from panthalassa.evaluate.task import (
    Answer,
    Generation,
    Likelihood,
    Likely,
    Picture,
    Request,
    Rolling,
    Task,
    identified,
)
from panthalassa.evaluate.tasks import open_task
from panthalassa.evaluate.tasks.visual_questions import vqa_accuracy
from panthalassa.exchange.load import Opened, open_model
from panthalassa.exchange.pictures import read_pictures
from panthalassa.finetune.chat import encode_question
from panthalassa.model.generate import generate_batch
from panthalassa.model.sampling import Sampling
from panthalassa.storage import open_storage

LENGTH = 128
NAMES = ["the cat", "Ein Hund läuft", "海", "3 numbers", "a", "mat mat mat mat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("seen")
    save_seeing(place / "model", LENGTH)
    save_images(place / "data", 5)
    return place


@pytest.fixture(scope="module")
def opened(folder: Path) -> Opened:
    return open_model(open_storage(str(folder / "model")), torch.device("cpu"))


def picture(folder: Path, name: str) -> Picture:
    path = folder / "data" / name
    return Picture(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def answerer(opened: Opened, batch_tokens: int = 1000, chat: bool = False) -> Answerer:
    return Answerer(opened.model, opened.tokenizer, LENGTH, batch_tokens, chat)


def spelled(opened: Opened, request: Likelihood, chat: bool) -> tuple[list[int], list[int]]:
    """A short request's ids with its images."""
    spans = SPAN * len(request.images)
    context, asked = encode(opened.tokenizer, request, chat)
    at = 2 + len(opened.tokenizer.encode("user\n")) if chat else 1
    return [*context[:at], *spans, *context[at:]], asked


@torch.no_grad()
def alone(opened: Opened, request: Likelihood, chat: bool = False) -> float:
    """The log-probability from the logits of the whole text."""
    context, asked = spelled(opened, request, chat)
    ids = torch.tensor([[*context, *asked]])
    images = read_pictures([image.place for image in request.images], 32)
    logs = opened.model(ids, torch.zeros_like(ids), images=images)[0].double().log_softmax(-1)
    return sum(float(logs[len(context) - 1 + n, id]) for n, id in enumerate(asked))


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("batch_tokens", [1, 90, 1000])
def test_a_likelihood_is_that_of_the_whole_text(
    folder: Path, opened: Opened, chat: bool, batch_tokens: int
) -> None:
    shown = [(picture(folder, "0.png"),), (picture(folder, "1.jpg"), picture(folder, "0.png"))]
    requests = [
        Likelihood(context, f" {name}", images)
        for images in shown
        for context in ("", "English:")
        for name in NAMES
    ]
    mixed: list[Request] = [*requests, Rolling("the cat"), Likelihood("the", " cat")]
    found = answerer(opened, batch_tokens, chat).answers(mixed)
    for request, answer in zip(requests, found, strict=False):
        assert isinstance(answer, Likely)
        assert math.isclose(answer.nats, alone(opened, request, chat), rel_tol=1e-4, abs_tol=1e-4)
    nats = {answer.nats for answer in found[: len(NAMES)] if isinstance(answer, Likely)}
    others = {answer.nats for answer in found[12 : 12 + len(NAMES)] if isinstance(answer, Likely)}
    assert not nats & others  # the images matter
    assert found[-2:] == answerer(opened, batch_tokens, chat).answers(mixed[-2:])


def test_what_the_continuations_are_behind_is_read_once(
    folder: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    pictures: list[str] = []
    hidden, look = seen.KVCache.hidden, answering.read_pictures

    def counted(self: Any, new: Any) -> Any:
        read.append((len(new), max(map(len, new))))
        return hidden(self, new)

    def noted(places: list[str], *rest: Any) -> torch.Tensor:
        pictures.extend(places)
        return look(places, *rest)

    monkeypatch.setattr(seen.KVCache, "hidden", counted)
    monkeypatch.setattr(answering, "read_pictures", noted)
    images = (picture(folder, "0.png"),)
    requests = [Likelihood("the", f" {name} {n}", images) for n in range(10) for name in NAMES]
    answerer(opened, 100_000).answers(requests)
    context, _ = spelled(opened, requests[0], False)
    assert read[0] == (1, len(context) - 1)
    assert read[1][0] == len(requests)
    assert len(read) == 2
    assert len(pictures) == 1


@pytest.mark.parametrize("chat", [False, True])
def test_prompts_with_images_are_continued_and_never_lose_them(
    folder: Path, opened: Opened, chat: bool
) -> None:
    images = (picture(folder, "2.webp"),)
    long = "the cat sat on the mat. " * 20
    requests = [
        Generation(prompt, new_tokens=12, images=shown)
        for prompt, shown in (("the cat", images), ("", images), ("the cat", ()), (long, images))
    ]
    asked = answerer(opened, chat=chat)
    said = asked.answers(requests)
    assert asked.cut(requests) == [3]
    pixels = read_pictures([images[0].place], 32)
    tokenizer = opened.tokenizer
    at = 2 + len(tokenizer.encode("user\n")) if chat else 1
    for request, answer in zip(requests, said, strict=True):
        if chat:
            ids = encode_question(tokenizer, request.prompt)
        else:
            ids = [tokenizer.bos, *tokenizer.encode(request.prompt)]
        room = LENGTH - 12 - len(SPAN) * len(request.images)
        ids = ids if len(ids) <= room else [*ids[:at], *ids[at - room :]]
        ids = [*ids[:at], *SPAN * len(request.images), *ids[at:]]
        shown = pixels if request.images else pixels[:0]
        (alone,) = generate_batch(
            opened.model, [ids], 12, Sampling(), tokenizer.ends, images=[shown]
        )
        assert answer == tokenizer.decode(alone)
    assert len(set(map(str, said))) == 4


def test_requests_with_other_images_are_others_and_those_without_as_they_were(folder: Path) -> None:
    first, second = picture(folder, "0.png"), picture(folder, "1.jpg")
    moved = Picture("elsewhere", first.sha256)
    assert Likelihood("a", "b", (first,)) == Likelihood("a", "b", (moved,))
    keys = [
        key_of(request)
        for request in (
            Likelihood("a", "b"),
            Likelihood("a", "b", (first,)),
            Likelihood("a", "b", (second,)),
            Likelihood("a", "b", (second, first)),
        )
    ]
    assert len(set(keys)) == 4
    assert key_of(Likelihood("a", "b", (moved,))) == keys[1]
    text = json.dumps(["Likelihood", "a", "b"])
    assert keys[0] == hashlib.sha256(text.encode()).hexdigest()[:32]
    text = json.dumps(["Generation", "p", ["\n"], 64, 0.0, 0])
    assert key_of(Generation("p", ("\n",))) == hashlib.sha256(text.encode()).hexdigest()[:32]


def test_what_can_not_be_shown_is_told_in_one_line(folder: Path, opened: Opened) -> None:
    def refused(place: Path, sha256: str | None = None) -> str:
        with pytest.raises(PanthalassaError) as refusal:
            read_pictures([str(place)], 32, [sha256] if sha256 else [])
        assert str(place) in str(refusal.value)
        return str(refusal.value)

    data = folder / "data"
    (data / "text.png").write_text("no image")
    whole = (data / "0.png").read_bytes()
    (data / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert "is not there" in refused(data / "none.png")
    assert "can not be shown to the model: no image of the kinds" in refused(data / "text.png")
    assert "damaged" in refused(data / "cut.png")
    assert "has changed" in refused(data / "0.png", "0" * 64)
    assert issubclass(CorruptError, PanthalassaError)
    many = Likelihood("", " the cat", (picture(folder, "0.png"),) * 8)
    with pytest.raises(PanthalassaError, match="leave no room for it in the 128"):
        answerer(opened).answers([many])


def test_a_model_of_text_alone_says_that_it_can_not_see(folder: Path, tmp_path: Path) -> None:
    from asked import save_model

    blind = open_model(open_storage(str(save_model(tmp_path / "model"))), torch.device("cpu"))
    requests: list[Request] = [
        Likelihood("a", " b", (picture(folder, "0.png"),)),
        Generation("a", images=(picture(folder, "0.png"),)),
    ]
    for request in requests:
        with pytest.raises(ConfigError, match="can not read images: it was trained on text alone"):
            answerer(blind).answers([request])


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def task(name: str, folder: Path, **settings: Any) -> Task:
    return open_task(name, open_storage(str(folder)), **settings)


CHOICE = {
    "image": "images/0.png",
    "prompt": "English:",
    "choices": ["cat", "dog", "fish"],
    "answer": 1,
    "group": "en",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    save_images(tmp_path / "images", 3)
    return tmp_path


def test_recall_is_that_of_the_best_choices_and_ties_do_not_count(data: Path) -> None:
    lines(data / "a.jsonl", *[{**CHOICE, "answer": answer} for answer in range(3)])
    seen = {" cat": -2.0, " dog": -1.0, " fish": -2.0}
    found = scored(task("choices", data, recall=(1, 2)), likely_as(lambda _: seen))
    assert list(found.metrics) == ["accuracy", "accuracy_by_byte", "recall@1", "recall@2"]
    assert found.numbers["recall@1"].tolist() == [[0], [1], [0]]
    assert found.numbers["recall@2"].tolist() == [[0], [1], [0]]


def likely_as(known: Callable[[str], dict[str, float]]) -> Callable[[Request], Answer]:
    """A model that has probabilities of continuations for the name of an image."""

    def model(request: Request) -> Answer:
        assert isinstance(request, Likelihood)
        [image] = request.images
        return Likely(known(Path(image.place).name)[request.continuation], False, 1)

    return model


def test_calibrated_choices_are_told_by_what_their_image_makes_of_them(data: Path) -> None:
    (data / "others").mkdir()
    for name in ("1.jpg", "2.webp"):
        (data / "images" / name).rename(data / "others" / name)
    lines(data / "a.jsonl", *[{**CHOICE, "answer": answer} for answer in range(3)])
    nats = {
        "0.png": {" cat": -1.0, " dog": -3.0, " fish": -4.0},
        "1.jpg": {" cat": -1.5, " dog": -3.5, " fish": -5.0},
        "2.webp": {" cat": -0.5, " dog": -0.5, " fish": -5.0},
    }
    asked = task("choices", data, recall=(1, 2), calibrated="others")
    found = scored(asked, likely_as(nats.__getitem__))
    assert found.numbers["accuracy"].tolist() == [[1], [0], [0]]
    assert found.numbers["recall@2"].tolist() == [[1], [1], [0]]
    # less the means of the two others it makes 0 of cat, -1 of dog and 1 of fish
    assert found.numbers["accuracy_calibrated"].tolist() == [[0], [0], [1]]
    assert found.numbers["recall@2_calibrated"].tolist() == [[1], [0], [1]]
    assert found.groups == ["en"] * 3
    for name, chance in (("accuracy", 1 / 3), ("recall@2", 2 / 3), ("recall@2_calibrated", 2 / 3)):
        assert found.baselines[name] == pytest.approx(chance)


@pytest.mark.parametrize(
    ("row", "folder", "told"),
    [
        ({}, "none", "has 0 files in the folder 'none'"),
        ({}, "..", r"has 0 files in the folder '\.\.'"),
        ({}, "many", "has 33 files in the folder 'many'"),
        (None, "images", "line 1: calibrated asks for an image"),
        ({"image": ""}, "images", "line 1: image: String should have at least 1 character"),
        ({"images": ["a"]}, "images", "line 1: images: .* name it as `image`"),
    ],
)
def test_calibrated_choices_need_other_images(
    data: Path, row: dict[str, Any] | None, folder: str, told: str
) -> None:
    (data / "many").mkdir()
    for number in range(33):
        (data / "many" / str(number)).touch()
    blind = {key: value for key, value in CHOICE.items() if key != "image"}
    lines(data / "a.jsonl", blind if row is None else CHOICE | row)
    with pytest.raises(PanthalassaError, match=told):
        list(task("choices", data, calibrated=folder).items())


def test_an_item_is_what_its_image_is(data: Path) -> None:
    blind = {key: value for key, value in CHOICE.items() if key != "image"}
    lines(data / "a.jsonl", CHOICE, {**CHOICE, "image": "images/1.jpg"}, blind)
    ids = [identified(item).id for item in task("choices", data).items()]
    assert len({id.partition("#")[2] for id in ids}) == 3
    (data / "images" / "0.png").write_bytes((data / "images" / "2.webp").read_bytes())
    assert identified(next(task("choices", data).items())).id != ids[0]


@pytest.mark.parametrize(
    ("image", "told"),
    [
        ("../secret.png", "is not in the folder"),
        ("images/../../secret.png", "is not in the folder"),
        ("/etc/hostname", "is not in the folder"),
        ("images/0.png\0", "is not in the folder"),
        ("out.png", "is a link out of the folder"),
        ("images/none.png", "is not there"),
        ("images", "can not be read"),
    ],
)
def test_an_image_must_be_in_the_folder_of_its_file(data: Path, image: str, told: str) -> None:
    (data / "inside").mkdir()
    (data / "secret.png").write_bytes(b"")
    (data / "inside" / "out.png").symlink_to(data / "secret.png")
    (data / "images").rename(data / "inside" / "images")
    lines(data / "inside" / "a.jsonl", {**CHOICE, "image": image})
    for root in (data, data / "inside"):
        with pytest.raises(PanthalassaError, match=rf"a\.jsonl, line 1: the image .*{told}"):
            list(task("choices", root).items())


def test_captions_are_told_by_the_nearest_reference(data: Path) -> None:
    row = {"image": "images/0.png", "captions": ["a red cat", "das Meer"], "language": "en"}
    lines(data / "a.jsonl", row, {**row, "prompt": "English:"})
    said = {"": "Das Meer.", "English:": "zzzz"}

    def model(request: Request) -> Answer:
        assert isinstance(request, Generation)
        assert len(request.images) == 1
        return f" {said[request.prompt]}\n"

    found = scored(task("captioning", data), model)
    assert found.numbers["exact_match"].tolist() == [[1], [0]]
    in_both = found.numbers["chrf"].reshape(2, 6, 3)[:, :, 2].sum(axis=1)
    assert in_both[0] > 10
    assert in_both[1] == 0


def test_the_accuracy_of_vqa_is_that_of_its_evaluation() -> None:
    given = ["yes"] * 2 + ["no"] * 7 + ["maybe"]
    assert vqa_accuracy("No.", given, "en") == 1
    # of ten people two said it: 8 times all of them are left in, 2 times one is left out
    assert vqa_accuracy("yes", given, "en") == pytest.approx((8 * 2 + 2 * 1) / 30)
    assert vqa_accuracy("maybe", given, "en") == pytest.approx(9 / 30)
    assert vqa_accuracy("perhaps", given, "en") == 0
    assert vqa_accuracy("a cat", ["the cat"], "en") == 1


def test_questions_about_images_are_asked_with_them(data: Path) -> None:
    row = {
        "image": "images/0.png",
        "question": "What is it?",
        "answers": ["a cat"] * 4,
        "language": "en",
    }
    lines(data / "a.jsonl", row)

    def model(request: Request) -> Answer:
        assert isinstance(request, Generation)
        assert request.prompt == "Question: What is it?\nAnswer:"
        assert [Path(image.place).name for image in request.images] == ["0.png"]
        return " cat"

    found = scored(task("visual-questions", data), model)
    assert found.numbers["vqa_accuracy"].tolist() == [[1]]
    assert found.numbers["exact_match"].tolist() == [[1]]
