"""`reco-ray export` as a job: ray job submit --working-dir . -- python jobs/export.py ..."""

import sys

from reco_ray.cli import main

main(["export", *sys.argv[1:]])
