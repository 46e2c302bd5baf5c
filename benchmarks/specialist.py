"""How good a one-concept run is: precision of its retrieval and IoU of its mask. Prints one JSON line.

    reco-ray run --corpus DATA/images --images DATA/images/Bus --concepts bus --out bus
    python benchmarks/specialist.py --run bus --relevant /Bus/ --truth DATA/masks/Bus

A retrieved image counts as relevant if its URI contains `--relevant`; truth are binary masks named like the images.
Intersections and unions are summed over all images.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from reco_ray.segmentation.masks import decode_png


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="--out of a finished `reco-ray run`")
    parser.add_argument("--relevant", required=True, help="what the URIs of images with the concept contain")
    parser.add_argument("--truth", type=Path, required=True, help="folder of binary masks")
    options = parser.parse_args()

    exemplars = pq.read_table(options.run / "references" / "exemplars.parquet").to_pylist()
    relevant = [options.relevant in row["uri"] for row in exemplars]
    intersection = union = 0
    regions = pq.read_table(options.run / "masks" / "regions", columns=["uri", "mask"]).to_pylist()
    for uri, mask in sorted({(row["uri"], row["mask"]) for row in regions}):
        found = decode_png((options.run / "masks" / mask).read_bytes()) > 0  # label 0 is the background
        truth = np.asarray(Image.open(options.truth / f"{Path(uri).stem}.png").convert("L")) > 127
        intersection += int((found & truth).sum())
        union += int((found | truth).sum())
    print(
        json.dumps(
            {
                "benchmark": "specialist",
                "concept": exemplars[0]["concept"],
                "exemplars": len(exemplars),
                "retrieval_precision": round(sum(relevant) / len(relevant), 3),
                "mask_iou": round(intersection / union, 3),
            }
        )
    )


if __name__ == "__main__":
    main()
