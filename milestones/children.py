"""Forked children of a warm process, under limits on time and memory: each sends messages, and whatever becomes of it,
the parent goes on.

A message counts only when it begins with the child's secret, so that writing to the pipe from outside `send` is seen.
"""
import functools
import gc
import importlib
import json
import os
import resource
import secrets
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

Send = Callable[[dict[str, Any]], None]
Messages = list[dict[str, Any]]
TICK = 0.2  # seconds between two looks at a child that says nothing
PATIENCE = 10  # times a limit, in real seconds, on a machine that others use too
TOO_LONG = "it took more than"
LONGEST, MOST = 2**22, 2**26  # bytes of one message, and of all
TEXT = 4000  # characters of an error's text
FORGED = "the checks were tampered with: a result came that no check sent"


@dataclass(frozen=True)
class Limits:
    seconds: float = 20.0  # of computing, for one check
    start: float = 60.0  # of computing, until the first check begins
    memory: int = 4 * 2**30  # bytes above what the warm process has
    processes: int = 256  # and threads, of all checks together
    file: int = 2**28  # bytes of one file that is written, what is printed included
    space: int = 2**30  # bytes of all files


LIMITS = Limits()


def warm_up(names: Iterable[str]) -> None:
    """Import third-party modules here, so that no child has to. What cannot be imported a child will ask for itself."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)
    one_thread()
    gc.freeze()  # what is here now is not looked through again, so children share its memory


def one_thread() -> None:
    """Let torch compute in this thread alone, since a pool of threads does not live through a fork.

    A child says it again before anything runs in it: what torch keeps of the parent's pool it makes anew where it is
    first asked for, and two threads that ask at once, as when transformers loads a model, may find "Invalid thread
    pool!" (torch 2.13).
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def in_child(
    work: Callable[[Send], None],
    limits: Limits = LIMITS,
    alone: bool = False,  # whether this process is the first of a namespace: then nothing outlives the child
) -> tuple[Messages, str]:
    """Do `work` in a forked child of its own session; returns what it sent, and how it ended ("" when it was done)."""
    reader, writer = os.pipe()
    secret = secrets.token_hex(16).encode()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        become_child(work, writer, secret, limits)
    os.close(writer)
    status = None
    try:
        messages, ended = listen(reader, secret, limits, child)
        status = None if ended else last_status(child)
    finally:
        os.close(reader)
        end(child, status is None, alone)
    if messages and messages[-1].get("done"):
        return messages[:-1], ""
    closed = "it closed its line to the grader in the middle of it"
    return messages, ended or (closed if status is None else how_it_ended(status))


def become_child(work: Callable[[Send], None], writer: int, secret: bytes, limits: Limits,
                 leave: Callable[[int], None] = os._exit) -> None:
    """The child's life: quiet, limited, and never back into the parent's code."""
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        os.closerange(3, writer)  # what else the parent holds is not the child's: above all where it gives its answers
        os.closerange(writer + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        sys.stdin, sys.stdout, sys.stderr = (open(stream, mode, encoding="utf-8", closefd=False)
                                             for stream, mode in ((0, "r"), (1, "w"), (2, "w")))  # theirs may be closed
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.register_at_fork(after_in_child=functools.partial(os.close, writer))  # only this process has results
        if sys.platform != "darwin":  # which knows the limit and does not hold it
            size = psutil.Process().memory_info().vms + limits.memory
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
        send = sender(writer, secret)
        one_thread()
        try:
            work(send)
        except Exception as error:
            send({"failure": f"{type(error).__name__}: {error}"[:TEXT]})
        send({"done": True})
    finally:
        leave(0)


def sender(writer: int, secret: bytes) -> Send:
    """The function that writes one message, whole, also when several threads have something to say.

    It uses nothing that graded code can replace by name: `iterencode` goes to C at once, where `json.dumps` asks
    `isinstance` first.
    """
    lock, write, encoded, own = threading.RLock(), os.write, json.JSONEncoder().iterencode, os.getpid()
    process, leave = os.getpid, os._exit

    def send(message: dict[str, Any]) -> None:
        if process() != own:  # a copy of this process has nothing to say, and goes no further
            leave(0)
        line = secret + "".join(encoded(message, True)).encode() + b"\n"
        with lock:
            while line:
                line = line[write(writer, line):]
    return send


def listen(reader: int, secret: bytes, limits: Limits, child: int) -> tuple[Messages, str]:
    """Read messages until the child ends or takes too long over the next one.

    Counted is computing and sleeping, not what a busy machine makes a child wait. What is told of an act gains no
    time: code that is refused again and again would never end.
    """
    buffer, messages, limit, said = b"", [], limits.start, 0
    start, used, slept = time.monotonic(), cpu_seconds(), 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], TICK)
        data = os.read(reader, 1 << 16) if ready else b""
        if ready and not data:
            return messages, ""
        *lines, buffer = (buffer + data).split(b"\n")
        said += len(data)
        try:
            new = [message_in(line, secret) for line in lines]
        except ValueError:
            return [*messages, {"tampered": FORGED}], "it was stopped"
        messages += new
        if messages and messages[-1].get("done"):
            return messages, ""
        if any("act" not in message for message in new):
            limit, start, used, slept = limits.seconds, time.monotonic(), cpu_seconds(), 0.0
            continue
        slept += 0 if ready or not asleep() else TICK
        if len(buffer) > LONGEST or said > MOST:
            return messages, "it said more than any check does"
        if cpu_seconds() - used + slept > limit or time.monotonic() - start > PATIENCE * limit:
            return messages, f"{TOO_LONG} {limit:g} s and was stopped{crowd(child)}"


def message_in(line: bytes, secret: bytes) -> dict[str, Any]:
    """One message; a `ValueError` where it is none of ours."""
    message = json.loads(line.removeprefix(secret)) if line.startswith(secret) else None
    if not isinstance(message, dict) or not message:
        raise ValueError(f"a message begins with the child's secret, got {line[:40]!r}")
    return message


def cpu_seconds() -> float:
    """Computing time so far of the child and of all that it started, as far as they still run."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            times = process.cpu_times()
            total += times.user + times.system
    return total


def crowd(child: int) -> str:
    """Words for a child that has started processes of its own: that it took too long has another reason then."""
    with suppress(psutil.Error):  # it has just ended
        if started := len(psutil.Process(child).children(recursive=True)):
            return f", with {started} {'process' if started == 1 else 'processes'} that it had started"
    return ""


def asleep() -> bool:
    """Whether the child and all that it started wait, and not for a processor or a disk."""
    states = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            states.append(process.status())
    return all(state not in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP) for state in states)


def last_status(child: int, patience: float = 2.0) -> int | None:
    """How a child that has closed its line ended; None when it goes on without one."""
    stop = time.monotonic() + patience
    while time.monotonic() < stop:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        select.select([], [], [], 0.01)
    return None


def end(child: int, running: bool, alone: bool) -> None:
    """End the child and all that it started: its session, or every other process where we are `alone`."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if running:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if alone:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        with suppress(ChildProcessError):  # raised when the last is gone
            while True:
                os.waitpid(-1, 0)


def how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"the process was ended by {signal.Signals(os.WTERMSIG(status)).name} in the middle of it"
    return f"the process left with exit code {os.WEXITSTATUS(status)} in the middle of it"
