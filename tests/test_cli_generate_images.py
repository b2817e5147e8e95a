"""`panthalassa generate` with images: what is said depends on them, and mistakes are one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from asked import save_model
from click.testing import Result
from llava import SPAN, save_images, save_seeing
from s3 import BUCKET, Server
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.exchange.importing import import_model
from panthalassa.exchange.load import open_model
from panthalassa.exchange.pictures import read_pictures
from panthalassa.finetune.chat import encode_question
from panthalassa.model.generate import generate_batch
from panthalassa.model.sampling import Sampling
from panthalassa.model.text import ids_of
from panthalassa.storage import open_storage

Run = Callable[..., Result]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `model`, the run `run` that was imported from it, and files beside them."""
    place = tmp_path_factory.mktemp("seeing")
    save_seeing(place / "model", 128)
    import_model(open_storage(str(place / "model")), open_storage(str(place / "run")), print)
    save_images(place / "images", 3)
    return place


@pytest.fixture
def generate(place: Path) -> Run:
    def run(*arguments: object, model: str = "model", stdin: str | None = None) -> Result:
        greedy = ("--temperature", "0", "--max-tokens", "12")
        command = ["generate", str(place / model), *greedy, *map(str, arguments)]
        return CliRunner().invoke(app, command, input=stdin)

    return run


def text(result: Result) -> str:
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result.stdout.removesuffix("\n")


def message(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stdout.strip() == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("panthalassa: ")
    return line


def test_a_prompt_stands_behind_its_images(place: Path, generate: Run) -> None:
    opened = open_model(open_storage(str(place / "model")), torch.device("cpu"))
    names = [str(place / "images" / name) for name in ("0.png", "1.jpg")]
    pixels = read_pictures(names, 32)

    def said(ids: list[int], images: torch.Tensor) -> str:
        (found,) = generate_batch(opened.model, [ids], 12, Sampling(0.0), ends, images=[images])
        return opened.tokenizer.decode(found)

    ends = opened.tokenizer.ends
    bos, *cat = ids_of(opened.tokenizer, "the cat")
    one = text(generate("the cat", "--image", names[0]))
    assert one == said([bos, *SPAN, *cat], pixels[:1])
    both = text(generate("the cat", "--image", names[0], "--image", names[1]))
    assert both == said([bos, *SPAN, *SPAN, *cat], pixels)
    assert text(generate("", "--image", names[1])) == said([bos, *SPAN], pixels[1:])
    assert text(generate("--image", names[1], stdin="the cat\n")) == said(
        [bos, *SPAN, *cat], pixels[1:]
    )
    assert text(generate("the cat", "--image", names[0], model="run")) == one
    ids = encode_question(opened.tokenizer, "the cat", "Be brief.")
    at = ids.index(opened.tokenizer.turn_start, 2) + 1 + len(opened.tokenizer.encode("user\n"))
    chat = text(generate("the cat", "--chat", "--system", "Be brief.", "--image", names[0]))
    assert chat == said([*ids[:at], *SPAN, *ids[at:]], pixels[:1])
    assert len({one, both, chat, text(generate("the cat"))}) == 4


def test_a_line_of_a_file_names_images_beside_the_file(
    place: Path, generate: Run, server: Server, s3: str
) -> None:
    lines = [
        {"id": 7, "prompt": "the cat", "images": ["images/0.png"]},
        {"prompt": "the cat"},
        {"prompt": "", "images": ["images/1.jpg", "images/0.png"]},
    ]
    (place / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = [
        json.loads(line) for line in text(generate("--file", place / "prompts.jsonl")).split("\n")
    ]
    image = str(place / "images" / "0.png")
    assert found[0] == {**lines[0], "continuation": text(generate("the cat", "--image", image))}
    assert found[1] == {**lines[1], "continuation": text(generate("the cat"))}
    shutil.copytree(place / "images", server.folder / BUCKET / "images")
    shutil.copy(place / "prompts.jsonl", server.folder / BUCKET)
    there = text(generate("--file", f"s3://{BUCKET}/prompts.jsonl")).split("\n")
    assert list(map(json.loads, there)) == found


def test_mistakes_are_told_in_one_line(place: Path, generate: Run, tmp_path: Path) -> None:
    image = place / "images" / "0.png"
    assert "is not there" in message(generate("x", "--image", tmp_path / "none.png"))
    assert "the path of an image is empty" in message(generate("x", "--image", ""))
    assert "the prompt: images: Tuple should have at most 1000 items" in message(
        generate("x", *["--image", "a.png"] * 1001)
    )
    (tmp_path / "text.png").write_text("text")
    assert "can not be shown to the model: no image" in message(
        generate("x", "--image", tmp_path / "text.png")
    )
    assert "with --file name images in its lines" in message(
        generate("--file", "x", "--image", image)
    )
    save_model(tmp_path / "blind")
    told = message(generate("x", "--image", image, model=str(tmp_path / "blind")))
    assert "blind can not read images: it was trained on text alone" in told
    long = generate("x", *["--image", image] * 7)
    assert "was trained on texts of up to 128" in long.stderr
    path = tmp_path / "prompts.jsonl"
    for line, expected in (
        ({"prompt": "a", "images": ["../x.png"]}, "'../x.png' is not in the folder of the file"),
        ({"prompt": "a", "images": ["/x.png"]}, "'/x.png' is not in the folder of the file"),
        ({"prompt": "a", "images": "x.png"}, "images: Input should be a valid array"),
        ({"prompt": "a", "image": "x.png"}, "name images as `images`, a list of paths"),
        (
            {"messages": [{"role": "user", "content": "a"}], "images": ["x.png"]},
            "images stand beside a prompt",
        ),
    ):
        path.write_text(json.dumps(line))
        assert expected in message(generate("--file", path))
