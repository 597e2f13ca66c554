"""The exceptions that the scripts turn into a sentence."""

import errno
import os

# What to do about each error of a disk; the words of `os.strerror` are those that libraries quote.
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there"),
    errno.EFBIG: "raise the limit on the size of files",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions"),
    errno.EROFS: "make it writable",
    errno.EIO: "check the disk",
}


class UserError(Exception):
    """A mistake the user can fix; its message is one sentence saying what, where, and how to fix it.

    The scripts print it on standard error and exit with status 2.
    """


class DamagedError(UserError):
    """A checkpoint does not hold what was written to it.

    found: what is wrong with it. advice: what to do about it.
    """

    def __init__(self, folder: object, found: object, advice: str = ""):
        super().__init__(f"The checkpoint {folder} is damaged ({found}){f'; {advice}' if advice else ''}.")
        self.found = found


class StorageError(UserError):
    """A disk is full, read-only or failing, or a quota is used up, so that something cannot be written."""

    def __init__(self, what: object, number: int, verb: str = "write"):
        super().__init__(
            f"Cannot {verb} {what} ({os.strerror(number)}): {_REMEDIES[number]}, then run the same command "
            "again."
        )

    @staticmethod
    def number_in(error: BaseException) -> int | None:
        """Return the `errno` of a disk's error, which libraries in C++ only quote; None for other errors."""
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno if error.errno in _REMEDIES else None
        return next((number for number in _REMEDIES if os.strerror(number) in str(error)), None)


class NonFiniteError(Exception):
    """Training met a loss or gradient that is not finite; the message says where, and what to do."""
