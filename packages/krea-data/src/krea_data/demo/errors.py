"""The one exception of the demo corpus: what happened, and what to do about it."""

import errno

__all__ = ["FetchError", "explain"]


class FetchError(RuntimeError):
    """The corpus could not be fetched or drawn; the message is one or two sentences for the person who asked."""


def explain(error: OSError, doing: str) -> FetchError:
    """Turn an error of the file system into a FetchError that says what to do."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FetchError(f"the disk is full while {doing}{where}; free about 300 MB or choose another cache folder")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return FetchError(
            f"may not write while {doing}{where}; choose another cache folder by argument or by KREA_CACHE"
        )
    return FetchError(f"{error.strerror or error} while {doing}{where}; try again, or choose another cache folder")
