"""`reco-ray review` as a job: ray job submit --working-dir . -- python jobs/review.py ..."""

import sys

from reco_ray.cli import main

main(["review", *sys.argv[1:]])
