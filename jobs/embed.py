"""`reco-ray embed` as a job: ray job submit --working-dir . -- python jobs/embed.py ..."""

import sys

from reco_ray.cli import main

main(["embed", *sys.argv[1:]])
