"""Notebooks' kernels forked from one process that has imported what they import, where each would import it again.

`pytest -p tests.kernels`, on Linux. A forked kernel has its own folder, environment, session and end, as one that was
started, and finetune_lib is not imported in it yet. `make notebooks` and the course itself start theirs cold.
"""
import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import EntryPoint

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

IMPORTS = ("torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft",
           "bitsandbytes", "pandas", "matplotlib.pyplot", "matplotlib_inline.backend_inline", "ipykernel.kernelapp")
LONGEST = 2**18  # bytes of one request: a command, a folder, an environment


class WarmProcess:
    """The process that kernels are forked from, asked one thing at a time; it ends with whoever started it."""

    def __init__(self, imports: tuple[str, ...] = IMPORTS) -> None:
        self.line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, __file__, str(theirs.fileno()), *imports]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])

    def ask(self, **request: object) -> int | None:
        answer = b""
        with contextlib.suppress(ConnectionError):
            self.line.send(json.dumps(request).encode())
            answer = self.line.recv(LONGEST)
        if not answer:
            raise RuntimeError("the process that kernels are forked from has ended; what it said stands above")
        return json.loads(answer)


class ForkedKernel:
    """What jupyter_client asks of a Popen."""

    stdin = stdout = stderr = None

    def __init__(self, process: WarmProcess, command: list[str], cwd: str | None, env: dict[str, str]) -> None:
        self.process, self.ended = process, None
        self.pid = process.ask(command=command, cwd=str(cwd or os.getcwd()), env=dict(env))

    def poll(self) -> int | None:
        if self.ended is None:
            self.ended = self.process.ask(poll=self.pid)
        return self.ended

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.ended

    def send_signal(self, number: int) -> None:
        if self.poll() is None:  # until it is asked after, the number is not given to another process
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmProvisioner(LocalProvisioner):
    """Where Jupyter gets its kernels' processes from."""

    warm: WarmProcess | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs) -> KernelConnectionInfo:
        if cmd[:3] != [sys.executable, "-m", "ipykernel_launcher"]:
            return await super().launch_kernel(cmd, **kwargs)
        WarmProvisioner.warm = self.warm or WarmProcess()
        self.process = ForkedKernel(self.warm, cmd[3:], kwargs.get("cwd"), kwargs["env"])
        self.pid = self.pgid = self.process.pid
        self.cwd = kwargs.get("cwd")
        return self.connection_info


def pytest_configure() -> None:
    if sys.platform != "linux":  # elsewhere what torch loads does not live through a fork
        return
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["warm"] = EntryPoint("warm", "tests.kernels:WarmProvisioner", factory.GROUP_NAME)
    factory.default_provisioner_name = "warm"


def serve(line: socket.socket, imports: list[str]) -> None:
    """Import, then fork a kernel for each request, and say of one that is asked after how it ended, or null."""
    for name in imports:
        importlib.import_module(name)
    gc.freeze()
    while request := line.recv(LONGEST):
        wanted = json.loads(request)
        if "poll" in wanted:
            child, status = os.waitpid(wanted["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if child else None
        elif not (answer := os.fork()):
            line.close()
            return become_kernel(**wanted)
        line.send(json.dumps(answer).encode())


def become_kernel(command: list[str], cwd: str, env: dict[str, str]) -> None:
    """What `python -m ipykernel_launcher` does, in a session of its own."""
    import numpy as np
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 2)
    ends_with_parent = f"--IPKernelApp.parent_handle={os.getppid()}"
    sys.argv = ["ipykernel_launcher", *command, ends_with_parent]
    np.random.seed()
    launch_new_instance()


if __name__ == "__main__":
    del sys.path[0]  # this file's folder, of which a kernel knows nothing
    with contextlib.suppress(KeyboardInterrupt):  # pytest was stopped, and this with it
        serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
