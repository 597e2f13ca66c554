"""The one exception that the doors turn into a sentence."""


class UserError(Exception):
    """A mistake the user can mend; its message is one sentence saying what, where, how to mend it.

    The doors print it on standard error and exit with status 2.
    """


class NonFiniteError(Exception):
    """Training met a loss or gradient that is not finite; the message says where and how to go on."""
