"""What the storage of a model could not do, named."""

from collections.abc import Iterator
from contextlib import contextmanager

from panthalassa.errors import CheckpointError
from panthalassa.storage import Storage


@contextmanager
def named(*places: Storage) -> Iterator[None]:
    """Raises CheckpointError for what is not read from these places, or written to them."""
    where = " or ".join(place.uri for place in places)
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointError(
            f"a file of {where} vanished: {error}. A run that trains removes old checkpoints; the same "
            "command takes its newest one."
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{where}: the storage failed: {error}. Make room or mend it; the same command then begins "
            "anew."
        ) from error
