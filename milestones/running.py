"""Run checks on a folder's library in forked children of one warm process, under limits on time and memory.

Each child sends its results as it gets them; where one dies or hangs, that check has failed, and the rest go on in a
new child.
"""
import functools
import gc
import importlib
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from milestones.checking import (
    FAILED,
    KIT,
    Check,
    CheckResult,
    Engine,
    check_files,
    collect,
    part_of,
    run_checks,
    settle,
)
from milestones.tasks import Task

Send = Callable[[dict[str, Any]], None]
CANARIES = 5  # checks in canary.py
PATIENCE = 10  # times a limit, in real seconds, for a process that does not compute


@dataclass(frozen=True)
class Limits:
    seconds: float = 20.0  # of computing, for one check
    start: float = 60.0  # of computing, until the first check begins
    memory: int = 4 * 2**30  # bytes above what the warm process has


LIMITS = Limits()


def warm_up(names: Iterable[str]) -> None:
    """Import third-party modules here, so that no child has to. What cannot be imported a child will ask for itself."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in names:
        with suppress(Exception):
            importlib.import_module(name)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # a pool of threads does not live through a fork
    gc.freeze()  # what is here now is not looked through again, so children share its memory


def in_child(work: Callable[[Send], None], limits: Limits = LIMITS) -> tuple[list[dict[str, Any]], str]:
    """Do `work` in a forked child of its own session; returns what it sent, and how it ended ("" when it was done)."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(reader)
        become_child(work, writer, limits)
    os.close(writer)
    try:
        messages, ended = listen(reader, child, limits)
    finally:
        os.close(reader)
        status = reap(child)
    if messages and messages[-1].get("done"):
        return messages[:-1], ""
    return messages, ended or how_it_ended(status)


def become_child(work: Callable[[Send], None], writer: int, limits: Limits) -> None:
    """The child's life: quiet, limited, and never back into the parent's code."""
    try:
        os.setsid()
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + limits.memory, size + limits.memory))

        def send(message: dict[str, Any]) -> None:
            os.write(writer, json.dumps(message).encode() + b"\n")

        try:
            work(send)
        except Exception as error:
            send({"failure": f"{type(error).__name__}: {error}"})
        send({"done": True})
    finally:
        os._exit(0)


def listen(reader: int, child: int, limits: Limits) -> tuple[list[dict[str, Any]], str]:
    """Read messages until the child ends or takes too long over the next one.

    Counted is the child's own computing, so that a busy machine fails nobody; one that sleeps is stopped all the same.
    """
    buffer, messages, limit = b"", [], limits.start
    start, used = time.monotonic(), cpu_seconds(child)
    while True:
        ready, _, _ = select.select([reader], [], [], 0.2)
        data = os.read(reader, 1 << 16) if ready else b""
        if ready and not data:
            return messages, ""
        *lines, buffer = (buffer + data).split(b"\n")
        messages += [json.loads(line) for line in lines]
        if messages and messages[-1].get("done"):
            return messages, ""
        if lines:
            limit, start, used = limits.seconds, time.monotonic(), cpu_seconds(child)
        elif cpu_seconds(child) - used > limit or time.monotonic() - start > PATIENCE * limit:
            return messages, f"it took more than {limit:g} s and was stopped"


def cpu_seconds(process: int) -> float:
    """Computing time of a process so far; 0 where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def reap(child: int) -> int:
    """End the child's whole session, and wait for the child."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def how_it_ended(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"the process was ended by {signal.Signals(os.WTERMSIG(status)).name} in the middle of it"
    return f"the process left with exit code {os.WEXITSTATUS(status)} in the middle of it"


