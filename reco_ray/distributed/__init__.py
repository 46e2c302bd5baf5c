"""Code that uses Ray: the session, the workers of a stage, streaming, timing."""
