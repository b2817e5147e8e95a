"""The guard: an update whose gradient is not finite, or far larger than the last ones, is left out.

Everything is decided on the device, so that the host waits for nothing: the gradient's global norm goes
in, and a flag comes out that AdamW's fused kernel obeys. With the flag set, weights, moments, decay and
AdamW's counter stay as they were to the bit. The norm is the same on every rank, and so is the flag.
"""

import torch
from torch import Tensor

from panthalassa.config import LONGEST_WINDOW, Guard

ENOUGH = 16
"""Accepted norms below which only a norm that is not finite is refused."""

SPREAD = 0.25
"""The standard deviation counts as at least this share of the mean: norms that hardly vary would
otherwise make an outlier of any other one. At 6 sigma, 2.5 times the mean is always accepted; clipping
tames that."""


class NormGuard:
    """The norms of the accepted updates, and how many updates in a row were refused: part of a
    checkpoint, so that a run that goes on decides as an undisturbed one."""

    def __init__(self, device: torch.device) -> None:
        self.norms = torch.full((LONGEST_WINDOW,), torch.nan, dtype=torch.float64, device=device)
        """The newest last; NaN where there is none yet. As long as the longest window, so that
        `guard.window` may change when a run goes on."""
        self.skips = torch.zeros((), dtype=torch.int64, device=device)
        self.limit = torch.full((), torch.inf, dtype=torch.float64, device=device)
        """Of the newest decision."""

    def refuses(self, norm: Tensor, setting: Guard) -> Tensor:
        """1.0 when the update with this gradient norm shall be left out, else 0.0: a float32 scalar.

        norm: a scalar, on the guard's device.
        """
        recent = self.norms[-setting.window :]
        mean = recent.nanmean()
        deviation = (recent - mean).square().nanmean().sqrt()
        limit = mean + setting.sigma * torch.maximum(deviation, SPREAD * mean)
        known = recent.isfinite().sum() >= ENOUGH
        self.limit = torch.where(known, limit, torch.inf)
        norm = norm.double()
        accepted = norm.isfinite() & (norm <= self.limit)
        self.norms.copy_(torch.where(accepted, torch.cat((self.norms[1:], norm[None])), self.norms))
        self.skips.copy_(torch.where(accepted, 0, self.skips + 1))
        return (~accepted).float()

    def forget(self) -> None:
        """Begin anew: other data have other norms."""
        self.norms.fill_(torch.nan)
        self.skips.zero_()
