"""A command in a box: a root of its own with only what it needs, no network, no other processes, and never as root.

The box is made of Linux namespaces by util-linux (`unshare`, `mount`, `pivot_root`, `setpriv`). Its root is an empty
file system in memory on which the interpreter, the packages and what the caller names are mounted, read-only, at their
own paths. The checkout is not among them, although the environment may lie inside it. Sources: the manual pages
unshare(1), mount_namespaces(7) and pivot_root(2). Where a machine does not allow it, the command runs without;
`limit_here` then says which limits do not hold, by looking, from inside.
"""
import functools
import os
import resource
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

NOBODY = 65534
SYSTEM = ("/usr", "/nix", "/sys/devices/system", "/etc/alternatives", "/etc/group", "/etc/hosts", "/etc/ld.so.cache",
          "/etc/localtime", "/etc/mime.types", "/etc/nsswitch.conf", "/etc/passwd")
LINKS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64")  # into /usr on most systems
DEVICES = ("null", "zero", "full", "random", "urandom")
OWN = ("finetune_lib", "milestones")  # an installed copy of these holds the solution: hidden
CHECKOUT = ("nbs", ".git", "finetune_lib", "milestones", "tests")  # folders of a checkout that show it
SHARED_MEMORY = 2**28  # bytes, for tensors that worker processes hand over
OPEN_FILES = 1024
WITH_PARENT = ("setpriv", "--pdeathsig=KILL")  # a box does not outlive the grader, whatever ends that
NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--ipc", "--fork", "--kill-child")
AS_ROOT = (*WITH_PARENT, *NAMESPACES, "sh", "-euc")
AS_USER = (*WITH_PARENT, "unshare", "--user", "--map-root-user", *NAMESPACES[1:], "sh", "-euc")
NO_MORE = ("--no-new-privs", "--inh-caps=-all", "--bounding-set=-all")
DROPPED = (*WITH_PARENT, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *NO_MORE)
OF_ITS_OWN = ("unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}")
RENAMED = ("setpriv", *NO_MORE[:1], *OF_ITS_OWN)


def run_boxed(
    command: list[str],
    scratch: Path,  # a folder of the caller's; inside, an empty one in its place is all that can be written
    readable: Iterable[Path] = (),  # folders that are seen inside beside the interpreter and its packages
    writable: Iterable[Path] = (),  # folders in which the command may leave something
    hidden: Iterable[Path] = (),  # checkouts that must not be seen, wherever they lie
    environment: dict[str, str] | None = None,
    said: str = "",  # its standard input
    space: int = 2**30,  # bytes that the scratch folder holds
    seconds: float = 600.0,  # until it is stopped
) -> subprocess.CompletedProcess[str]:
    """Run a command in the best box that this machine allows; raises `subprocess.TimeoutExpired`."""
    writable, box = list(writable), best_box()
    boxed = box in (AS_ROOT, AS_USER)
    if os.geteuid() == 0 and box is not None:
        give_to_nobody([scratch, *writable])
    if boxed:
        inside = f"exec {shlex.join([*become_nobody(box), *command])}"
        command = [*box, script(scratch, readable, writable, hidden, space) + inside]
    elif box:
        command = [*box, *command]
    return subprocess.run(command, cwd="/" if boxed else scratch, env=environment,
                          input=said, capture_output=True, text=True, timeout=seconds)


@functools.cache
def best_box() -> tuple[str, ...] | None:
    """The words before a command that box it here: tried once, with this interpreter in it; None where nothing works.

    As root without namespaces (a container) it is at least made somebody else, on whom limits hold.
    """
    if not shutil.which("unshare"):
        return None
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="course-box-") as name:
        scratch = Path(name)
        give_to_nobody([scratch] if root else [])
        look = shlex.join([sys.executable, "-P", "-c", "import json"])
        for box in ((AS_ROOT,) if root else ()) + (AS_USER,):
            inside = f"exec {shlex.join(become_nobody(box))} {look}"
            if succeeds([*box, script(scratch, (), (), (), 2**20) + inside]):
                return box
        return DROPPED if root and succeeds([*DROPPED, *shlex.split(look)]) else None


@functools.cache
def become_nobody(box: tuple[str, ...]) -> tuple[str, ...]:
    """The words before a command in the box that make it nobody, if possible in a user namespace of its own.

    The kernel counts processes by user and namespace: what is started in one box must not count in another.
    """
    if box is AS_USER:
        return RENAMED
    alone = (*DROPPED, *OF_ITS_OWN)
    return alone if succeeds([*alone, "true"]) else DROPPED


