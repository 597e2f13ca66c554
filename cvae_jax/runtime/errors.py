"""The exceptions that the scripts turn into a sentence."""


class UserError(Exception):
    """A mistake the user can fix; its message is one sentence saying what, where, and how to fix it.

    The scripts print it on standard error and exit with status 2.
    """


class DamagedError(UserError):
    """A checkpoint does not hold what was written to it.

    found: what is wrong with it. advice: what to do about it.
    """

    def __init__(self, folder: object, found: str, advice: str = ""):
        super().__init__(f"The checkpoint {folder} is damaged ({found}){f'; {advice}' if advice else ''}.")
        self.found = found


class NonFiniteError(Exception):
    """Training met a loss or gradient that is not finite; the message says where, and what to do."""
