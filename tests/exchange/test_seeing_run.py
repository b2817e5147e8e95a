"""A run of pairs is exported, says the same in transformers, and is evaluated with images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from llama import load_ours, tensors, transformers
from llava import load_llava
from pictures import VISION, caption, file_of, pairs, picture, write_jsonl
from PIL import Image
from typer.testing import CliRunner

from panthalassa.cli import app
from panthalassa.config import Config, Corpus
from panthalassa.corpus.manifest import Manifest
from panthalassa.corpus.prepare import prepare
from panthalassa.corpus.tokenizer import ids_of_image, read_tokenizer
from panthalassa.evaluate.results import read_results
from panthalassa.exchange.export import export
from panthalassa.exchange.importing import import_model
from panthalassa.exchange.load import open_model
from panthalassa.storage import open_storage
from panthalassa.train.run import pretrain

pytestmark = pytest.mark.ray
SIZE = VISION.image_size


@pytest.fixture(scope="module")
def seeing(
    ray_cluster: str, configure: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the run `runs/small`, the corpus of pairs that it was trained on, and `export`."""
    place = tmp_path_factory.mktemp("seeing")
    write_jsonl(place / "raw" / "a.jsonl", pairs(range(40), "en", "de"))
    settings = Corpus(
        directory=str(place / "corpus"),
        sources=[str(place / "raw")],
        sequence_length=64,
        vocabulary_size=300,
        rows_per_group=4,
        held_out_share=0.2,
    )
    prepare(settings, lambda line: None, vision=VISION)
    config = configure(
        place,
        f"corpus.directory={place / 'corpus'}",
        f"model.vision={VISION.model_dump_json()}",
        "train.steps=6",
        "checkpoint.every=3",
        "evaluation.every=6",
        "cluster.workers=1",
    )
    pretrain(config, lambda event: None)
    export(open_storage(str(place / "runs" / "small")), open_storage(str(place / "export")), print)
    return place


def test_it_says_in_transformers_what_the_run_says(seeing: Path, tmp_path: Path) -> None:
    theirs = load_llava(seeing / "export")
    ours, commit = load_ours(seeing / "runs" / "small")
    assert commit.step == 6
    image = Image.fromarray(picture(7, 50, 50))
    square = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    processor = transformers().AutoProcessor.from_pretrained(seeing / "export")
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    found = processor(images=square, text=f"{shown}a red boat", return_tensors="pt")
    corpus = open_storage(str(seeing / "corpus"))
    manifest = Manifest.model_validate_json(corpus.read("manifest.json"))
    tokenizer = read_tokenizer(corpus, manifest)
    ids = [tokenizer.bos, *ids_of_image(VISION.tokens), *tokenizer.encode("a red boat")]
    assert found["input_ids"].tolist() == [ids]
    tokens, images = torch.tensor([ids]), torch.from_numpy(np.asarray(square).copy())[None]
    with torch.no_grad():
        here = ours(tokens, torch.zeros_like(tokens), images=images)
        there = theirs(**found).logits
    assert float((here - there).abs().max()) < 1e-4
    card = (seeing / "export" / "README.md").read_text()
    assert "pipeline_tag: image-text-to-text" in card
    assert f"| vision.image_size | {SIZE} |" in card
    assert f"a square of {SIZE} × {SIZE} pixels" in card
    assert f"takes the place of {VISION.tokens} tokens" in card
    import_model(open_storage(str(seeing / "export")), open_storage(str(tmp_path / "run")), print)
    export(open_storage(str(tmp_path / "run")), open_storage(str(tmp_path / "back")), print)
    assert tensors(tmp_path / "back") == tensors(seeing / "export")
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        same = [
            json.loads((place / name).read_text())
            for place in (seeing / "export", tmp_path / "back")
        ]
        assert same[0] == same[1]
    opened = open_model(open_storage(str(tmp_path / "back")), torch.device("cpu"))
    assert opened.length == 64
    assert opened.model.config.vision == VISION


def test_it_is_evaluated_with_images(seeing: Path, tmp_path: Path) -> None:
    names = {language: [caption(n, language) for n in range(10)] for language in ("en", "de")}
    rows: dict[str, list[dict[str, Any]]] = {"choices": [], "captioning": []}
    for task in rows:
        (tmp_path / task).mkdir()
    for number in range(6):
        shown = {"image": f"{number}.png"}
        for task in rows:
            (tmp_path / task / shown["image"]).write_bytes(file_of(picture(number)))
        for language, known in names.items():
            choice = {"prompt": "", "choices": known, "answer": number, "group": language}
            rows["choices"].append({**shown, **choice})
            rows["captioning"].append({**shown, "captions": [known[number]], "language": language})
    for task, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / task / "a.jsonl").write_text(text)
    entries: list[dict[str, Any]] = [{"name": task, "data": str(tmp_path / task)} for task in rows]
    (tmp_path / "choices" / "others").mkdir()
    (tmp_path / "choices" / "others" / "9.png").write_bytes(file_of(picture(9)))
    entries[0]["settings"] = {"recall": [1, 3], "calibrated": "others"}
    tree = {
        "model": str(seeing / "runs" / "small"),
        "output": str(tmp_path / "out"),
        "tasks": entries,
        "cluster": {"workers": 1, "cpus_per_worker": 0.5},
    }
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(tree))
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path / "evaluate.yaml")])
    assert done.exit_code == 0, done.output
    assert "accuracy_calibrated" in done.output
    results = read_results(open_storage(str(tmp_path / "out")))
    metrics = results.tasks["choices"].metrics
    for name in ("recall@1", "recall@3", "recall@1_calibrated", "accuracy_calibrated"):
        assert set(metrics[name].groups) == {"de", "en"}
        assert metrics[name].whole.n == 12
        assert metrics[name].whole.low <= metrics[name].whole.value <= metrics[name].whole.high
    assert metrics["recall@1"].whole.value <= metrics["recall@3"].whole.value
    assert results.tasks["captioning"].metrics["chrf"].whole.n == 12
    # a choice with its image for each item, and with another one for each language
    assert f"{12 * 10 + 2 * 10} requests" in " ".join(done.output.split())
