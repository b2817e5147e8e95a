"""How many images come in the samples that a plan is for, or that a run was trained on.

The share of the samples that have images decides time and energy, how many one holds at most decides
memory: somewhere in a run there are micro-batches of nothing else.
"""

from dataclasses import dataclass, replace

from scipy.stats import binom

from panthalassa.corpus.manifest import IMAGE_DELIMITERS, Manifest
from panthalassa.errors import ConfigError
from panthalassa.planner.layout import Workload
from panthalassa.stream.curriculum import Phase
from panthalassa.stream.order import Order


@dataclass(frozen=True)
class Images:
    """What a plan assumes of samples with images; nothing of a model of text alone."""

    image_samples: float = 0.1
    """Share of the samples that have images."""
    images_per_sample: float | None = None
    """In each of those; None takes as many as fit."""

    def __post_init__(self) -> None:
        """Raises ConfigError for what can not be."""
        if not 0 <= self.image_samples <= 1:
            raise ConfigError(f"image_samples={self.image_samples:g}: expected a share from 0 to 1")
        given = self.images_per_sample
        if given is not None and given < 1:
            raise ConfigError(f"images_per_sample={given:g}: expected 1 or more")

    def on(self, workload: Workload) -> Workload:
        """The workload with such samples. Raises ConfigError when that many images do not fit."""
        if workload.model.vision is None:
            return workload
        each, length = workload.model.vision.tokens + IMAGE_DELIMITERS, workload.sequence_length
        most = length // each
        if most < max(1.0, self.images_per_sample or 1.0):
            raise ConfigError(
                f"images_per_sample={self.images_per_sample or 1:g}: an image takes {each} positions, "
                f"and train.sequence_length={length} has room for {most}"
            )
        return replace(
            workload,
            image_samples=self.image_samples,
            images_per_sample=float(
                most if self.images_per_sample is None else self.images_per_sample
            ),
        )


def trained_on(manifest: Manifest, phase: Phase) -> Images:
    """The images that a run sees in a phase, in the mean over its mixture."""
    order = Order(manifest, phase.sequence_length, phase.mixture, phase.seed)
    share = float(order.quotas[order.has_images].sum() / order.quotas.sum())
    return Images(share, order.images_per_sample / share) if share else Images(0.0, 1.0)


def on_the_fullest(samples: float, share: float, ranks: int) -> float:
    """Samples with images on the rank that has most of them, in the median step, if they come at
    random: the others wait for it."""
    most = float(binom.ppf(0.5 ** (1 / ranks), round(samples), share))
    return max(most, samples * share)
