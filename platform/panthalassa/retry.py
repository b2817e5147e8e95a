"""What to do when object storage fails: wait and try again, or say what is wrong.

pyarrow reports every failure of S3 as an OSError with a text. Failures that pass (an overloaded
server, a lost or stalled connection, a cut body) are tried again after a random pause, which
doubles at its upper end ("full jitter", Brooker 2015), as long as `patience` lasts. All others are
raised at once. What is raised is one line, names the remedy and holds no credentials.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from panthalassa.redact import without_secrets

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
PASSING_ERRNOS = {
    errno.EAGAIN,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
}
PASSING_STATUSES = {408, 409, 429, 500, 502, 503, 504}
PASSING_NAMES = re.compile(
    r"AWS Error (INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT)\b|"
    r"ExceptionName: (InternalError|SlowDown|ServiceUnavailable|Throttling\w*|TooManyRequests\w*|"
    r"RequestTimeout|RequestLimitExceeded|OperationAborted)\b"
)
# curl: unsupported protocol, malformed URL, and what is wrong with certificates.
LASTING_CURL_CODES = {1, 3, 51, 53, 54, 58, 59, 60, 66, 77, 80, 82, 83, 90, 91}
REFUSALS = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID|SIGNATURE_DOES_NOT_MATCH|"
    r"HTTP status 40[013]\b"
)

Result = TypeVar("Result")


def retrying(operation: Callable[[], Result], what: str, patience: float) -> Result:
    """The result of `operation`, tried again for at most `patience` seconds while failures pass.

    No try is begun that would end later if it took as long as the one before. `what` names the
    object in messages. Raises FileNotFoundError and FileExistsError at once, or an OSError that says
    what mends it.
    """
    start = time.monotonic()
    tries = 0
    while True:
        begun = time.monotonic()
        try:
            return operation()
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            failure = error
        tries += 1
        now = time.monotonic()
        # No cryptography: the pauses of many processes only have to differ.
        pause = random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2.0**tries))
        if not passes(failure) or now - start + pause + (now - begun) > patience:
            told = f" ({tries} tries in {now - start:.0f} s)" if tries > 1 else ""
            raise OSError(f"{what}: {_reason(failure)}{told}") from None
        time.sleep(pause)


def passes(error: OSError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if error.errno is not None:
        return error.errno in PASSING_ERRNOS
    text = str(error)
    if code := re.search(r"curlCode: (\d+)", text):
        return int(code[1]) not in LASTING_CURL_CODES
    if status := re.search(r"\(HTTP status (\d+)\)", text):
        return int(status[1]) in PASSING_STATUSES or bool(PASSING_NAMES.search(text))
    return bool(PASSING_NAMES.search(text)) or "AWS Error NETWORK_CONNECTION" in text


def _reason(error: OSError) -> str:
    text = without_secrets(str(error)).rstrip(".")
    text = re.sub("^When .*?: (?=AWS Error)", "", text)  # `what` says so already
    if REFUSALS.search(text):
        return (
            f"refused: {text}. Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, "
            "AWS_REGION, and what this key may do"
        )
    if "NO_SUCH_BUCKET" in text:
        return f"there is no such bucket: {text}"
    if "NETWORK_CONNECTION" in text:
        return f"no answer from {endpoint()}: {text}. Check AWS_ENDPOINT_URL and the network"
    return f"{endpoint()} fails: {text}"


def endpoint() -> str:
    """The address that S3 is asked at, without credentials."""
    return without_secrets(endpoint_url() or "AWS")


def endpoint_url() -> str | None:
    """The endpoint of S3 that the environment names."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