def succeeds(command: list[str]) -> bool:
    try:
        return subprocess.run(command, cwd="/", capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def give_to_nobody(folders: Iterable[Path]) -> None:
    """Let the user inside write to these folders, and reach them."""
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def script(scratch: Path, readable: Iterable[Path], writable: Iterable[Path], hidden: Iterable[Path],
           space: int) -> str:
    """Shell commands that make the new root and enter it; the caller adds the command to become."""
    root = scratch / ".root"
    seen = outermost([*interpreter(), *map(Path.resolve, readable), *map(Path, SYSTEM)])
    lines = [f"mkdir -p {q(root)}", f"mount -t tmpfs -o size=16m,mode=755 root {q(root)}"]
    lines += [link_or_mount(root, Path(name)) for name in LINKS if Path(name).exists()]
    for path in seen:
        lines += [mount(root, path), f"mount -o remount,bind,ro,nosuid,nodev {q(below(root, path))}"]
    for path in covered(seen, hidden):
        lines += [f"mount -t tmpfs -o size=4k,mode=755,ro hidden {q(below(root, path))}"]
    lines += [mount(root, path.resolve()) for path in writable]
    lines += [empty(root, scratch, space), empty(root, Path("/dev/shm"), SHARED_MEMORY)]
    lines += [mount(root, Path("/dev", name)) for name in DEVICES]
    lines += [f"ln -s /proc/self/fd {q(root / 'dev/fd')}", f"mkdir {q(root / 'proc')} {q(root / 'old')}",
              f"mount -t proc proc {q(root / 'proc')}", f"cd {q(root)}", "pivot_root . old",
              "umount -l /old", "rmdir /old", "mount -o remount,bind,ro /", f"cd {q(scratch)}", ""]
    return "\n".join(lines)


def q(path: Path) -> str:
    return shlex.quote(str(path))


def below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def mount(root: Path, path: Path) -> str:
    """Show a folder or file inside at its own path."""
    target = below(root, path)
    make = f"mkdir -p {q(target)}" if path.is_dir() else f"mkdir -p {q(target.parent)}; : > {q(target)}"
    return f"{make}; mount --bind {q(path)} {q(target)}"


def link_or_mount(root: Path, path: Path) -> str:
    return f"ln -s {q(path.readlink())} {q(below(root, path))}" if path.is_symlink() else mount(root, path)


def empty(root: Path, path: Path, size: int) -> str:
    """An empty folder in memory that anybody may write to."""
    target = below(root, path)
    return f"mkdir -p {q(target)}; mount -t tmpfs -o size={size},mode=1777,nosuid,nodev scratch {q(target)}"


def packages() -> list[Path]:
    """Folders of installed packages."""
    return [Path(name) for name in sys.path if Path(name).name in ("site-packages", "dist-packages")]


def interpreter() -> list[Path]:
    """What this Python needs to start and to find its packages."""
    real = Path(sys.executable).resolve().parent.parent
    return [Path(sys.prefix), Path(sys.base_prefix), real, *packages()]


def outermost(paths: Iterable[Path]) -> list[Path]:
    """Those that exist and do not lie in another one; `/` itself is never shown."""
    found = sorted({Path(os.path.abspath(path)) for path in paths if path.exists()} - {Path("/")})
    return [path for path in found if not any(other in path.parents for other in found)]


def covered(seen: list[Path], hidden: Iterable[Path]) -> list[Path]:
    """What lies in the shown folders but must not be seen: installed copies of the course, and its checkout."""
    candidates = [folder / name for folder in packages() for name in OWN]
    candidates += [Path(folder).resolve() / name for folder in hidden for name in CHECKOUT]
    return sorted({path for path in candidates if path.is_dir() and not path.is_symlink()
                   and any(shown in path.parents for shown in seen)})


def limit_here(processes: int, file_size: int, hidden: Iterable[Path] = (), closed: Iterable[Path] = ()) -> list[str]:
    """Set what a process can set for itself and its children; returns the limits that do not hold here, by looking."""
    missing = [] if os.geteuid() else ["another user than root"]
    for name, limit in (("NPROC", own_tasks() + processes), ("FSIZE", file_size), ("NOFILE", OPEN_FILES), ("CORE", 0)):
        lower(getattr(resource, f"RLIMIT_{name}"), limit)
    if not os.geteuid():
        missing.append("number of processes")
    if sys.platform == "darwin":
        missing.append("memory")
    if {name for _, name in socket.if_nameindex()} - {"lo", "lo0"}:
        missing.append("network")
    if os.getpid() != 1:
        missing.append("other processes")
    if any((folder / name).is_dir() and any((folder / name).iterdir()) for folder in hidden for name in CHECKOUT):
        missing.append("a view without the checkout")
    if any(os.access(folder, os.W_OK) for folder in closed):
        missing.append("writing outside the scratch folder")
    return missing


def lower(limit: int, value: int) -> None:
    """Take a limit down for good; one that is lower already stays."""
    _, hard = resource.getrlimit(limit)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))


def own_tasks() -> int:
    """Processes and threads that this user has now: the kernel counts all of them, also those outside the box."""
    import psutil

    found = psutil.process_iter(["uids", "num_threads"])
    return sum(task.info["num_threads"] or 1 for task in found
               if task.info["uids"] and task.info["uids"].real == os.getuid())
