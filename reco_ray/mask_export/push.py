"""Pushes a Hugging Face data set to the hub."""

from reco_ray.errors import MissingPackageError, RecoError, UsageError, reason
from reco_ray.files import storage

_FILES = ["README.md", "data/*/*.parquet"]


def require_push(repository: str, form: str, out: str) -> None:
    """Checks before anything is written that an export can be pushed.

    Args:
        repository: "owner/name" on the hub.
        form: name of the format.
        out: URI of the export.

    Raises:
        UsageError: another format, a malformed name, or an export that is not on this machine.
        MissingPackageError: there is no token.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if form != "huggingface":
        raise UsageError("--push-to: only --format huggingface can be pushed")
    if "://" in out:
        raise UsageError(f"--push-to: needs --out on this machine, not {out}")
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise UsageError(f"--push-to {repository!r}: expected owner/name") from error
    if huggingface_hub.get_token() is None:
        raise MissingPackageError(
            f"--push-to {repository}: there is no token: set HF_TOKEN, or run `hf auth login`"
        )


def push(out: str, repository: str) -> str:
    """Pushes the files of a finished export; the repository is made if it is not there, private at first.

    Returns:
        Its address.

    Raises:
        RecoError: the hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            repo_type="dataset",
            folder_path=str(storage.local_path(out)),
            allow_patterns=_FILES,
            commit_message="Masks made by reco-ray",
        )
    except Exception as error:  # of the hub's client, requests, httpx and the system
        raise RecoError(
            f"--push-to {repository}: {reason(error)}: the export is finished, the same command pushes again"
        ) from error
    return str(address)
