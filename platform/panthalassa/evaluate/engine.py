"""Ray workers that answer: requests come in, and the answers in their order.

Each worker holds the whole model. Requests are put in a fixed order and cut into chunks, which depends
on nothing but the requests: so the answers are the same for any number of workers, and after any number
of interruptions. A chunk that is answered is kept at once; one of which all is known is not asked again.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from panthalassa.cluster import compute, mendable
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate.answering import Answerer
from panthalassa.evaluate.config import Evaluation
from panthalassa.evaluate.kept import Kept, key_of
from panthalassa.evaluate.task import Answer, Generation, Request, images_of, written
from panthalassa.exchange.load import open_model
from panthalassa.storage import Storage, open_storage

if TYPE_CHECKING:
    import ray

CHUNK = 128
"""Requests of a chunk, at most."""
CHARACTERS = 1 << 17
"""Of the texts of a chunk, as long as it has more than one."""
OF_A_TOKEN = 32
"""Characters whose reading takes as long as a new token."""
TOLD_EVERY = 30.0
"""Seconds."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Described:
    """The model that answers."""

    name: str
    digest: str
    length: int
    """Tokens that it reads at most."""


class Worker:
    """An actor: opens the model at its first call."""

    def __init__(self, config: Evaluation) -> None:
        self._config = config
        self._model: tuple[Described, Answerer] | None = None

    def describe(self) -> Described:
        return self._opened()[0]

    def process(self) -> int:
        return os.getpid()

    def answers(self, requests: Sequence[Request], digest: str) -> tuple[list[Answer], list[int]]:
        """The answers, and the numbers of the requests that were read in part.

        Raises PanthalassaError when the model is not that of `digest`.
        """
        described, answerer = self._opened()
        if described.digest != digest:
            raise PanthalassaError(
                f"{self._config.model} has changed since the evaluation began: {described.name} is "
                "another checkpoint. The same command takes the newest; export a run that trains."
            )
        return answerer.answers(requests), answerer.cut(requests)

    def _opened(self) -> tuple[Described, Answerer]:
        if self._model is None:
            compute()
            config = self._config
            torch.set_num_threads(config.cluster.threads_per_worker)
            place = open_storage(config.model)
            device = torch.device("cuda" if config.cluster.gpus_per_worker else "cpu")
            opened = open_model(place, device, DTYPES[config.dtype], config.staging)
            length = config.length or opened.known_length()
            self._model = (
                Described(opened.name, opened.digest, length),
                Answerer(opened.model, opened.tokenizer, length, config.batch_tokens, config.chat),
            )
        return self._model


