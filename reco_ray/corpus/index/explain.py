"""The output of `reco-ray index --explain`."""

from reco_ray.corpus.index.index_plan import FLAT_UP_TO, SCALAR_UP_TO, IndexPlan


def explain(plan: IndexPlan) -> str:
    """Describes the index to build, its cost and its expected recall, one fact per line."""
    files = sum(len(shard.parts) for shard in plan.shards)
    largest = max(shard.rows for shard in plan.shards)
    lines = {
        "corpus": f"{plan.images:,} images of {plan.dim} dimensions in {files:,} files",
        "index": f"{plan.factory} ({_why(plan)})",
        "vector": f"{plan.bytes_per_vector:,} bytes (float32: {4 * plan.dim:,})",
        "on disk": f"{_size(plan.images * plan.bytes_per_vector)}, memory-mapped where it is searched",
        "in memory": f"{_size(plan.fixed_bytes)} of centroids, and the lists that are searched",
        "training": _training(plan),
        "shards": f"{len(plan.shards):,} of up to {largest:,} images: one task each, with 1 CPU and "
        f"{_size(2 * largest * plan.bytes_per_vector)} of memory",
        "recall@50": _recall(plan),
    }
    if plan.exact:
        lines["in memory"] = "the whole index when it is searched"
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _why(plan: IndexPlan) -> str:
    if not plan.automatic:
        return "set by index.factory"
    if plan.exact:
        return f"exact: up to {FLAT_UP_TO:,} images"
    return f"{'up to' if plan.images <= SCALAR_UP_TO else 'more than'} {SCALAR_UP_TO:,} images"


def _training(plan: IndexPlan) -> str:
    if plan.exact:
        return "none"
    return (
        f"{plan.centroids:,} centroids of {plan.sample:,} vectors: {_size(4 * plan.sample * plan.dim)} of memory, "
        f"{plan.training_operations / 1e12:,.1f} Tflop, in one task"
    )


def _recall(plan: IndexPlan) -> str:
    if plan.exact:
        return "1, exact"
    floor = f"measured when built; an index below {plan.settings.min_recall} is refused"
    if plan.expected_recall is None:
        return f"unknown before building for this factory and nprobe; {floor}"
    return f"about {plan.expected_recall}, by choice of nprobe; {floor}"


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
