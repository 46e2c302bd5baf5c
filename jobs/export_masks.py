"""`reco-ray export-masks` as a job: ray job submit --working-dir . -- python jobs/export_masks.py ..."""

import sys

from reco_ray.cli import main

main(["export-masks", *sys.argv[1:]])
