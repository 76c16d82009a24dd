"""What no task needs: an act that reaches out of the graded process is refused, and said to the grader.

Python's audit hooks (PEP 578) see it before it happens and cannot be taken away again. They see Python's own functions
only: what C code does is held by the sandbox, which lets it fail without a word.
"""
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

FRAMES = ("tb_frame", "gi_frame", "cr_frame", "ag_frame", "f_back")
READING = {"open", "os.listdir", "os.scandir"}
CHANGING = {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
STARTING = {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"}
ASKING = {"socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"}
LOOKING = {"gc.get_objects", "gc.get_referrers", "sys._current_frames", "sys._getframe", "sys.setprofile",
           "sys.settrace"}
SIGNALS = {"os.kill", "os.killpg"}
WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
LOCAL = {None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::", b"localhost"}
BETWEEN = ("inspect", "os", "subprocess")
PROCESSES = 64  # forks of one process: above that it is a bomb


def watch(
    tell: Callable[[str], None],  # is given the act in words
    folder: Path,  # the learner's library
    writable: Iterable[Path],  # where files may be written
    hidden: Iterable[Path],  # where the solution lies
) -> None:
    """Refuse and tell, from now on and for good, in this process and its forks."""
    open_folders = tuple(os.path.realpath(path) + os.sep for path in (*writable, "/dev", "/proc"))
    closed_folders = tuple(os.path.realpath(path) + os.sep for path in hidden)
    library, above, forks, busy = str(folder.resolve()) + os.sep, {os.getppid(), 1, -1}, [0], [False]
    frame_now = sys._getframe

    def caller() -> Any:
        """The frame that did it: below this function, `named` and `hook`, and what Python has between."""
        frame = frame_now(3)
        while frame.f_back is not None and frame.f_globals.get("__name__") in BETWEEN:
            frame = frame.f_back
        return frame

    def place(path: Any) -> str:
        return os.path.realpath(os.fsdecode(path)) + os.sep if isinstance(path, (str, bytes, os.PathLike)) else ""

    def outside(path: Any) -> bool:
        return bool(place(path)) and not place(path).startswith(open_folders)

    def named(event: str, details: tuple) -> str:
        if event in READING and details and place(details[0]).startswith(closed_folders or ("//",)):
            return f"read the course's own files ({os.fsdecode(details[0])})"
        if event == "open" and writes(details) and outside(details[0]):
            return f"write outside its folder ({os.fsdecode(details[0])})"
        if event in CHANGING and any(outside(path) for path in details[:2] if not isinstance(path, int)):
            return f"write outside its folder ({event} {details[0]})"
        if event in SIGNALS and details[0] in above:
            return f"end the grader ({event})"
        if event in ASKING and (host := host_of(event, details)) not in LOCAL:
            return f"use the network ({host})"
        if event in STARTING and by_learner(caller(), library):
            return f"start another program ({words_of(details)[:80]})"
        if event == "os.fork":
            forks[0] += 1
            return "start processes without end (os.fork)" if forks[0] > PROCESSES else ""
        looked = event if event in LOOKING else details[1] if event.startswith("object.__") else ""
        if looked in LOOKING or looked in FRAMES or (looked == "__code__" and event == "object.__setattr__"):
            return f"look into the code that called it ({looked})" if by_learner(caller(), library) else ""
        return ""

    def hook(event: str, details: tuple) -> None:
        if busy[0] or event not in KNOWN:
            return
        busy[0] = True
        try:
            act = named(event, details)
        finally:
            busy[0] = False
        if act:
            tell(f"the code tried to {act}, which no task needs")
            raise PermissionError(f"refused: the code tried to {act}")

    sys.addaudithook(hook)


KNOWN = (READING | CHANGING | STARTING | ASKING | LOOKING | SIGNALS
         | {"os.fork", "object.__getattr__", "object.__setattr__"})


def by_learner(frame: Any, library: str) -> bool:
    """Whether a frame runs code of the learner's library, or code without a file that its names belong to."""
    return frame.f_code.co_filename.startswith(library) or (
        frame.f_code.co_filename.startswith("<") and str(frame.f_globals.get("__name__")).startswith("finetune_lib."))


def writes(details: tuple) -> bool:
    """Whether an `open` event (path, mode, flags) is one for writing."""
    _, mode, flags = details
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & WRITE)


def host_of(event: str, details: tuple) -> Any:
    """Whom a socket event is about; "" for a socket inside this machine."""
    if event in ("socket.connect", "socket.sendto"):
        address = details[1]
        return address[0] if isinstance(address, tuple) else ""
    return details[0]


def words_of(details: tuple) -> str:
    """The command line in a starting event."""
    parts = [part for detail in details[:2] for part in (detail if isinstance(detail, (list, tuple)) else [detail])]
    return " ".join(os.fsdecode(part) for part in parts if isinstance(part, (str, bytes, os.PathLike)))


def lingering(folder: Path) -> bool:
    """Whether another thread is still in the learner's code."""
    import threading

    own, library = threading.get_ident(), str(folder.resolve()) + os.sep
    for thread, frame in sys._current_frames().items():
        while thread != own and frame is not None:
            if frame.f_code.co_filename.startswith(library):
                return True
            frame = frame.f_back
    return False
