"""Shards: packed rows of one domain come in, hashed Parquet files and their records go out.

The bytes of a shard depend on its rows alone, so that its SHA-256 is known before it is written and
the same corpus has the same fingerprint wherever it is prepared. Counts of target tokens are taken
along the way: they give the loss of a model that knows nothing but token frequencies.
"""

import hashlib
import io
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from panthalassa.corpus.manifest import ANSWERS, IMAGES, Shard, Split
from panthalassa.corpus.pack import Packed
from panthalassa.errors import CorpusError
from panthalassa.storage import Storage

Counts = NDArray[np.int64]

ROWS_AT_ONCE = 1024  # whose tokens are counted at once


def write_shard(
    storage: Storage, path: str, split: Split, domain: str, packed: Packed, rows_per_group: int
) -> Shard:
    """Write rows as one shard at `path`. Raises CorpusError when they can not be written."""
    data = encode_shard(packed, rows_per_group)
    write(storage, path, data)
    rows = len(packed.tokens)
    starts = range(0, rows, rows_per_group)
    return Shard(
        path=path,
        domain=domain,
        split=split,
        rows=rows,
        tokens=sum(map(sum, packed.lengths)),
        counted=None if packed.answers is None else int(counted(packed).sum()),
        images=None if packed.images is None else sum(map(len, packed.images)),
        row_groups=tuple(min(rows_per_group, rows - start) for start in starts),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )


def encode_shard(packed: Packed, rows_per_group: int) -> bytes:
    """The Parquet file of the rows, zstd: its columns are told in `corpus.manifest`."""
    flat = pa.array(packed.tokens.reshape(-1), pa.int32())
    tokens = pa.FixedSizeListArray.from_arrays(flat, packed.tokens.shape[1])
    lengths, offsets = (
        pa.array(column, pa.list_(pa.int32())) for column in (packed.lengths, packed.offsets)
    )
    table = pa.table({"tokens": tokens, "lengths": lengths, "offsets": offsets})
    if packed.answers is not None:
        answers = pa.array(packed.answers, pa.list_(pa.int32()))
        table = table.append_column(ANSWERS, answers)
    described = [f"{name}.list.element" for name in table.column_names]
    if packed.images is not None:  # as they are: they do not shrink, and none says much of another
        table = table.append_column(IMAGES, pa.array(packed.images, pa.list_(pa.binary())))
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=rows_per_group,
        compression=dict.fromkeys(described, "zstd"),
        use_dictionary=described,
        write_statistics=described,
    )
    return buffer.getvalue()


def decode_shard(data: bytes) -> Packed:
    """Inverse of `encode_shard`. Raises pyarrow.ArrowException for what is no shard."""
    table = pq.read_table(io.BytesIO(data))
    tokens = table["tokens"].combine_chunks()
    flat = tokens.flatten().to_numpy().reshape(len(tokens), tokens.type.list_size)
    of = {name: table[name].to_pylist() for name in table.column_names if name != "tokens"}
    return Packed(flat, of["lengths"], of["offsets"], of.get(ANSWERS), of.get(IMAGES))


def write(storage: Storage, path: str, data: bytes) -> None:
    """Write one object of a corpus; what the file system objects to becomes a CorpusError."""
    try:
        storage.write(path, data)
    except OSError as error:
        raise unwritable(storage, path, error) from error


def unwritable(storage: Storage, path: str, error: OSError) -> CorpusError:
    return CorpusError(
        f"{storage.uri}/{path} can not be written: {error}. Free space or mend the permissions "
        "there, or choose another corpus.directory; what is written is kept, and the same "
        "command goes on."
    )


def count_targets(packed: Packed, vocabulary_size: int) -> Counts:
    """How often each token [vocabulary_size] is a target: all but the first token of each piece, as far
    as they count."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for start in range(0, len(packed.tokens), ROWS_AT_ONCE):
        part = packed.slice(start, start + ROWS_AT_ONCE)
        filled = np.array([sum(lengths) for lengths in part.lengths])
        inside = np.arange(part.tokens.shape[1]) < filled[:, None]
        ends = np.cumsum([length for lengths in part.lengths for length in lengths])
        firsts = np.append(0, ends[:-1])
        targets = np.delete(part.tokens[inside], firsts)
        if part.answers is not None:
            targets = targets[np.delete(counted(part)[inside], firsts)]
        counts += np.bincount(targets, minlength=vocabulary_size)
    return counts


def counted(packed: Packed) -> NDArray[np.bool_]:
    """Which tokens [rows, sequence_length] lie in the answers of their row."""
    found = np.zeros(packed.tokens.shape, dtype=bool)
    for row, bounds in zip(found, packed.answers or (), strict=True):
        for start, end in zip(bounds[::2], bounds[1::2], strict=True):
            row[start:end] = True
    return found


def unigram_loss(train: Counts, held_out: Counts) -> float:
    """Mean negative log-likelihood (nats a token) of the held-out targets under train frequencies.

    With add-one smoothing: -Σ h(t) · ln((c(t) + 1) / (C + V)) / Σ h(t), where h and c count token t
    among the held-out and train targets, C = Σ c(t), and V is the size of the vocabulary.
    """
    probabilities = (train + 1) / (train.sum() + len(train))
    terms = held_out * np.log(probabilities)
    # Rounded, so that the last bits of a machine's logarithm do not change a fingerprint.
    return round(-math.fsum(terms) / int(held_out.sum()), 9)
