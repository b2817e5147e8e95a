"""The wish to stop, left in a run's folder: so it reaches the run wherever its command runs."""

import time
from dataclasses import replace

from panthalassa.errors import PanthalassaError
from panthalassa.storage import Storage

REQUEST = "stop-request"
INTERVAL = 2.0
"""Seconds between two looks for a request."""


class StopRequests:
    """The end that listens. Requests that nobody has heard before are forgotten."""

    def __init__(self, run: Storage) -> None:
        self._run = replace(run, patience=INTERVAL)
        self._looked = time.monotonic()
        self._heard()

    def __call__(self) -> bool:
        """Whether there is a request; answers it."""
        if time.monotonic() < self._looked + INTERVAL:
            return False
        self._looked = time.monotonic()
        return self._heard()

    def _heard(self) -> bool:
        try:
            if self._run.exists(REQUEST):
                self._run.delete(REQUEST)
                return True
        except OSError:
            pass  # storage that fails for a moment; the request waits
        return False


def request_stop(run: Storage, patience: float = 30.0) -> None:
    """Ask the command that trains a run to stop at the next step boundary, with a checkpoint.

    Returns when it has heard. Raises PanthalassaError when there is no such run, or nothing answers
    for `patience` seconds.
    """
    try:
        if not run.exists("config.yaml"):
            raise PanthalassaError(f"there is no run at {run.uri}")
        run.write(REQUEST, b"")
        until = time.monotonic() + patience
        while run.exists(REQUEST):
            if time.monotonic() > until:
                run.delete(REQUEST)
                raise PanthalassaError(
                    f"nothing trains {run.uri} at present: no answer for {patience:.0f} s"
                )
            time.sleep(0.5)
    except FileNotFoundError:
        return  # heard between two looks
    except OSError as error:
        raise PanthalassaError(f"the run at {run.uri} can not be reached: {error}") from error
