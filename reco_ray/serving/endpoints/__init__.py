"""Endpoints below /v1/extensions, one module each with `build_router(ingress)`."""
