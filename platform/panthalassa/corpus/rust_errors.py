"""Errors of the library `tokenizers`, which raises bare Exceptions, and where its Rust code panics
BaseExceptions."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from panthalassa.errors import PanthalassaError


@contextmanager
def rust_errors(told: Callable[[BaseException], PanthalassaError]) -> Iterator[None]:
    """In the block, whatever the library raises becomes what `told` makes of it."""
    try:
        yield
    except (PanthalassaError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise told(error) from error
