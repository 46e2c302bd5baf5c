"""The one exception that users see: a single line saying what is wrong, where, and what to do."""


class RecoError(Exception):
    """Bad input, a missing weight, an artifact of another model: printed as one line, exit status 1."""


class UsageError(RecoError):
    """The command line itself is wrong (an option missing or malformed): exit status 2."""
