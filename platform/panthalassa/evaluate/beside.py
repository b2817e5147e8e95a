"""Evaluations of checkpoints while their run trains on.

The command that trains sees every event of the run. When a checkpoint is saved, one task of Ray opens
the newest good one and asks it, on resources of its own; the ranks know nothing of it. What comes of it
is written to `RUN/evaluations/CHECKPOINT/`, and told. Whatever goes wrong there is told, too, and never
ends the training.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from panthalassa.cluster import compute, mendable
from panthalassa.config import Config
from panthalassa.config_evaluation import Beside
from panthalassa.evaluate.answering import Answerer
from panthalassa.evaluate.questions import described, read_questions
from panthalassa.evaluate.results import Model, write_results
from panthalassa.evaluate.task import Answer, Request
from panthalassa.evaluate.telling import explain, told_cut
from panthalassa.exchange.load import open_model
from panthalassa.run_config import folder_of
from panthalassa.storage import Storage
from panthalassa.train.events import Ended, Event, Notice, Saved

FOLDER = "evaluations"
"""Of a run."""

Show = Callable[[Event], None]


def beside(config: Config, show: Show) -> Show:
    """What is to get a run's events in the place of `show`, which gets them all.

    Raises PanthalassaError for tasks that can not be asked.
    """
    if config.evaluation.beside is None:
        return show
    read_questions(config.evaluation.beside.tasks)
    return Besides(folder_of(config), config.evaluation.beside, show)


class Besides:
    """Asks one checkpoint after the other; is called with every event, while Ray runs."""

    def __init__(self, run: Storage, section: Beside, show: Show) -> None:
        self._run, self.section, self._show = run, section, show
        self._saved = 0
        self._waiting = False
        self._under_way: Any = None
        self._asked = ""

    def __call__(self, event: Event) -> None:
        self._show(event)
        if isinstance(event, Saved):
            self._waiting |= self._saved % self.section.every == 0
            self._saved += 1
        self._go_on(seconds=0)
        if isinstance(event, Ended):
            self._end(event.interrupted)

    def _go_on(self, seconds: float) -> None:
        """Tell what is over, which may take so long; begin what waits."""
        import ray

        if self._under_way:
            ready, _ = ray.wait([self._under_way], timeout=seconds)
            if not ready:
                return
            self._tell(ready[0])
            self._under_way = None
        if self._waiting:
            self._waiting = False
            task = ray.remote(
                num_cpus=self.section.cpus, num_gpus=self.section.gpus, max_retries=0
            )(ask)
            self._under_way = task.remote(self._run, self.section, self._asked)

    def _end(self, interrupted: bool) -> None:
        import ray

        while self._under_way and not interrupted:
            before = self._under_way
            self._go_on(self.section.wait_seconds)
            if self._under_way is before:
                self._show(
                    Notice("the last evaluation takes longer than wait_seconds: it is ended")
                )
                break
        if self._under_way:
            ray.cancel(self._under_way, force=True)

    def _tell(self, ref: Any) -> None:
        import ray

        try:
            self._asked, lines = ray.get(ref)
            for line in lines:
                self._show(Notice(line))
        except ray.exceptions.RayError as error:
            reason = mendable(error) or str(error).strip().splitlines()[-1]
            self._show(Notice(f"the evaluation beside the training failed: {reason}"))


def ask(run: Storage, section: Beside, asked: str) -> tuple[str, list[str]]:
    """Ask the newest good checkpoint of a run, if it is not the one with the digest `asked`, and write
    the results. Returns its digest, and lines that tell them. Raises PanthalassaError."""
    compute()
    torch.set_num_threads(1)
    said: list[str] = []
    device = torch.device("cuda" if section.gpus else "cpu")
    opened = open_model(run, device, torch.float32, tell=said.append)
    checkpoint = opened.name.rpartition(", ")[2]
    if opened.digest == asked:
        return asked, [*said, f"{checkpoint} is evaluated already, and there is no newer one"]
    length, chat = opened.known_length(), opened.chats is True
    answerer = Answerer(opened.model, opened.tokenizer, length, section.batch_tokens, chat)
    cut = 0

    def answers(requests: Sequence[Request]) -> list[Answer]:
        nonlocal cut
        cut += len(answerer.cut(requests))
        return answerer.answers(requests)

    found = read_questions(section.tasks).scores(answers, said.append)
    if cut:
        said.append(told_cut(cut, length))
    results = write_results(
        run.below(f"{FOLDER}/{checkpoint}"),
        Model(name=opened.name, digest=opened.digest),
        described("fp32", chat, length, section.tasks),
        found,
        cut=cut,
    )
    for task, metric, value, interval, items, always in explain(results):
        most = f"; {always} with the most frequent answer or a guess" if always else ""
        said.append(
            f"{checkpoint}, {task}: {metric} {value} (95 % {interval}, {items} items{most})"
        )
    return opened.digest, said
