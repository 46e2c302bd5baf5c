"""`reco-ray references` as a job: ray job submit --working-dir . -- python jobs/references.py ..."""

import sys

from reco_ray.cli import main

main(["references", *sys.argv[1:]])
