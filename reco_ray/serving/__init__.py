"""Any vocabulary over HTTP: a Ray Serve application around the stages' own functions."""
