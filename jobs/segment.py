"""`reco-ray segment` as a job: ray job submit --working-dir . -- python jobs/segment.py ..."""

import sys

from reco_ray.cli import main

main(["segment", *sys.argv[1:]])
