"""Provenance of results: command, commit and machine."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import ray
import torch

from reco_ray import __version__
from reco_ray.distributed.workers import plan_workers


def provenance(device: str) -> dict[str, Any]:
    """The command line, the versions, the machine, the connected Ray cluster and, in a git checkout, the commit.

    It includes the number of threads of a worker on `device`, on which the last bits of float32 sums depend.
    """
    resources = ray.cluster_resources()
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "version": __version__,
        "commit": _commit(),
        "machine": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cpus": os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ray": ray.__version__,
        },
        "cluster": {
            "nodes": sum(node["Alive"] for node in ray.nodes()),
            "cpus": resources.get("CPU", 0),
            "gpus": resources.get("GPU", 0),
            "threads": plan_workers(device).threads,
        },
    }


def _commit() -> str | None:
    """The commit of this checkout, with "-dirty" if it has changes; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    describe = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
