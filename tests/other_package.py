"""A package with components for reco-ray, as pip installs it."""

from collections.abc import Sequence
from pathlib import Path

ENDPOINT = """
from fastapi import APIRouter, Request

def build_router(ingress):
    router = APIRouter()

    @router.api_route("/owner", methods=["GET", "POST"])
    async def owner(request: Request) -> str:
        await request.body()
        return request.scope["state"]["owner"]

    @router.get("/nearest")
    async def nearest(words: str) -> list[str]:
        hits = await ingress.ask(ingress.vocabulary_service.search, words, 1)
        return [hit.uri_name for hit in hits]

    return router
"""


def install(folder: Path, module: str, groups: Sequence[str]) -> None:
    """Writes what pip leaves behind of a package whose module is a component of several kinds, named "grey"."""
    name = f"package_{folder.name.replace('-', '_')}"  # unlike others that this process may have imported
    (folder / f"{name}.py").write_text(module)
    metadata = folder / "other_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    lines = [f"[{group}]\ngrey = {name}\n" for group in groups]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
