"""What touches Ray: the session, the workers of a stage, streaming, timing."""
