"""Answers to requests by one model in one process.

Texts become token ids, ids become windows no longer than what the model was trained on, windows of
like length become batches. How texts are cut into tokens and windows is that of the LM Evaluation
Harness 0.4 (`TemplateLM._encode_pair`, `get_rolling_token_windows`), so that both count the same; each
text begins with `bos`, as documents do in training. A prompt that is too long loses what is behind its
beginning, a chat what is behind the header of the user's turn; a context outside of chats loses its
beginning, `bos` with it, as in the harness. Images stand behind `bos`, or in front of what the user says
in a chat, and are never cut: nor is `bos` then.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from panthalassa.config_model import Vision
from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.corpus.tokenizer import ids_of_image
from panthalassa.errors import PanthalassaError
from panthalassa.evaluate import seen
from panthalassa.evaluate.task import (
    Answer,
    Generation,
    Likelihood,
    Likely,
    Picture,
    Request,
    Rolling,
    images_of,
)
from panthalassa.exchange.pictures import read_pictures, vision_of
from panthalassa.finetune.chat import encode_answer, encode_question, question_frame
from panthalassa.model.generate import generate_batch
from panthalassa.model.image_text import USER, behind_bos, in_turns
from panthalassa.model.sampling import Sampling
from panthalassa.model.text import TextStream, ids_of
from panthalassa.model.transformer import Transformer

SHOWN = 60
"""Characters of a context in messages, the last ones."""
LOGITS = 1 << 26
"""That exist at a time: 256 MB in fp32."""


@dataclass(frozen=True)
class Window:
    """Tokens that the model reads, and those that it is asked about."""

    request: int
    inputs: tuple[int, ...]
    targets: tuple[int, ...]
    """The last len(targets) of the tokens that follow each input."""


@dataclass(frozen=True)
class Answerer:
    """A model that answers requests. The answers depend on the requests' order only by rounding."""

    model: Transformer
    """In evaluation mode."""
    tokenizer: TextTokenizer
    length: int
    """Tokens that the model reads at most."""
    batch_tokens: int
    """That it reads at a time; a longer text is read alone."""
    chat: bool = False
    """Whether contexts and prompts are what a user says in a chat, as in `finetune.chat`."""

    @torch.inference_mode()
    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """One for each request, in their order."""
        found: dict[int, Answer] = {
            **self._likely(requests),
            **self._likely_behind_images(requests),
            **self._continuations(requests),
        }
        return [found[number] for number in range(len(requests))]

    def cut(self, requests: Sequence[Request]) -> list[int]:
        """The numbers of those whose context or prompt does not fit, and is read in part."""
        return [number for number, request in enumerate(requests) if self._is_cut(request)]

    def _is_cut(self, request: Request) -> bool:
        if isinstance(request, Generation):
            prompt = prompt_ids(self.tokenizer, request.prompt, self.chat)
            return len(prompt) + self._places(request) + request.new_tokens > self.length
        context, continuation = encode(self.tokenizer, request, self.chat)
        whole = len(context) + self._places(request) + len(continuation) - 1 <= self.length
        return not (whole or isinstance(request, Rolling))

    def _likely(self, requests: Sequence[Request]) -> dict[int, Likely]:
        """The answers to all but generations, without images, by number of the request."""
        found: dict[int, Likely] = {}
        asked: list[Window] = []
        for number, request in enumerate(requests):
            if not isinstance(request, Generation) and not images_of(request):
                found[number] = Likely(0.0, True, 0)
                context, continuation = encode(self.tokenizer, request, self.chat)
                if self.chat and len(continuation) < self.length:
                    context = self._shortened(context, len(continuation) - 1)
                asked += windows(number, context, continuation, self.length)
        for batch in batches(asked, self.batch_tokens):
            for window, (nats, greedy) in zip(batch, self._score(batch), strict=True):
                so_far = found[window.request]
                found[window.request] = Likely(
                    so_far.nats + nats,
                    so_far.greedy and greedy,
                    so_far.tokens + len(window.targets),
                )
        return found

    def _likely_behind_images(self, requests: Sequence[Request]) -> dict[int, Likely]:
        """The answers to requests for likelihoods with images, by number of the request."""
        found: dict[int, Likely] = {}
        asked: dict[seen.Context, list[tuple[int, list[int]]]] = {}
        for number, request in enumerate(requests):
            if isinstance(request, Likelihood) and request.images:
                before, ids = encode(self.tokenizer, request, self.chat)
                before = self._with_images(before, len(ids) - 1, request)
                context = seen.Context(request.images, tuple(before))
                asked.setdefault(context, []).append((number, ids))
        for context, choices in asked.items():
            numbers = iter(number for number, _ in choices)
            images, listed = self._pixels(context.images), [ids for _, ids in choices]
            for some in seen.read(self.model, context, images, listed, self.batch_tokens):
                targets = some.continuations
                told = self._told(some.hidden, some.places, targets)
                for target, (nats, greedy) in zip(targets, told, strict=True):
                    found[next(numbers)] = Likely(nats, greedy, len(target))
        return found

    @property
    def _vision(self) -> Vision:
        return vision_of(self.model.config)

    def _pixels(self, images: Sequence[Picture]) -> Tensor:
        """uint8 [images, size, size, 3], on the model's device. Raises PanthalassaError."""
        places, digests = [image.place for image in images], [image.sha256 for image in images]
        device = next(self.model.parameters()).device
        return read_pictures(places, self._vision.image_size, digests).to(device)

    def _places(self, request: Request) -> int:
        """Positions that the images of a request take."""
        images = images_of(request)
        return len(images) * len(ids_of_image(self._vision.tokens)) if images else 0

    def _with_images(
        self, ids: list[int], more: int, request: Likelihood | Generation
    ) -> list[int]:
        """What is read of a context or prompt before `more` tokens, with the ids of its images."""
        short = self._shortened(ids, more + self._places(request))
        if not request.images:
            return short
        images, tokens = len(request.images), self._vision.tokens
        if self.chat:
            return in_turns(short, [images], tokens, self.tokenizer.encode(USER))
        return behind_bos(short, images, tokens)

    def _score(self, batch: Sequence[Window]) -> Iterator[tuple[float, bool]]:
        """For each window the log-probability of its targets, and whether all are the most likely."""
        device = next(self.model.parameters()).device
        rows = {inputs: row for row, inputs in enumerate(dict.fromkeys(w.inputs for w in batch))}
        width = max(map(len, rows))
        tokens = torch.tensor([[*inputs, *[0] * (width - len(inputs))] for inputs in rows])
        tokens = tokens.to(device)
        hidden = self.model.hidden(
            tokens, torch.zeros_like(tokens)
        )  # padding is seen by none before it
        places = [
            rows[window.inputs] * width + len(window.inputs) - len(window.targets) + offset
            for window in batch
            for offset in range(len(window.targets))
        ]
        return self._told(hidden.flatten(0, 1), places, [window.targets for window in batch])

    def _told(
        self, hidden: Tensor, places: Sequence[int], targets: Sequence[Sequence[int]]
    ) -> Iterator[tuple[float, bool]]:
        """For each of several runs of targets its log-probability, and whether all are the most likely.

        hidden: [positions, hidden]; places: there, of what is before each target of one run after the
        other.
        """
        flat = torch.tensor([id for run in targets for id in run])
        device, sizes = hidden.device, [len(run) for run in targets]
        scores = self._log_probabilities(hidden, torch.tensor(places).to(device), flat.to(device))
        nats, greedy = (torch.split(part, sizes) for part in scores)
        for logs, hits in zip(nats, greedy, strict=True):
            yield float(logs.sum()), bool(hits.all())

    def _log_probabilities(
        self, hidden: Tensor, places: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of targets [n] at places [n] of hidden [positions, hidden], in fp64; whether each is the most
        likely."""
        head, chunk = self.model.head, max(1, LOGITS // self.model.config.vocabulary_size)
        nats, greedy = [], []
        for at, target in zip(
            *(torch.split(part, chunk) for part in (places, targets)), strict=True
        ):
            logits = head(hidden[None, at])[0].float()
            nats.append(torch.log_softmax(logits, -1).gather(1, target[:, None])[:, 0].double())
            greedy.append(logits.argmax(-1) == target)
        return torch.cat(nats).cpu(), torch.cat(greedy).cpu()

    def _continuations(self, requests: Sequence[Request]) -> dict[int, str]:
        """The answers to generations, by number of the request."""
        found: dict[int, str] = {}
        by_limit: dict[int, list[tuple[int, Generation]]] = {}
        for number, request in enumerate(requests):
            if isinstance(request, Generation):
                by_limit.setdefault(request.new_tokens, []).append((number, request))
        for limit, asked in by_limit.items():
            said = self._continue([request for _, request in asked], limit)
            found |= zip((number for number, _ in asked), said, strict=True)
        return found

    def _continue(self, asked: Sequence[Generation], limit: int) -> list[str]:
        prompts = [
            self._with_images(prompt_ids(self.tokenizer, request.prompt, self.chat), limit, request)
            for request in asked
        ]
        shown = any(request.images for request in asked)
        images = [self._pixels(request.images) for request in asked] if shown else None
        streams = [TextStream(self.tokenizer, request.stop) for request in asked]

        def watch(number: int, token: int) -> bool:
            streams[number].add(token)
            return streams[number].stopped

        generate_batch(
            self.model,
            prompts,
            limit,
            [Sampling(request.temperature, seed=request.sample) for request in asked],
            self.tokenizer.ends,
            watch,
            max(1, self.batch_tokens // (max(map(len, prompts)) + limit)),
            images,
        )
        for stream in streams:
            stream.end()
        return [stream.text for stream in streams]

    def _shortened(self, prompt: list[int], more: int) -> list[int]:
        """What is read of a prompt before `more` tokens: its beginning, which is `bos` and in a chat
        the header of the user's turn, and its end. Raises PanthalassaError when nothing fits between.
        """
        room = self.length - more
        if len(prompt) <= room:
            return prompt
        head, behind = (
            question_frame(self.tokenizer) if self.chat else (self.tokenizer.beginning, ())
        )
        if room <= len(head) + len(behind):
            raise PanthalassaError(
                f"{more:,} tokens behind a prompt leave no room for it in the {self.length:,} that are "
                "read at most; images count as well. Set fewer new_tokens in the task's settings, or a "
                "larger length."
            )
        pairs = takewhile(lambda pair: pair[0] == pair[1], zip(head, prompt, strict=False))
        head = [id for id, _ in pairs]  # what follows may be one word with the end of it
        return [*head, *prompt[len(head) - room :]]


def prompt_ids(tokenizer: TextTokenizer, text: str, chat: bool) -> list[int]:
    """A prompt as documents begin, or as what a user says in a chat."""
    if chat:
        return encode_question(tokenizer, text)
    return ids_of(tokenizer, text)


def encode(
    tokenizer: TextTokenizer, request: Likelihood | Rolling, chat: bool = False
) -> tuple[list[int], list[int]]:
    """The ids of what is given, `bos` first, and of what is asked about.

    Spaces at the end of a context go to the continuation, as words have them in front; where both
    together have no more tokens than the context, each is cut into tokens by itself. chat: a context is
    what a user says, and its continuation, without spaces around it, the answer. Raises
    PanthalassaError for a continuation without tokens, as nothing would be the most likely of all.
    """
    if isinstance(request, Rolling):
        return _start(tokenizer), tokenizer.encode(request.text)
    context = request.context.rstrip()
    if chat and (context or request.images):
        said = request.continuation.strip()
        before, asked = encode_answer(tokenizer, context, said) if said else ([], [])
    else:
        start = tokenizer.beginning if context else _start(tokenizer)
        before = [*start, *tokenizer.encode(context)]
        continuation = request.context[len(context) :] + request.continuation
        whole = [*start, *tokenizer.encode(context + continuation)]
        asked = whole[len(before) :] or tokenizer.encode(continuation)
    if not asked:
        raise PanthalassaError(
            f"how likely {request.continuation!r} is behind {request.context[-SHOWN:]!r} can not be "
            "said: it has no tokens. Correct the task's data."
        )
    return before, asked


def _start(tokenizer: TextTokenizer) -> list[int]:
    """The id that a text without a context is behind, as in the harness."""
    return [tokenizer.eos if tokenizer.bos is None else tokenizer.bos]


def windows(
    request: int, context: Sequence[int], continuation: Sequence[int], length: int
) -> Iterator[Window]:
    """Each token of the continuation once, behind as much as `length` inputs hold.

    What does not fit is cut off on the left. A continuation of more than `length` tokens is asked about
    in pieces of `length`, the last of which has more before it.
    """
    text = [*context, *continuation]
    for start in range(len(context), len(text), length):
        end = min(start + length, len(text))
        inputs = text[max(0, end - 1 - length) : end - 1]
        yield Window(request, tuple(inputs), tuple(text[start:end]))


def batches(asked: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, the longest first, of at most `tokens` inputs with padding.

    Windows with the same inputs are read once.
    """
    batch: list[Window] = []
    inputs: set[tuple[int, ...]] = set()
    for window in sorted(asked, key=lambda window: (-len(window.inputs), window.inputs)):
        new = window.inputs not in inputs
        if batch and new and (len(inputs) + 1) * len(batch[0].inputs) > tokens:
            yield batch
            batch, inputs = [], set()
        batch.append(window)
        inputs.add(window.inputs)
    if batch:
        yield batch
