"""Images and what was said of them: shown from the run's folder, inert, within bounds, in a browser."""

import io
import json
from pathlib import Path

import pytest
from browsers import Page
from PIL import Image
from reports import write_run

from panthalassa.errors import PanthalassaError
from panthalassa.report import images
from panthalassa.report.images import images_of_run
from panthalassa.report.page import write_report
from panthalassa.storage import Storage, open_storage

Line = dict[str, object]


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "ocean"))


def picture(colour: str, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, kind)
    return data.getvalue()


def write_lines(run: Storage, *lines: Line, name: str = "said.jsonl") -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    run.write(f"generated/sheet/{name}", text.encode())


def said(image: str, prompt: str = "en:", continuation: str = " whale", **more: object) -> Line:
    return {"prompt": prompt, "images": [image], "continuation": continuation, **more}


def test_a_card_has_an_image_and_all_that_was_said_of_it(run: Storage) -> None:
    run.write("generated/sheet/a.png", picture("red"))
    run.write("generated/sheet/b.jpg", picture("blue", "JPEG"))
    write_lines(run, said("a.png"), said("b.jpg"), said("a.png", "de:", " Wal", reference="Wal"))
    write_lines(run, {"prompt": "en:", "images": ["a.png"]}, name="prompts.jsonl")
    shown = images_of_run(run)
    assert shown is not None
    assert shown.left_out == 0
    first, second = shown.cards
    assert [(line.prompt, line.continuation) for line in first.said] == [
        ("en:", " whale"),
        ("de:", " Wal"),
    ]
    assert first.images[0].startswith("data:image/png;base64,")
    assert second.images[0].startswith("data:image/jpeg;base64,")


def test_texts_alone_are_no_images(run: Storage) -> None:
    assert images_of_run(run) is None
    write_lines(run, {"prompt": "the sea", "continuation": " is wide"})
    assert images_of_run(run) is None


@pytest.mark.parametrize("path", ["../../config.yaml", "/etc/passwd", "", "a/../../b.png"])
def test_an_image_elsewhere_is_refused(run: Storage, path: str) -> None:
    write_lines(run, said(path))
    with pytest.raises(PanthalassaError, match=r"said\.jsonl, line 1 .*no path within"):
        images_of_run(run)


def test_what_is_no_image_or_too_large_or_missing_is_named(
    run: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_lines(run, said("a.png"))
    with pytest.raises(PanthalassaError, match=r"a\.png"):
        images_of_run(run)
    run.write("generated/sheet/a.png", b"<script>")
    with pytest.raises(PanthalassaError, match=r"a\.png is no PNG"):
        images_of_run(run)
    run.write("generated/sheet/a.png", picture("red"))
    monkeypatch.setattr(images, "LARGEST_IMAGE", 10)
    with pytest.raises(PanthalassaError, match=r"a\.png has \d+ bytes, and 10 are shown at most"):
        images_of_run(run)


def test_more_than_a_page_shows_are_counted(run: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_IMAGES", 2)
    names = [f"{number}.png" for number in range(5)]
    for name in names:
        run.write(f"generated/sheet/{name}", picture("red"))
    write_lines(run, *map(said, names))
    shown = images_of_run(run)
    assert shown is not None
    assert (len(shown.cards), shown.left_out) == (2, 3)


def test_a_browser_shows_them_and_runs_nothing_of_what_was_said(page: Page, run: Storage) -> None:
    write_run(run, 20)
    run.write("generated/sheet/a.png", picture("red"))
    hostile = '<img src=x onerror="window.hurt=1"><script>window.hurt=1</script>'
    write_lines(run, said("a.png", continuation=hostile), said("a.png", "he:", " לוויתן"))
    page.open(Path(write_report(run)), width=390)
    assert page.value("document.querySelectorAll('.seen li').length") == 1
    assert page.value("document.querySelector('.seen img').naturalWidth") == 8
    assert page.value("document.querySelector('.seen dd').innerText") == hostile
    assert page.value("window.hurt ?? null") is None
    assert page.value("document.documentElement.scrollWidth") == 390
