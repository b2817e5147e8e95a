"""The callbacks of a pre-training run: energy, evaluation, continuations."""

import math
import time

import torch

from panthalassa.corpus.tokenizer import Tokenizer
from panthalassa.energy.meters import Absent, Meter, MeterLost
from panthalassa.model.generate import generate
from panthalassa.stream.order import evenly
from panthalassa.stream.partition import Partition
from panthalassa.train.agreement import together, total
from panthalassa.train.callback import Callback
from panthalassa.train.events import Evaluated, Generated, Notice, Spent, Step
from panthalassa.train.loop import TrainingRun
from panthalassa.train.step import loss_context, micro_batches


class Energy(Callback):
    """Joules of each step, summed over the meters of all ranks.

    Without any meter the metric is absent. When a meter is lost, the steps it missed have none.
    """

    def __init__(self, meter: Meter | Absent) -> None:
        self.meter = meter
        self.metered = False
        self.before = 0.0

    def on_start(self, run: TrainingRun) -> None:
        self.metered = total(not isinstance(self.meter, Absent))[0] > 0

    def before_step(self, run: TrainingRun) -> None:
        self.before = self._read(run)

    def measure(self, run: TrainingRun) -> dict[str, float]:
        return {"joules": self._read(run) - self.before} if self.metered else {}

    def _read(self, run: TrainingRun) -> float:
        if isinstance(self.meter, Absent):
            return 0.0  # other ranks measure what this one does not
        try:
            return self.meter.read()
        except MeterLost as error:
            if not math.isnan(self.before):
                run.poster.post(Notice(f"energy is no longer measured: {error}"))
            return math.nan

    def close(self) -> None:
        if not isinstance(self.meter, Absent):
            self.meter.close()


class Evaluation(Callback):
    """The loss on held-out samples, each read once: before the first step, every so often, last."""

    def on_start(self, run: TrainingRun) -> None:
        if run.step == 0:
            self._evaluate(run)

    def after_step(self, run: TrainingRun, step: Step) -> None:
        if run.step % run.config.evaluation.every == 0 and run.step < run.config.train.steps:
            self._evaluate(run)

    def on_end(self, run: TrainingRun) -> None:
        known = [evaluation.step for evaluation in run.evaluations]
        if not run.interrupted and run.step not in known:
            self._evaluate(run)

    @torch.no_grad()
    def _evaluate(self, run: TrainingRun) -> None:
        start = time.perf_counter()
        train = run.config.train
        where = evenly(
            run.manifest, "held_out", train.sequence_length, run.config.evaluation.samples
        )
        count, size = len(where.row), train.micro_batch
        dp = run.mesh["dp"]
        mine = Partition(count, dp.size(), dp.get_local_rank())
        part = slice(mine.start, mine.start + mine.samples)
        with together():
            samples = run.reader.fetch(where[part], train.sequence_length)
        loss = 0.0
        batches = micro_batches(samples, mine.micro_batches(size), size, run.device)
        with loss_context(run.mesh):
            for batch in batches:
                run.beat()
                loss += run.model(
                    batch.tokens, batch.documents, batch.labels, train.loss_chunk
                ).item()
        loss_sum, token_sum = total(loss * run.reads, samples.targets * run.reads)
        evaluated = Evaluated(run.step, loss_sum / token_sum, int(token_sum))
        run.evaluations.append(evaluated)
        run.poster.post(evaluated)
        run.poster.post(Spent("evaluation", time.perf_counter() - start))


class Continuations(Callback):
    """Continues the configured prompts when the run is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def on_end(self, run: TrainingRun) -> None:
        setting = run.config.evaluation
        for prompt in setting.prompts if not run.interrupted else []:
            ids = [self.tokenizer.bos, *self.tokenizer.encode(prompt)]
            room = run.config.train.sequence_length - len(ids)
            text = generate(
                run.model,
                ids,
                min(setting.new_tokens, room),
                setting.sampling_temperature,
                run.config.run.seed,
                self.tokenizer.eos,
                run.mesh["tp"].size(),
            )
            run.poster.post(Generated(prompt, self.tokenizer.decode(text)))
