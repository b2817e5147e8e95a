"""The callbacks of a pre-training run: evaluation, continuations."""

import torch

from panthalassa.corpus.text_tokenizer import TextTokenizer
from panthalassa.model.generate import generate
from panthalassa.model.lora import adapted
from panthalassa.stream.order import evenly
from panthalassa.stream.partition import Partition
from panthalassa.train.agreement import together, total
from panthalassa.train.callback import Callback
from panthalassa.train.events import Evaluated, Generated, Step
from panthalassa.train.micro_batch import micro_batches
from panthalassa.train.step import loss_context
from panthalassa.train.training_run import TrainingRun


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

    def _evaluate(self, run: TrainingRun) -> None:
        with run.spending("evaluation"):
            evaluated = self._held_out(run)
        run.evaluations.append(evaluated)
        run.poster.post(evaluated)

    @torch.no_grad()
    def _held_out(self, run: TrainingRun) -> Evaluated:
        train = run.config.train
        where = evenly(
            run.manifest, "held_out", train.sequence_length, run.config.evaluation.samples
        )
        count, size = len(where.row), train.micro_batch
        dp = run.mesh["dp"]
        mine = Partition(count, dp.size(), dp.get_local_rank())
        part = slice(mine.start, mine.start + mine.samples)
        vision = run.config.model.vision
        with together():
            samples = run.reader.fetch(where[part], train.sequence_length)
            batches = micro_batches(samples, mine.micro_batches(size), size, run.device, vision)
        loss, units = 0.0, run.objective.units(samples)
        with loss_context(run.mesh):
            for batch in batches:
                run.beat()
                loss += run.objective.loss(run.model, batch, train.loss_chunk).item()
        loss_sum, unit_sum, token_sum = total(
            loss * run.reads, units * run.reads, samples.targets * run.reads
        )
        return Evaluated(run.step, loss_sum / unit_sum, int(token_sum))


class AdapterDropout(Callback):
    """Has adapters leave out other inputs in each step."""

    def before_step(self, run: TrainingRun) -> None:
        for layer in adapted(run.model):
            layer.dropout.step = run.step


class Continuations(Callback):
    """Continues the configured prompts when the run is complete."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer

    def on_end(self, run: TrainingRun) -> None:
        setting = run.config.evaluation
        for prompt in setting.prompts if not run.interrupted else []:
            ids = run.objective.prompt(self.tokenizer, prompt)
            room = run.config.train.sequence_length - len(ids)
            text = generate(
                run.model,
                ids,
                min(setting.new_tokens, room),
                setting.sampling_temperature,
                run.config.run.seed,
                self.tokenizer.ends,
                run.mesh["tp"].size(),
            )
            run.poster.post(Generated(prompt, self.tokenizer.decode(text)))
