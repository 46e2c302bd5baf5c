"""`reco-ray evaluate` as a job: ray job submit --working-dir . -- python jobs/evaluate.py ..."""

import sys

from reco_ray.cli import main

main(["evaluate", *sys.argv[1:]])
