"""Certificates as docs/security.md makes them for Ray."""

import re
import subprocess
from pathlib import Path

_PAGE = Path(__file__).parents[1] / "docs" / "security.md"


def make_certificates(folder: Path, address: str) -> Path:
    """Runs the page's commands in `folder`; beside them, `other.crt` and its key are of no CA -> `folder`."""
    (commands,) = re.findall(r"```\n(openssl req.*?)```", _PAGE.read_text(), re.DOTALL)
    other = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=other -keyout other.key -out other.crt"
    )
    script = commands.replace("NODE-IP", address) + other
    subprocess.run(["bash", "-ec", script], cwd=folder, check=True, capture_output=True)
    return folder


def variables(folder: Path, node: str = "node") -> dict[str, str]:
    """The environment of a node, or a driver, that uses them."""
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": f"{folder}/ca.crt",
        "RAY_TLS_SERVER_CERT": f"{folder}/{node}.crt",
        "RAY_TLS_SERVER_KEY": f"{folder}/{node}.key",
    }
