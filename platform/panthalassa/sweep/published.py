"""Published loss laws, to be asked with the same code as a fit of one's own.

Losses are in nats a token of the authors' own tokenizer and text (MassiveText), a token costs 6 N
FLOPs.
"""

import numpy as np

from panthalassa.sweep.loss_law import SAMPLE, SEED, Fit, LossLaw, root

HOFFMANN = LossLaw.of(np.array([6.0073404, 6.0179186, np.exp(0.5267228), 0.33917084, 0.2849083]))
"""Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models" (arXiv:2203.15556), approach
3: A 406.4, B 410.7, E 1.69, alpha 0.34, beta 0.28, with the digits of the paper's TeX source, because
the printed ones are rounded enough to move the optimum (Besiroglu et al. 2024)."""
HOFFMANN_INTERVAL = (0.454, 0.455)
"""Of beta / (alpha + beta), with which the optimal size grows: the 10th and 90th percentile in its
table 2. The law itself has 0.457; no uncertainty of the single constants is published."""

_REPLICATION = np.array([6.17795598, 7.64273236, np.exp(0.59711196), 0.34781303, 0.36585412])
_COVARIANCE = np.array(
    [
        [6.52688e-02, -2.88791e-02, 3.74215e-03, 3.89000e-03, -1.44173e-03],
        [-2.88791e-02, 1.61301e-01, 5.66910e-03, -1.79361e-03, 7.89616e-03],
        [3.74215e-03, 5.66910e-03, 6.03761e-04, 2.20555e-04, 2.76764e-04],
        [3.89000e-03, -1.79361e-03, 2.20555e-04, 2.32145e-04, -8.95996e-05],
        [-1.44173e-03, 7.89616e-03, 2.76764e-04, -8.95996e-05, 3.86813e-04],
    ]
)
_NORMAL = np.random.default_rng(SEED).normal(size=(SAMPLE, 5)) @ root(_COVARIANCE).T

BESIROGLU = Fit(
    LossLaw.of(_REPLICATION), LossLaw.of(_REPLICATION + _NORMAL), noise=0.0049, runs=240
)
"""Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt" (arXiv:2404.10102): the same law
fitted again to 240 runs read from a figure of Hoffmann et al. Printed are, with standard errors, A
482.01 (124.58), B 2085.43 (1293.23), E 1.8172 (0.03), alpha 0.3478 (0.02), beta 0.3658 (0.02), and
0.513 (0.02) for beta / (alpha + beta). An optimum hangs on how the constants vary together, which is
not printed: the covariance of log A, log B, E, alpha and beta here is that of 1,080 bootstrap fits to
the paper's own points (github.com/epoch-research/analyzing-chinchilla) with its own loss. It gives the
printed errors again: A 122, B 1264, E 0.025, alpha 0.015, beta 0.020, and 0.020 for the ratio. The
noise is that of its residuals."""
