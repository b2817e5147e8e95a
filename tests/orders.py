"""Manifests of any sizes, without files, and the places that an order finds in them."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from phases import bare_manifest

from panthalassa.corpus.manifest import Manifest, Shard
from panthalassa.stream.order import Location

Sizes = dict[str, list[list[int]]]
"""Domain -> shards -> rows of each row group."""
Place = tuple[int, int, int, int]


def manifest_of(train: Sizes, held_out: Sizes | None = None, sequence_length: int = 8) -> Manifest:
    """A manifest without files; the shards of the two splits alternate in its list."""
    shards = []
    for number in range(max(len(s) for s in [*train.values(), *(held_out or {}).values()])):
        for split, sizes in (("held_out", held_out or {}), ("train", train)):
            for domain, groups in sizes.items():
                if number < len(groups):
                    rows = sum(groups[number])
                    shards.append(
                        Shard.model_validate(
                            {
                                "path": f"{split}/{domain}/{number}.parquet",
                                "domain": domain,
                                "split": split,
                                "rows": rows,
                                "tokens": rows * sequence_length,
                                "row_groups": groups[number],
                                "size": 1,
                                "sha256": "0" * 64,
                            }
                        )
                    )
    return bare_manifest(shards, sequence_length)


def places(location: Location) -> list[Place]:
    columns = (location.shard, location.row_group, location.row, location.part)
    assert {len(column) for column in columns} == {len(location)}
    return list(zip(*(column.tolist() for column in columns), strict=True))


def domain_of(manifest: Manifest, found: Sequence[Place]) -> list[str]:
    return [manifest.shards[place[0]].domain for place in found]


row_groups = st.lists(st.integers(1, 6), min_size=1, max_size=4)
shards = st.lists(row_groups, min_size=1, max_size=3)
corpora = st.dictionaries(st.sampled_from("abcdefg"), shards, min_size=1, max_size=5)
seeds = st.integers(0, 2**63 - 1)
temperatures = st.floats(0.01, 100)
examples = settings(max_examples=60, deadline=None)
