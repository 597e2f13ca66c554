"""The exceptions that the scripts turn into a sentence."""


class UserError(Exception):
    """A mistake the user can fix; its message is one sentence saying what, where, and how to fix it.

    The scripts print it on standard error and exit with status 2.
    """


class NonFiniteError(Exception):
    """Training met a loss or gradient that is not finite; the message says where, and what to do."""
