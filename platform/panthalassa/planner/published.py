"""Published runs, as data: which were trained how, how fast, and on what energy.

In comes published.csv, out come records whose speed is in tokens/s/GPU whatever the authors
printed. Each row says what it is used for: `fit`, `check` (predicted and never
fitted, though it was seen when the form of the model was chosen), `energy`, or none, with the
reason.

Printed FLOP/s are of two kinds. Model FLOPs leave out what is computed again; hardware FLOPs have
it, so that 43 % of the peak in hardware FLOPs under full recomputation is about 32 % in model
FLOPs.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from panthalassa.planner.counts import Arrangement, Counts, count, shape
from panthalassa.planner.hardware import Cluster, cluster, gpu

TABLE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class Run:
    """A published run whose speed is known."""

    id: str
    family: str
    use: str
    parameters: int
    laid: Arrangement
    cluster: Cluster
    counts: Counts
    measured: float
    """Tokens/s/GPU."""


def rows() -> list[dict[str, str]]:
    """All of the table, also what is not used and why."""
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def runs() -> Iterator[Run]:
    """Those whose speed is used."""
    for row in rows():
        if row["use"] in ("fit", "check"):
            yield _run(row)


def _run(row: Mapping[str, str]) -> Run:
    model, chip = shape(row["shape"]), gpu(row["gpu"])
    place = cluster(chip, int(row["gpus"]), float(row["network"]) if row["network"] else None)
    numbers = ("global_batch", "micro_batch", "tp", "pp", "interleaving", "replicas")
    laid = Arrangement(
        gpus=place.gpus,
        gpus_per_node=place.gpus_per_node,
        sequence=int(row["sequence"]),
        sharding=row["sharding"],  # type: ignore[arg-type]
        keep_gathered=row["keep_gathered"] == "true",
        reduce_bytes=int(row["reduce_bytes"]),
        recompute=row["recompute"],  # type: ignore[arg-type]
        fused=row["fused"] == "true",
        attention=row["attention"],  # type: ignore[arg-type]
        **{name: int(row[name]) for name in numbers},  # type: ignore[arg-type]
    )
    counts = count(model, laid)
    if row["tokens_per_second_per_gpu"]:
        measured = float(row["tokens_per_second_per_gpu"])
    elif row["hardware_tflops"]:
        measured = float(row["hardware_tflops"]) * 1e12 * counts.tokens / counts.hardware_flops
    else:
        measured = float(row["mfu"]) / 100 * chip.peak * counts.tokens / counts.model_flops
    return Run(
        id=row["id"],
        family=row["family"],
        use=row["use"],
        parameters=model.parameters,
        laid=laid,
        cluster=place,
        counts=counts,
        measured=measured,
    )