def run_in_folder(
    folder: Path,  # holds the finetune_lib that is checked
    tasks: list[Task],
    checks: list[Check],  # which to run
    kit: Path = KIT,  # where the checks come from
    seed: int | None = None,
    limits: Limits = LIMITS,
    sealed: bool = False,  # whether checks that must fail are run too, and what they say is believed
) -> list[CheckResult]:
    """Results of all `checks`, in their order, whatever the code under them does."""
    left, results = list(checks), []
    while left:
        work = functools.partial(child_run, folder=folder, tasks=tasks, checks=left, kit=kit, seed=seed,
                                 sealed=sealed)
        messages, ended = in_child(work, limits)
        found = [CheckResult.from_dict(message["result"]) for message in messages if "result" in message]
        broken = next((message["failure"] for message in messages if "failure" in message), "")
        results += found
        names = {result.check.name for result in found}
        left = [check for check in left if check.name not in names]
        if tampered := next((message["tampered"] for message in messages if "tampered" in message), ""):
            spoilt = [result.check for result in found] + left
            results = [result for result in results if result.check not in spoilt]
            results += [CheckResult(check, FAILED, what=tampered) for check in spoilt]
            left = []
        elif left and not any("begin" in message for message in messages):  # it ended before the first check
            results += [CheckResult(check, FAILED, what=broken or f"on import: {ended}") for check in left]
            left = []
        if left:  # the first that is left is the one that did not come to its end
            begun = next((message["begin"] for message in reversed(messages) if "begin" in message), left[0].name)
            stopped = next((check for check in left if check.name == begun), left[0])
            results.append(CheckResult(stopped, FAILED, what=broken or ended or "the check gave no result"))
            left.remove(stopped)
    order = {check.name: place for place, check in enumerate(checks)}
    return settle(sorted(results, key=lambda result: order[result.check.name]))


def child_run(send: Send, folder: Path, tasks: list[Task], checks: list[Check], kit: Path, seed: int | None,
              sealed: bool) -> None:
    """In the child: take the folder's library, run the checks, send each result."""
    use_library(folder)
    if sealed:
        import_parts(folder, {part_of(Path(check.file).parent) for check in checks})
        send_if_tampered(send)
    names = {check.name for check in checks}
    engine = Engine(tasks, lambda check: check.name in names, seed=seed,
                    listener=lambda result: send({"result": result.to_dict()}),
                    begin=lambda check: send({"begin": check.name}))
    run_checks(sorted({Path(check.file) for check in checks}), engine, capture="fd")
    if sealed:
        send_if_tampered(send)


def send_if_tampered(send: Send) -> None:
    """Run checks that must fail: where one passes, what came from this process is not believed."""
    engine = Engine(seed=0)
    results = run_checks([KIT / "canary.py"], engine, capture="fd")
    passed = [
        result.check.claim for result in results if result.state != FAILED or result.what.startswith("the code stops")
    ]
    if passed or len(results) != CANARIES:
        send({"tampered": "the checks were tampered with: a check that must fail did not ("
                          + (", ".join(passed) or "it was not run") + ")"})


def library_modules(folder: Path) -> list[str]:
    """Full names of all modules of the folder's library."""
    files = sorted((folder / "finetune_lib").rglob("*.py"))
    return [".".join(path.relative_to(folder).with_suffix("").parts).removesuffix(".__init__") for path in files]


def import_parts(folder: Path, parts: set[str]) -> None:
    """Import all modules of these parts; what cannot be imported is found by the check that needs it."""
    for name in library_modules(folder):
        try:
            if name.split(".")[1:2] and name.split(".")[1] in parts:
                importlib.import_module(name)
        except BaseException:  # also SystemExit: whatever the learner's module does, the checks are run
            continue


def use_library(folder: Path) -> None:
    """Make `import finetune_lib` mean the one in `folder`, in this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "finetune_lib"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()


def choose(checks: Iterable[Check], choice: str = "") -> list[Check]:
    """Checks of a milestone ("2"), of a task ("2.3"), or all."""
    return [check for check in checks if not choice or check.task == choice or check.task.split(".")[0] == choice]


def all_checks(kit: Path = KIT, choice: str = "") -> list[Check]:
    milestone = int(choice.split(".")[0]) if choice else None
    return choose(collect(kit, milestone), choice) if check_files(kit, milestone) else []
