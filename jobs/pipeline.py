"""`reco-ray pipeline` as a job: ray job submit --working-dir . -- python jobs/pipeline.py pipeline.yaml --out URI"""

import sys

from reco_ray.cli import main

main(["pipeline", *sys.argv[1:]])
