"""Manifests of corpora with images, without the corpora."""

from phases import bare_manifest

from panthalassa.corpus.manifest import Images, Manifest, Shard


def seen_manifest(**images: int) -> Manifest:
    """Domains of 32 rows with so many images each."""
    shards = [
        Shard(
            path=f"{name}.parquet",
            domain=name,
            split="train",
            rows=32,
            tokens=2048,
            images=number or None,
            row_groups=(32,),
            size=1,
            sha256="0" * 64,
        )
        for name, number in images.items()
    ]
    return bare_manifest(shards, 64, Images(size=64, tokens=16))