class Engine:
    """A pool of workers, from its creation to the end of the block. Ray runs already.

    Raises PanthalassaError when the model can not be opened, or no worker finds a place.
    """

    def __init__(self, config: Evaluation, answers: Storage, tell: Callable[[str], None]) -> None:
        import ray

        self._ray, self._tell, self._cluster = ray, tell, config.cluster
        actor = ray.remote(
            num_cpus=config.cluster.cpus_per_worker,
            num_gpus=config.cluster.gpus_per_worker,
            max_restarts=config.cluster.max_failures,
            max_task_retries=config.cluster.max_failures,
        )(Worker)
        self._workers: list[Any] = [actor.remote(config) for _ in range(config.cluster.workers)]
        self.model = self._first_description()
        self._kept = Kept(answers.below(_folder(self.model, config)))
        self._known, self._cut = self._kept.read(tell)
        self.cut: set[str] = set()
        """The keys of the requests that were asked and read in part."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """A worker that nobody holds ends by itself, when it has done what it was asked."""
        for worker in self._workers if kind else []:
            self._ray.kill(worker)
        self._workers.clear()

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """One for each request, in their order. Raises PanthalassaError."""
        keys = [key_of(request) for request in requests]
        known = self._known
        unique = dict(zip(keys, requests, strict=True))
        missing = [chunk for chunk in chunks(unique) if not all(key in known for key, _ in chunk)]
        asked = sum(map(len, missing))
        self._tell(
            f"{len(unique):,} requests, of which {len(unique) - asked:,} are answered already"
        )
        done, told = 0, time.monotonic()
        for chunk, (found, in_part) in self._run(missing):
            fresh = {key: answer for (key, _), answer in zip(chunk, found, strict=True)}
            cut = {chunk[number][0] for number in in_part}
            self._kept.write(fresh, cut)
            known.update(fresh)
            self._cut |= cut
            done += len(chunk)
            if time.monotonic() - told > TOLD_EVERY:
                told = time.monotonic()
                self._tell(f"{done:,} of {asked:,} requests")
        self.cut |= self._cut & unique.keys()
        return [known[key] for key in keys]

    def processes(self) -> list[int]:
        """The ids of the workers' processes, each on its node."""
        return list(self._ray.get([worker.process.remote() for worker in self._workers]))

    def _first_description(self) -> Described:
        refs = [worker.describe.remote() for worker in self._workers]
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=self._cluster.wait_seconds)
        if not ready:
            self.__exit__(PanthalassaError)
            raise PanthalassaError(
                f"no worker was ready in cluster.wait_seconds={self._cluster.wait_seconds:.0f}: each "
                f"wants {self._cluster.cpus_per_worker} CPUs and {self._cluster.gpus_per_worker} GPUs"
            )
        try:
            described: Described = self._get(ready[0])
            return described
        except BaseException as error:
            self.__exit__(type(error))
            raise

    def _run(
        self, waiting_chunks: "list[Chunk]"
    ) -> "Iterator[tuple[Chunk, tuple[list[Answer], list[int]]]]":
        """The chunks as they are answered. A worker that is ready gets the next one."""
        waiting = deque(waiting_chunks)
        left = len(waiting)
        under_way: dict[ray.ObjectRef[Any], tuple[Chunk | None, Any]] = {
            worker.describe.remote(): (None, worker) for worker in self._workers
        }
        while left:
            ready, _ = self._ray.wait(list(under_way))
            chunk, worker = under_way.pop(ready[0])
            if waiting:
                new = waiting.popleft()
                asked = [request for _, request in new]
                under_way[worker.answers.remote(asked, self.model.digest)] = new, worker
            found = self._get(ready[0])
            if chunk is not None:
                left -= 1
                yield chunk, found

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            if found := mendable(error):
                raise found from error
            if not isinstance(error, self._ray.exceptions.RayActorError):
                raise
            raise PanthalassaError(
                f"a worker died more than cluster.max_failures={self._cluster.max_failures} times: "
                f"{str(error).strip().splitlines()[-1]}. What is answered is kept; with less "
                "batch_tokens a worker takes less memory."
            ) from error


Chunk = Sequence[tuple[str, Request]]
"""Requests with their keys."""


def chunks(requests: dict[str, Request]) -> "Iterator[Chunk]":
    """All of them by key, the dear ones first, those of one kind and like length together."""
    chunk: list[tuple[str, Request]] = []
    characters = 0
    for key, request in sorted(requests.items(), key=lambda pair: _order(pair[1])):
        cost = _cost(request)
        if chunk and (len(chunk) == CHUNK or characters + cost > CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append((key, request))
        characters += cost
    if chunk:
        yield chunk


def _order(request: Request) -> tuple[Any, ...]:
    _, first, *others = written(request)  # the same context comes with several continuations
    images = [picture.sha256 for picture in images_of(request)]
    return isinstance(request, Generation), -len(first), first, images, others


def _cost(request: Request) -> int:
    """In characters that are read."""
    _, *parts = written(request)
    texts = sum(len(part) for part in parts if isinstance(part, str))
    return texts + (request.new_tokens * OF_A_TOKEN if isinstance(request, Generation) else 0)


def _folder(model: Described, config: Evaluation) -> str:
    """Named by all that an answer depends on."""
    return f"{model.digest[:32]}-{config.dtype}-{model.length}{'-chat' * config.chat}"
