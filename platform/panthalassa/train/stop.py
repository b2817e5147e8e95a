"""The wish to stop, left in a run's folder: so it reaches the run wherever its command runs."""

import time
from collections.abc import Callable
from dataclasses import replace

from panthalassa.errors import PanthalassaError
from panthalassa.run_config import CONFIG
from panthalassa.storage import Storage

REQUEST = "stop-request"
INTERVAL = 2.0
"""Seconds between two looks for a request."""
PATIENCE = 60.0
"""Seconds after which whoever made a request has given up."""


class StopRequests:
    """The end that listens. A request of which whoever made it has given up stays unanswered."""

    def __init__(self, run: Storage, permit: Callable[[], None] = lambda: None) -> None:
        """permit: called before a request is taken; raises PanthalassaError when it is for another."""
        self._run, self._permit = replace(run, patience=INTERVAL), permit
        self._looked = -INTERVAL

    def __call__(self) -> bool:
        """Whether there is a request; answers it."""
        if time.monotonic() < self._looked + INTERVAL:
            return False
        self._looked = time.monotonic()
        return self._heard()

    def _heard(self) -> bool:
        try:
            if self._run.exists(REQUEST):
                self._permit()
                if time.time() < float(self._run.read(REQUEST)) + PATIENCE:
                    self._run.delete(REQUEST)
                    return True
        except (OSError, ValueError):
            pass  # storage that fails for a moment, or half a request: the next look tells
        return False


def request_stop(run: Storage, patience: float = 30.0) -> None:
    """Ask the command that trains a run to stop at the next step boundary, with a checkpoint.

    Returns when it has heard. Raises PanthalassaError when there is no such run, or nothing answers
    for `patience` seconds.
    """
    try:
        if not run.exists(CONFIG):
            raise PanthalassaError(f"there is no run at {run.uri}")
        run.write(REQUEST, str(time.time()).encode())
        until = time.monotonic() + patience
        while run.exists(REQUEST):
            if time.monotonic() > until:
                run.delete(REQUEST)
                raise PanthalassaError(
                    f"nothing trains {run.uri} at present, or by a clock that is a minute ahead: no "
                    f"answer for {patience:.0f} s"
                )
            time.sleep(0.5)
    except FileNotFoundError:
        return  # heard between two looks
    except OSError as error:
        raise PanthalassaError(f"the run at {run.uri} can not be reached: {error}") from error
