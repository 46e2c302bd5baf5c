"""`reco-ray duplicates` as a job: ray job submit --working-dir . -- python jobs/duplicates.py ..."""

import sys

from reco_ray.cli import main

main(["duplicates", *sys.argv[1:]])
