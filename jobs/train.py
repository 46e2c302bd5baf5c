"""`reco-ray train` as a job: ray job submit --working-dir . -- python jobs/train.py ..."""

import sys

from reco_ray.cli import main

main(["train", *sys.argv[1:]])
