"""HTTP errors as RFC 9457 problem details."""

from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from reco_ray.serving.contract import ProblemDetails

MEDIA_TYPE = "application/problem+json"
UNEXPECTED = "the server failed: its log says why, under this request's id"


class Problem(Exception):
    """An error response.

    Args:
        status: HTTP status.
        detail: one sentence for the client.
        retry_after: seconds, with 429 and 503.
        headers: further response headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        retry_after: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, retry_after, headers)
        self.status, self.detail = status, detail
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(retry_after)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.status, self.detail, self.headers)

    def body(self, request_id: str) -> ProblemDetails:
        """The response body."""
        return ProblemDetails(
            type="about:blank",
            title=HTTPStatus(self.status).phrase,
            status=self.status,
            detail=self.detail,
            request_id=request_id,
        )


def _rebuild(status: int, detail: str, headers: dict[str, str]) -> Problem:
    return Problem(status, detail, headers=headers)


def problem_response(problem: Problem, request_id: str) -> JSONResponse:
    """The response for a problem."""
    return JSONResponse(
        problem.body(request_id).model_dump(), problem.status, headers=problem.headers, media_type=MEDIA_TYPE
    )
