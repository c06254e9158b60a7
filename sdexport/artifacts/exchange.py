"""Two folders change places in one step, where the system can do that."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from pathlib import Path

HERE = -100
"""`AT_FDCWD`: a relative path starts at the current folder."""
SWAP = 2
"""`RENAME_EXCHANGE` of renameat2(2)."""
UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
"""What a kernel, a file system or a container's filter says that does not know the call."""


def exchange(one: Path, other: Path) -> bool:
    """Exchanges what the two paths name; False, and nothing done, where that cannot be asked for.

    Raises:
        OSError: one of them is missing, or may not be moved.
    """
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(HERE, os.fsencode(one), HERE, os.fsencode(other), ctypes.c_uint(SWAP)) == 0:
        return True
    code = ctypes.get_errno()
    if code in UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))
