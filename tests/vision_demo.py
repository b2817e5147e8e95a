"""The steps of `make vision-demo` that are no command of the platform.

`pairs EMOJI FOLDER` writes emoji with their names in 20 languages to be prepared (`pairs/`), and, of
those that are held out in every language, questions (`questions/`: which of a hundred names is it?)
and prompts for names in five languages (`sheet/`).

`compare RUN EXPORT EVALUATION` loads the export in transformers and compares its logits with ours, and
how often the right name is among the best with chance.

`picture RUN` takes the images of the run's report and what was said of them as `contact-sheet.png`.
"""

import argparse
import io
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from browsers import NoBrowser, Page, start
from demos import told, write_records
from emoji import (
    SQUARES,
    Emoji,
    prompt_of,
    read_emoji,
    split,
    write_pairs,
    write_pictures,
)
from PIL import Image
from release_demo import TOLERANCE
from transformers import AutoTokenizer, LlavaForConditionalGeneration, SiglipImageProcessor

from panthalassa.corpus.images import pixels, prepared
from panthalassa.corpus.pairs import ids_of_pair
from panthalassa.evaluate.results import Figure, Scores, figure, read_results, read_scores
from panthalassa.exchange.load import open_model
from panthalassa.storage import open_storage

CANDIDATES = 100
BEST = 10
ASKED = 80
"""Held-out emoji whose names are looked for, in each language."""
OTHERS = 8
"""Learned emoji beside which names are told to be likely for what is shown."""
SHOWN = 24
SHEET = ("en", "de", "ru", "el", "ar")
"""Languages of the contact sheet, whose scripts a plain system has fonts for."""
LOOKS = {"en": 12, "de": 12}
"""The languages that are learned first see each emoji in so many looks, the others in one."""
SEED = 1


def write_demo(root: Path, folder: Path) -> None:
    for name in ("pairs", "questions", "sheet"):
        shutil.rmtree(folder / name, ignore_errors=True)
    learned, held_out = split(read_emoji(root))
    languages = learned[0].names
    write_pairs(learned, folder / "pairs", dict.fromkeys(languages, 1) | LOOKS)
    drawn = random.Random(SEED).sample(held_out, max(ASKED, SHOWN))
    write_questions(drawn[:ASKED], held_out, folder / "questions")
    write_pictures(random.Random(SEED).sample(learned, OTHERS), folder / "questions" / "others")
    write_sheet(drawn[:SHOWN], folder / "sheet")
    print(
        f"{len(learned)} emoji with their names in {len(languages)} languages to learn from, "
        f"{len(held_out)} held out, in {folder}"
    )


def write_questions(asked: Sequence[Emoji], held_out: Sequence[Emoji], folder: Path) -> None:
    """For each language and emoji its name among those of others that are held out as well."""
    write_pictures(asked, folder / "pictures")
    draw = random.Random(SEED)
    records = []
    for emoji in asked:
        others = [other for other in held_out if other is not emoji]
        candidates = draw.sample([emoji, *draw.sample(others, CANDIDATES - 1)], CANDIDATES)
        records += [
            {
                "image": f"pictures/{emoji.code}.png",
                "prompt": prompt_of(language),
                "choices": [candidate.names[language] for candidate in candidates],
                "answer": candidates.index(emoji),
                "group": language,
            }
            for language in emoji.names
        ]
    write_records(folder / "questions.jsonl", records)


def write_sheet(shown: Sequence[Emoji], folder: Path) -> None:
    write_pictures(shown, folder / "pictures")
    records = [
        {
            "images": [f"pictures/{emoji.code}.png"],
            "prompt": prompt_of(language),
            "reference": emoji.names[language],
        }
        for emoji in shown
        for language in SHEET
    ]
    write_records(folder / "prompts.jsonl", records)


@torch.no_grad()
def difference(run: str, export: str, pictures: Path) -> float:
    """The largest between our logits and those of transformers, over pictures with a text."""
    ours = open_model(open_storage(run), torch.device("cpu"))
    theirs = LlavaForConditionalGeneration.from_pretrained(export).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    processor = SiglipImageProcessor.from_pretrained(export)
    vision = ours.model.config.vision
    assert vision is not None
    largest = 0.0
    for file, language in zip(sorted(pictures.iterdir()), SHEET, strict=False):
        image = prepared(file.read_bytes(), SQUARES)
        text = f"{prompt_of(language)} {file.stem}"
        tokens = torch.from_numpy(ids_of_pair(ours.tokenizer, text, vision.tokens)).long()[None]
        assert tokenizer(text).input_ids[1:] == ours.tokenizer.encode(text)
        seen = torch.from_numpy(pixels(image, SQUARES))[None]
        given = processor(Image.open(io.BytesIO(image)), return_tensors="pt").pixel_values
        here = ours.model(tokens, torch.zeros_like(tokens), images=seen)
        there = theirs(input_ids=tokens, pixel_values=given).logits
        largest = max(largest, (here - there).abs().max().item())
    return largest


def by_picture(found: Scores, metric: str) -> Figure:
    """The metric over pictures: questions about one in every language follow each other."""
    rights = found.numbers[metric].reshape(-1, len(found.groups_of()))
    whole = figure("mean", rights.mean(axis=1, keepdims=True))
    assert whole is not None
    return whole


def compare(run: str, export: str, evaluation: str) -> bool:
    logits = difference(run, export, Path(run) / "generated" / "pictures")
    print(
        f"logits here and in transformers differ by {logits:.1e} at most ({TOLERANCE} is allowed)"
    )
    storage = open_storage(evaluation)
    results = read_results(storage)
    [(name, task)] = results.tasks.items()
    best, first = (task.metrics[f"recall@{k}_calibrated"] for k in (BEST, 1))
    print(
        f"the right one of {CANDIDATES} names of held-out emoji is among the best {BEST}, and first:"
    )
    for language, found in best.groups.items():
        print(f"{language}  {told(found)}   {told(first.groups[language])}")
    scores = read_scores(storage, results, name)
    whole, alone = (by_picture(scores, f"recall@{k}_calibrated") for k in (BEST, 1))
    print(f"all {told(whole)}   {told(alone)}, where items are pictures")
    print(f"by chance {BEST / CANDIDATES:.0%} and {1 / CANDIDATES:.0%}")
    return logits <= TOLERANCE and whole.low > BEST / CANDIDATES


def take_picture(run: Path) -> Path:
    """The section of images of the run's report, as a headless Chromium draws it."""
    file = run / "contact-sheet.png"
    with TemporaryDirectory() as folder:
        driver = start(Path(folder))
        try:
            page = Page(driver, Path(folder))
            page.open(run.resolve() / "report.html")
            page.screenshot(file, "section.images")
        finally:
            driver.quit()
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    commands = parser.add_subparsers(required=True, dest="command")
    pairs = commands.add_parser("pairs")
    pairs.add_argument("emoji", type=Path)
    pairs.add_argument("folder", type=Path)
    comparison = commands.add_parser("compare")
    for name in ("run", "export", "evaluation"):
        comparison.add_argument(name)
    picture = commands.add_parser("picture")
    picture.add_argument("run", type=Path)
    given = parser.parse_args()
    if given.command == "pairs":
        write_demo(given.emoji, given.folder)
    elif given.command == "picture":
        try:
            print(take_picture(given.run))
        except NoBrowser as error:
            print(f"no picture was taken of {given.run}/report.html: {error}")
    elif not compare(given.run, given.export, given.evaluation):
        sys.exit("the demo does not hold what it promises")


if __name__ == "__main__":
    main()
