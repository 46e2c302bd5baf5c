"""`python -m reco_ray` is `reco-ray`."""

from reco_ray.cli import main

if __name__ == "__main__":
    main()
