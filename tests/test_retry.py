"""Which failures pass, how long they are waited out, and that no credentials are told."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from panthalassa import retry
from panthalassa.redact import without_secrets
from panthalassa.retry import passes, retrying

HEAD = "When reading information for key 'x' in bucket 'ocean': AWS Error "
BARE = " during HeadObject operation: No response body."
LIST = "When listing objects under key '' in bucket 'ocean': AWS Error "

PASSING = [
    HEAD + "UNKNOWN (HTTP status 500)" + BARE,
    HEAD + "UNKNOWN (HTTP status 503)" + BARE,
    HEAD + "UNKNOWN (HTTP status 429)" + BARE,
    LIST + "INTERNAL_FAILURE during ListObjectsV2 operation: We encountered an internal error.",
    LIST + "SLOW_DOWN during ListObjectsV2 operation: Please reduce your request rate.",
    HEAD + "NETWORK_CONNECTION during HeadObject operation: curlCode: 56, Connection reset by peer",
    HEAD + "NETWORK_CONNECTION during HeadObject operation: curlCode: 28, Timeout was reached",
    HEAD + "NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect",
    HEAD
    + "NETWORK_CONNECTION during HeadObject operation: curlCode: 6, Could not resolve hostname",
    "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, a partial file",
    HEAD + "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: "
    "RequestTimeout Message: Idle connections will be closed.",
]
LASTING = [
    HEAD + "ACCESS_DENIED" + BARE,
    LIST + "INVALID_ACCESS_KEY_ID during ListObjectsV2 operation: There is no such key.",
    LIST + "SIGNATURE_DOES_NOT_MATCH during ListObjectsV2 operation: The signature does not match.",
    LIST + "NO_SUCH_BUCKET during ListObjectsV2 operation: The specified bucket does not exist.",
    HEAD + "UNKNOWN (HTTP status 400)" + BARE,
    HEAD + "UNKNOWN (HTTP status 301)" + BARE,
    HEAD + "UNKNOWN (HTTP status 501)" + BARE,
    HEAD + "NETWORK_CONNECTION during HeadObject operation: curlCode: 60, SSL peer certificate",
    HEAD + "UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: "
    "ExpiredToken Message: The provided token has expired.",
    "When reading information for key 'SLOW_DOWN 503' in bucket 'b': AWS Error ACCESS_DENIED",
    "something else",
]


class Clock:
    """Time that passes only by sleeping, or when an operation takes some."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.mark.parametrize("text", PASSING)
def test_what_passes_is_told_by_its_text(text: str) -> None:
    assert passes(OSError(text))


@pytest.mark.parametrize("text", LASTING)
def test_what_lasts_is_told_by_its_text(text: str) -> None:
    assert not passes(OSError(text))


def test_errors_of_the_system_are_told_by_their_numbers() -> None:
    for code in (errno.ECONNRESET, errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH):
        assert passes(OSError(code, "words of any language"))
    for code in (errno.ENOSPC, errno.EACCES, errno.EIO):
        assert not passes(OSError(code, "AWS Error SLOW_DOWN"))
    assert passes(TimeoutError())


@given(st.floats(0.01, 200), st.floats(0, 30))
def test_patience_ends_in_time(patience: float, duration: float) -> None:
    """No try ends later than patience, but the first."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(retry, "time", clock)

        def operation() -> None:
            clock.now += duration
            raise OSError(PASSING[0])

        with pytest.raises(OSError, match=r"^what: .* fails: .*HTTP status 500"):
            retrying(operation, "what", patience)
    assert clock.now <= max(patience, duration) + 1e-6
    assert all(pause <= retry.LONGEST_PAUSE for pause in clock.pauses)


def test_pauses_grow_and_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    ends: list[tuple[float, float]] = []

    def latest(low: float, high: float) -> float:
        ends.append((low, high))
        return high

    monkeypatch.setattr(retry.random, "uniform", latest)
    failures = iter([OSError(PASSING[1])] * 8)

    def operation() -> str:
        for failure in failures:
            raise failure
        return "done"

    assert retrying(operation, "what", 60.0) == "done"
    assert {low for low, _ in ends} == {0}
    assert clock.pauses == pytest.approx([0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5])


@pytest.mark.parametrize("error", [FileNotFoundError("x"), OSError(LASTING[0])])
def test_what_lasts_is_not_tried_again(error: OSError) -> None:
    tries = []

    def operation() -> None:
        tries.append(1)
        raise error

    with pytest.raises(type(error)):
        retrying(operation, "what", 60.0)
    assert len(tries) == 1


def test_credentials_are_told_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://reader:pass@127.0.0.1:9000")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    text = (
        "no key AKIAIOSFODNN7EXAMPLE with wJalrXUtnFEMI/K7MDENG at\n"
        "https://u:p@host/a?X-Amz-Signature=fe5f80&X-Amz-Credential=abc/2026&x=1"
    )
    told = without_secrets(text)
    assert told == (
        "no key *** with *** at https://***@host/a?X-Amz-Signature=***&X-Amz-Credential=***&x=1"
    )
    assert retry.endpoint() == "http://***@127.0.0.1:9000"
