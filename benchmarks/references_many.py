"""References of several vocabularies built together, and each by itself. Prints one JSON line.

Embeds the demo's photographs, then builds the references of small vocabularies: first each in a run of its own, which
loads the models and builds the context concepts again, then all in one run, which does both once.

    python benchmarks/references_many.py [--vocabularies 8]
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from reco_ray.config import load_settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.stage import build_many_references, build_references
from reco_ray.demo import prepare_demo
from reco_ray.distributed.session import session
from reco_ray.vocabulary import parse_concepts

CONCEPTS = "dog cat bird beetle car motorcycle cup strawberry building".split()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabularies", type=int, default=8)
    count = parser.parse_args().vocabularies
    settings = load_settings("mini", overrides=["references.exemplars=8"])
    with tempfile.TemporaryDirectory(prefix="reco-ray-") as folder, session():
        embed_corpus(prepare_demo(f"{folder}/photographs").corpus, f"{folder}/embeddings", settings)
        build_index(f"{folder}/embeddings", f"{folder}/index")
        vocabularies = {
            str(number): parse_concepts(f"{CONCEPTS[number % 9]},{CONCEPTS[(number + 1) % 9]}")
            for number in range(count)
        }
        started = time.perf_counter()
        for name, vocabulary in vocabularies.items():
            build_references(f"{folder}/index", vocabulary, f"{folder}/alone/{name}", settings)
        alone = time.perf_counter() - started
        outs = {name: f"{folder}/together/{name}" for name in vocabularies}
        started = time.perf_counter()
        build_many_references(f"{folder}/index", vocabularies, outs, settings, f"{folder}/concepts")
        together = time.perf_counter() - started
        same = all(
            pq.read_table(Path(outs[name], "exemplars.parquet"))
            .drop_columns(["similarity"])
            .equals(pq.read_table(f"{folder}/alone/{name}/exemplars.parquet").drop_columns(["similarity"]))
            for name in vocabularies
        )
    print(
        json.dumps(
            {
                "benchmark": "references_many",
                "vocabularies": count,
                "seconds_alone": round(alone, 1),
                "seconds_together": round(together, 1),
                "ratio": round(alone / together, 2),
                "same_exemplars": same,
                "cores": os.cpu_count(),
            }
        )
    )


if __name__ == "__main__":
    main()
