"""Calls between deployments: a replica that dies is asked for once more, elsewhere."""

from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from reco_ray.errors import RecoError
from reco_ray.serving.problems import Problem

RETRY_SOON = 1  # seconds


async def call(method: DeploymentHandle, *arguments: Any) -> Any:
    """Awaits an idempotent method of another deployment.

    Raises:
        RecoError, Problem: as the method does.
        Problem: 503, its queue is full or no replica lives.
    """
    try:
        try:
            return await method.remote(*arguments)
        except RayActorError:  # died or out of reach; Serve routes the next call to a living one
            return await method.remote(*arguments)
    except RayActorError as error:
        raise Problem(503, "a replica was lost, it is being replaced", retry_after=RETRY_SOON) from error
    except (BackPressureError, DeploymentUnavailableError) as error:
        raise Problem(503, "the queue is full", retry_after=RETRY_SOON) from error
    except RayTaskError as error:
        if isinstance(error.cause, RecoError | Problem):
            raise error.cause from None
        raise
