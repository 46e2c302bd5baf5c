"""What may pass is tried again, what may not is not."""

import errno

import pytest

from reco_ray.files import retries
from reco_ray.files.retries import StoreUnavailable, is_transient, retried

# As pyarrow 26 words them; tests/unit/test_s3.py meets the real ones.
TRANSIENT = [
    OSError(errno.ECONNRESET, "reset"),
    OSError(errno.ETIMEDOUT, "late"),
    ConnectionResetError(),
    TimeoutError(),
    OSError("AWS Error UNKNOWN (HTTP status 500) during HeadObject operation: No response body."),
    OSError("AWS Error SLOW_DOWN during ListObjectsV2 operation: m"),
    OSError(
        "AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 18, Transferred a partial file"
    ),
    OSError("google::cloud::Status(UNAVAILABLE: try again)"),
]
PERMANENT = [
    FileNotFoundError(errno.ENOENT, "gone"),
    PermissionError(errno.EACCES, "no"),
    OSError(errno.ENOSPC, "full"),
    OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."),
    OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: m"),
    ValueError("not a table"),
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(retries, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("RECO_RETRY_SECONDS", "0.05")


@pytest.mark.parametrize("error", TRANSIENT, ids=str)
def test_transient_errors_are_tried_again_until_they_pass(error, monkeypatch):
    monkeypatch.setenv("RECO_RETRY_SECONDS", "30")  # however slow the machine is
    left = [error, error]

    def ask():
        if left:
            raise left.pop()
        return "there"

    assert is_transient(error)
    assert retried(ask, "s3://bucket/a") == "there"


@pytest.mark.parametrize("error", TRANSIENT[-2:], ids=str)
def test_a_store_that_never_answers_is_a_line(error):
    def ask():
        raise error

    with pytest.raises(
        StoreUnavailable, match=r"^s3://bucket/a: the store does not answer: .*goes on later$"
    ):
        retried(ask, "s3://bucket/a")


@pytest.mark.parametrize("error", PERMANENT, ids=str)
def test_permanent_errors_are_raised_at_once(error):
    asked = []

    def ask():
        asked.append(1)
        raise error

    with pytest.raises(type(error)) as caught:
        retried(ask, "x")
    assert caught.value is error
    assert len(asked) == 1
