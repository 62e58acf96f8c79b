"""The one exception that a user of the runner is meant to see."""


class UserError(Exception):
    """One line: what is wrong, where, and what to do next.

    ``experiments.main`` prints it as ``error: ...`` and exits with code 1, without a
    traceback.
    """
