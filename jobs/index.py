"""`reco-ray index` as a job: ray job submit --working-dir . -- python jobs/index.py ..."""

import sys

from reco_ray.cli import main

main(["index", *sys.argv[1:]])
