"""`reco-ray sweep` as a job: ray job submit --working-dir . -- python jobs/sweep.py ..."""

import sys

from reco_ray.cli import main

main(["sweep", *sys.argv[1:]])
