"""`reco-ray search` as a job: ray job submit --working-dir . -- python jobs/search.py ..."""

import sys

from reco_ray.cli import main

main(["search", *sys.argv[1:]])
