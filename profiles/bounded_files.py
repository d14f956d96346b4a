"""Files that somebody names, read no further than a bound: a device such as /dev/zero has no size and no end."""

import errno
from importlib.resources.abc import Traversable

_UNITS = ((20, "MiB"), (10, "KiB"))


def read_bounded(file: Traversable, most_bytes: int) -> bytes:
    """The content of a file.

    Args:
        file: The file; a pipe or a device is read as one.
        most_bytes: Of the content.

    Raises:
        OSError: If it cannot be read, or holds more, which its ``strerror`` says.
    """
    with file.open("rb") as stream:
        content: bytes = stream.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {_size(most_bytes)}")
    return content


def _size(most_bytes: int) -> str:
    for shift, unit in _UNITS:
        if most_bytes and not most_bytes % (1 << shift):
            return f"{most_bytes >> shift} {unit}"
    return f"{most_bytes} bytes"
