"""The two steps of `make release-demo` that are no command of the platform.

`examples UDHR FOLDER` writes the Universal Declaration of Human Rights in ten languages as examples to
learn from (`train.jsonl`), and its later articles as questions to be asked (`test/test.jsonl`): which
language is this? No article is on both sides.

`compare RUN EXPORT EVALUATION` loads the export in transformers and compares its logits with ours, and
the accuracy of the evaluation with that of always giving one answer.
"""

import argparse
import sys
from pathlib import Path

import torch
from demos import beginning, learned, write_records
from transformers import AutoModelForCausalLM, AutoTokenizer
from udhr import read_declarations

from panthalassa.exchange.load import open_model
from panthalassa.storage import open_storage

LANGUAGES = {
    "eng": "English",
    "deu_1996": "German",
    "fra": "French",
    "spa": "Spanish",
    "ita": "Italian",
    "fin": "Finnish",
    "pol": "Polish",
    "tur": "Turkish",
    "swh": "Swahili",
    "vie": "Vietnamese",
}
TRAINED = 2 / 3
"""Share of a declaration, from its beginning, that is learned from."""
LETTERS = 160
"""Of a paragraph that is shown, at most."""
TOLERANCE = 1e-4
SENTENCES = ("All human beings are born free", "Alle Menschen sind frei", "Kaikki ihmiset")


def write_examples(udhr: Path, folder: Path) -> None:
    names = sorted(LANGUAGES.values())
    examples, asked = [], []
    for declaration in read_declarations(udhr):
        if (name := LANGUAGES.get(declaration.code)) is None:
            continue
        end = int(len(declaration.paragraphs) * TRAINED)
        for number, paragraph in enumerate(declaration.paragraphs):
            prompt = f"Which language is this? {beginning(paragraph, LETTERS)}"
            if number < end:
                examples.append(
                    {"prompt": prompt, "answer": name, "language": declaration.language}
                )
            else:
                right = names.index(name)
                group = declaration.language
                asked.append({"prompt": prompt, "choices": names, "answer": right, "group": group})
    write_records(folder / "train.jsonl", examples)
    write_records(folder / "test/test.jsonl", asked)
    print(f"{len(examples)} examples to learn from and {len(asked)} questions in {folder}")


@torch.no_grad()
def difference(run: str, export: str) -> float:
    """The largest between our logits and those of transformers, over all SENTENCES."""
    ours = open_model(open_storage(run), torch.device("cpu"))
    theirs = AutoModelForCausalLM.from_pretrained(export).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    largest = 0.0
    for sentence in SENTENCES:
        tokens = tokenizer(sentence, return_tensors="pt").input_ids
        assert tokens[0].tolist() == [ours.tokenizer.bos, *ours.tokenizer.encode(sentence)]
        found = ours.model(tokens, torch.zeros_like(tokens)) - theirs(tokens).logits
        largest = max(largest, found.abs().max().item())
    return largest


def compare(run: str, export: str, evaluation: str) -> bool:
    logits = difference(run, export)
    print(
        f"logits here and in transformers differ by {logits:.1e} at most ({TOLERANCE} is allowed)"
    )
    return learned(evaluation) and logits <= TOLERANCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    commands = parser.add_subparsers(required=True, dest="command")
    examples = commands.add_parser("examples")
    examples.add_argument("udhr", type=Path)
    examples.add_argument("folder", type=Path)
    comparison = commands.add_parser("compare")
    for name in ("run", "export", "evaluation"):
        comparison.add_argument(name)
    given = parser.parse_args()
    if given.command == "examples":
        write_examples(given.udhr, given.folder)
    elif not compare(given.run, given.export, given.evaluation):
        sys.exit("the release does not hold what it promises")


if __name__ == "__main__":
    main()
