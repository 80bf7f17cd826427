"""Processes beside and after each other: a lock on a folder, and the names under which files are begun.

The lock is one that the system takes back however its owner ends, also by kill -9.
"""

import errno
import glob
import os
import socket
import time
from pathlib import Path

from minirodin.errors import MinirodinError

try:
    import fcntl
except ImportError:  # no such locks on this system: go on without
    fcntl = None


def scratch_of(path: Path) -> Path:
    """Where this process writes before it renames to `path`; what killed ones of this machine left there is removed."""
    mark = f".{path.name}.{socket.gethostname()}."
    for other in path.parent.glob(f"{glob.escape(mark)}*.tmp"):
        number = other.name.removeprefix(mark).removesuffix(".tmp")
        if number.isdigit() and not _alive(int(number)):
            other.unlink(missing_ok=True)
    return path.with_name(f"{mark}{os.getpid()}.tmp")


def _alive(process: int) -> bool:
    if not fcntl:  # where these locks are missing the question is a blow
        return True
    try:
        os.kill(process, 0)
        return True
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True


class FolderLock:
    """Held from now until `release`, the end of a `with`, or that of the process.

    The file is only where the lock is kept: one that a killed run left says nothing. Several runs may write into a
    folder as long as their locks have other names.

    Args:
        folder: made when missing; holds `.NAME.lock` meanwhile.
        name: of what is locked.
        wait: seconds to wait for another process to be done.

    Raises:
        MinirodinError: another process has it; one line names the folder and the process.
    """

    def __init__(self, folder: str | Path, name: str = "run", wait: float = 0.0):
        self.path, self.file = Path(folder) / f".{name}.lock", None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        until = time.monotonic() + wait
        while self.file is None:
            self.file = self._taken(give_up=time.monotonic() >= until)

    def _taken(self, give_up: bool):
        try:
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115 (kept open: closing it gives the lock back)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            return open(os.devnull)  # who may not write here does no harm, and may find that all is done
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read(200).strip() or "another process"
            file.close()
            if give_up:
                raise MinirodinError(
                    f"{self.path.parent} is being written by {owner}: wait for it, or choose another folder"
                ) from None
            time.sleep(0.1)
            return None
        except OSError:  # a file system without locks: go on without
            return file
        try:  # the file that was locked may have been removed by an owner who was just done
            if os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                return file
        except FileNotFoundError:
            pass
        file.close()
        return None

    def release(self) -> None:
        if self.file and not self.file.closed and self.file.name != os.devnull:
            self.path.unlink(missing_ok=True)  # while it is still held, so that nobody else can have it under this name
            self.file.close()

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *_) -> None:
        self.release()
