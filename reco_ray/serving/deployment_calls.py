"""Calls between deployments: errors keep their type, and a call to a lost replica is made once more."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from reco_ray.errors import RecoError
from reco_ray.serving.problems import Problem

RETRY_SOON = 1  # seconds
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True)
class ReturnedError:
    """An error returned as a value: if raised through Serve, it would be logged with a traceback."""

    error: RecoError | Problem


def return_errors(method: Callable[Arguments, Awaitable[Any]]) -> Callable[Arguments, Awaitable[Any]]:
    """Decorator: returns a method's RecoErrors and Problems as values, which `call` raises for the caller."""

    @wraps(method)
    async def wrapper(*arguments: Arguments.args, **named: Arguments.kwargs) -> Any:
        try:
            return await method(*arguments, **named)
        except (RecoError, Problem) as error:
            return ReturnedError(error)

    return wrapper


async def call(method: DeploymentHandle, *arguments: Any) -> Any:
    """Awaits an idempotent method of another deployment.

    Raises:
        RecoError, Problem: raised by the method.
        Problem: 503, the queue is full or no replica is alive.
    """
    try:
        try:
            answer = await method.remote(*arguments)
        except RayActorError:  # dead or unreachable; Serve routes the next call to another replica
            answer = await method.remote(*arguments)
    except RayActorError as error:
        raise Problem(503, "a replica was lost, it is being replaced", retry_after=RETRY_SOON) from error
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise Problem(503, "the queue is full", retry_after=RETRY_SOON) from error
    if isinstance(answer, ReturnedError):
        raise answer.error
    return answer
