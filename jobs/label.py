"""`reco-ray label` as a job: ray job submit --working-dir . -- python jobs/label.py ..."""

import sys

from reco_ray.cli import main

main(["label", *sys.argv[1:]])
