"""ReCo's ablation on a benchmark: each component on and off, and k. Prints a Markdown table and one JSON line.

The corpus is embedded and indexed once; every row of the table has references of its own; all of them are scored in one
pass over the images. An interrupted run goes on where it stopped.

    python benchmarks/ablation.py voc-coseg --data FOLDER --corpus FOLDER --out FOLDER [--images N]
"""

import argparse
import dataclasses
import json
from typing import NamedTuple

import numpy as np

from reco_ray.config import Settings, load_settings
from reco_ray.corpus.index import build_index
from reco_ray.corpus.stage import embed_corpus
from reco_ray.cosegmentation.stage import build_references
from reco_ray.distributed.session import session
from reco_ray.evaluation.benchmark import open_benchmark
from reco_ray.evaluation.check import require_countable
from reco_ray.evaluation.compare import Variant
from reco_ray.evaluation.evaluation_protocol import choose_protocol
from reco_ray.evaluation.provenance import provenance
from reco_ray.evaluation.results_table import figure_columns, markdown, percent
from reco_ray.evaluation.score_variants import score
from reco_ray.files import storage


class Row(NamedTuple):
    """What is on: k exemplars; in co-segmentation language attention and context elimination; language at inference."""

    k: int
    attention: bool
    context: bool
    language: bool

    @property
    def bank(self) -> str:
        """Names the references that the row needs."""
        return f"k{self.k}{'-attention' * self.attention}{'-context' * self.context}"

    def settings(self, base: Settings) -> Settings:
        """The settings of its references."""
        changes = {
            "exemplars": self.k,
            "language_attention": self.attention,
            "context_elimination": self.context,
        }
        return base.model_copy(update={"references": base.references.model_copy(update=changes)})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark")
    parser.add_argument("--data", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--set", action="append", help="section.field=value, as for reco-ray evaluate")
    parser.add_argument("--k", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--protocol", default="whole")
    parser.add_argument(
        "--images", type=int, help="score this many, evenly over the benchmark; all if not given"
    )
    options = parser.parse_args()

    settings = load_settings(options.preset, overrides=options.set)
    dataset = open_benchmark(options.benchmark, storage.absolute(options.data))
    if options.images and options.images < len(dataset.samples):
        chosen = np.linspace(0, len(dataset.samples) - 1, options.images).astype(int)
        dataset = dataclasses.replace(dataset, samples=[dataset.samples[n] for n in chosen])
    protocol = choose_protocol(options.protocol, None, settings.segment)
    require_countable(dataset, settings.segment.max_pixels, protocol.cut_truth)
    rows = [
        Row(settings.references.exemplars, attention, context, language)
        for attention in (False, True)
        for context in (False, True)
        for language in (False, True)
    ]
    rows += [Row(k, True, True, language) for k in options.k for language in (False, True)]
    rows = list(dict.fromkeys(rows))

    out = storage.absolute(options.out)
    embeddings, index = storage.join(out, "embeddings"), storage.join(out, "index")
    plain = settings.segment.model_copy(update={"refine": "none"})
    variants = {}
    with session():
        embed_corpus(options.corpus, embeddings, settings)
        build_index(embeddings, index, settings.index)
        for row in rows:
            references = storage.join(out, row.bank)
            build_references(index, dataset.vocabulary, references, row.settings(settings))
            use = "both" if row.language else "references"
            variants[str(row)] = Variant(references, plain.model_copy(update={"use": use}))
        measured = score(dataset, variants, protocol, settings)
        origin = provenance(settings.models.device)

    figures = {row: measured.figures(str(row)) for row in rows}
    columns = figure_columns({str(row): f for row, f in figures.items()})
    headings = ["k", "attention", "context elimination", "language at inference", *columns]
    cells = [
        [
            str(row.k),
            *("on" if part else "off" for part in row[1:]),
            *(percent(f[key]) for key in columns.values()),
        ]
        for row, f in figures.items()
    ]
    print("\n".join(markdown(headings, cells)))
    result = {
        "benchmark": f"ablation {options.benchmark}",
        "images": len(dataset.samples),
        "protocol": dataclasses.asdict(protocol),
        "settings": settings.model_dump(),
        "rows": [
            {**row._asdict(), **{key: f[key] for key in columns.values()}} for row, f in figures.items()
        ],
        **origin,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
