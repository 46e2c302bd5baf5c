"""`reco-ray run` as a job: ray job submit --working-dir . -- python jobs/run.py ..."""

import sys

from reco_ray.cli import main

main(["run", *sys.argv[1:]])
