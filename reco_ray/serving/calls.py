"""Calls between deployments: a client's errors come back as what they are, lost replicas are asked once more."""

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
    """An error as an answer: raised through Serve, it would be a traceback in the log of the replica."""

    error: RecoError | Problem


def return_errors(method: Callable[Arguments, Awaitable[Any]]) -> Callable[Arguments, Awaitable[Any]]:
    """Has a deployment's method answer with RecoErrors and Problems, which `call` raises at the other end."""

    @wraps(method)
    async def answered(*arguments: Arguments.args, **named: Arguments.kwargs) -> Any:
        try:
            return await method(*arguments, **named)
        except (RecoError, Problem) as error:
            return ReturnedError(error)

    return answered


async def call(method: DeploymentHandle, *arguments: Any) -> Any:
    """Awaits an idempotent method of another deployment.

    Raises:
        RecoError, Problem: as the method does.
        Problem: 503, its queue is full or no replica lives.
    """
    try:
        try:
            answer = await method.remote(*arguments)
        except RayActorError:  # died or out of reach; Serve routes the next call to a living one
            answer = await method.remote(*arguments)
    except RayActorError as error:
        raise Problem(503, "a replica was lost, it is being replaced", retry_after=RETRY_SOON) from error
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise Problem(503, "the queue is full", retry_after=RETRY_SOON) from error
    if isinstance(answer, ReturnedError):
        raise answer.error
    return answer
