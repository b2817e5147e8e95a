import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from answered import knows, scored
from hypothesis import given
from hypothesis import strategies as st

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.sandbox import run
from panthalassa.evaluate.task import Answer, Generation, Request
from panthalassa.evaluate.tasks import open_task
from panthalassa.evaluate.tasks.code import fenced, pass_at_k
from panthalassa.storage import Storage, open_storage

HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def double(x):\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate('a') == 'aa'\n",
}
MBPP = {
    "task_id": 11,
    "text": "Write a function to double a number.",
    "code": "def double(x):\n  return 2 * x",
    "test_setup_code": "import math",
    "test_list": ["assert double(2) == 4", "assert double(math.inf) == math.inf"],
}


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    try:
        run("")
    except PanthalassaError as error:
        pytest.skip(str(error))


def data(folder: Path, *rows: dict[str, Any]) -> Storage:
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return open_storage(str(folder))


@pytest.mark.parametrize(
    ("answer", "passes"),
    [
        ("    return 2 * x\n", True),
        ("Here it is:\n```python\ndef double(x):\n    return x + x\n```\nDone.", True),
        ("    return 4\n", False),
        ("    return 2 * x\nimport sys; sys.exit(0)\n", False),  # an early end is no success
        ("    return 2 * x\nimport os; os._exit(0)\n", False),
        (
            "    return 2 * x\nimport os\n"
            "print(open('/box/program.py').read()[-40:].split(\"'\")[-2], flush=True)\nos._exit(0)\n",
            False,
        ),
        ("    while True: pass\n", False),
        ("    retrun 2 * x\n", False),
    ],
)
def test_a_function_passes_when_its_tests_do(tmp_path: Path, answer: str, passes: bool) -> None:
    task = open_task("human-eval", data(tmp_path, HUMAN_EVAL), seconds=2)
    found = scored(task, knows(answer))
    assert found.ids == ["HumanEval/0"]
    assert found.numbers["pass@1"].tolist() == [[float(passes)]]


def test_a_chat_is_asked_for_the_whole_function(tmp_path: Path) -> None:
    task = open_task("human-eval", data(tmp_path, HUMAN_EVAL), chat=True)
    (request,) = next(task.items()).requests
    assert isinstance(request, Generation)
    assert request.stop == ()
    assert HUMAN_EVAL["prompt"] in request.prompt
    answer = "Sure.\n```python\ndef double(x):\n    return x * 2\n\ndef other(): pass\n```"
    assert scored(task, knows(answer)).numbers["pass@1"][0, 0] == 1


def test_programs_of_mbpp_are_only_those_of_its_test_set(tmp_path: Path) -> None:
    storage = data(tmp_path, {**MBPP, "task_id": 10}, MBPP, {**MBPP, "task_id": 511})
    task = open_task("mbpp", storage)
    found = scored(task, knows("def double(x):\n  return 2 * x\n"))
    assert found.ids == ["11"]
    assert found.numbers["pass@1"].tolist() == [[1]]
    (request,) = next(task.items()).requests
    assert isinstance(request, Generation)
    assert request.temperature == 0
    assert "assert double(2) == 4" in request.prompt


def test_of_several_samples_the_estimates_are_without_bias(tmp_path: Path) -> None:
    task = open_task("human-eval", data(tmp_path, HUMAN_EVAL), samples=10, temperature=0.6)

    def model(request: Request) -> Answer:
        assert isinstance(request, Generation)
        assert request.temperature == 0.6
        return "    return 2 * x\n" if request.sample < 3 else "    return x\n"

    found = scored(task, model)
    assert set(found.metrics) == {"pass@1", "pass@10"}
    assert found.numbers["pass@1"][0, 0] == pytest.approx(0.3)
    assert found.numbers["pass@10"][0, 0] == 1


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_one(
    samples: int, draw: st.DataObject
) -> None:
    right, k = draw.draw(st.integers(0, samples)), draw.draw(st.integers(1, samples))
    chosen = list(combinations([True] * right + [False] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, chosen)) / len(chosen))


def test_pass_at_k_is_the_papers() -> None:
    """Its numerically stable form: 1 - prod(1 - k / i) for i from n - c + 1 to n."""
    product = math.prod(1 - 10 / i for i in range(200 - 7 + 1, 201))
    assert pass_at_k(200, 7, 10) == pytest.approx(1 - product)


def test_code_is_taken_out_of_its_fence() -> None:
    assert fenced("x\n```py\na = 1\n```\ny") == "a = 1\n"
    assert fenced("```\na = 1") == "a = 1"
    assert fenced("a = 1") == "a = 1"
