"""A kernel that is forked, not started (tests/kernels.py): what a notebook finds in it, and that it ends."""
import os
import queue
import signal
import sys
from contextlib import suppress

import psutil
import pytest
from jupyter_client.manager import start_new_kernel
from jupyter_client.provisioning import KernelProvisionerFactory

from tests.kernels import ForkedKernel, WarmProcess, WarmProvisioner, pytest_configure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")


@pytest.fixture(autouse=True)
def forking(monkeypatch):
    """As under `pytest -p tests.kernels`, with little imported; afterwards as it was."""
    monkeypatch.setattr(KernelProvisionerFactory.instance(), "default_provisioner_name", "local-provisioner")
    pytest_configure()
    monkeypatch.setattr(WarmProvisioner, "warm", WarmProcess(("pandas", "ipykernel.kernelapp")))
    yield
    WarmProvisioner.warm.line.close()


@pytest.fixture
def forked(tmp_path, monkeypatch):
    """Two kernels of one warm process, each with its client; the second has another folder."""
    monkeypatch.setenv("FROM_THE_TEST", "yes")
    (tmp_path / "other").mkdir()
    kernels = [start_new_kernel(cwd=str(folder)) for folder in (tmp_path, tmp_path / "other")]
    yield kernels
    for manager, client in kernels:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def said(client, code: str) -> str:
    """What a cell printed, or the name of the error that it ended with."""
    told = []
    reply = client.execute_interactive(code, timeout=60, output_hook=lambda message: told.append(message["content"]))
    return reply["content"].get("ename") or "".join(content.get("text", "") for content in told).strip()


def interrupted(manager, client, waiting: str) -> dict:
    """What a cell ends with. An interrupt may come where Python can raise nothing, and is lost: another follows."""
    while True:
        manager.interrupt_kernel()
        with suppress(queue.Empty):
            while (reply := client.get_shell_msg(timeout=5))["parent_header"].get("msg_id") != waiting:
                continue
            return reply["content"]


def test_it_is_a_kernel_of_its_own_in_which_only_others_packages_are_imported(forked, tmp_path):
    (_, first), (_, second) = forked
    assert said(first, "import os, sys; print(os.getcwd())") == str(tmp_path.resolve())
    assert said(second, "import os, sys; print(os.getcwd())") == str(tmp_path.resolve() / "other")
    assert said(first, "print(os.environ['FROM_THE_TEST'], os.getsid(0) == os.getpid())") == "yes True"
    assert said(first, "print('pandas' in sys.modules, 'finetune_lib' in sys.modules)") == "True False"
    assert said(first, "print('milestones' in sys.modules, 'tests' in sys.modules)") == "False False"
    assert said(first, "print('' in sys.path, any(path.endswith('tests') for path in sys.path))") == "True False"
    assert said(first, "pandas") == said(first, "numpy") == "NameError"
    draw = "import random, numpy; print(random.random(), numpy.random.rand())"
    assert len({word for client in (first, second) for word in said(client, draw).split()}) == 4
    said(first, "left = 1")
    assert said(second, "left") == "NameError"


def test_it_is_interrupted_and_started_again_and_its_end_is_told(forked):
    manager, client = forked[0]
    said(client, "before = 1")
    code = "import threading; print('begun', flush=True); threading.Event().wait(60)"
    waiting = client.execute(code, stop_on_error=False)  # else what is sent next may be left out with it
    while "begun" not in client.get_iopub_msg(timeout=60)["content"].get("text", ""):
        continue
    assert interrupted(manager, client, waiting)["ename"] == "KeyboardInterrupt"
    assert said(client, "print(before)") == "1"
    first = manager.provisioner.process
    assert isinstance(first, ForkedKernel) and first.poll() is None
    manager.restart_kernel(now=True)
    client.wait_for_ready(timeout=60)
    assert said(client, "before") == "NameError" and manager.provisioner.process.pid != first.pid
    assert first.wait() == -signal.SIGKILL and manager.is_alive()
    os.kill(manager.provisioner.process.pid, signal.SIGTERM)
    assert manager.provisioner.process.wait() == -signal.SIGTERM and not manager.is_alive()


def test_the_warm_process_ends_with_who_started_it_and_its_kernels_with_it():
    manager, client = start_new_kernel()
    client.stop_channels()
    kernel = psutil.Process(manager.provisioner.process.pid)
    ending = [kernel, kernel.parent()]
    assert all(process.is_running() for process in ending)
    WarmProvisioner.warm.line.close()
    assert psutil.wait_procs(ending, timeout=60)[1] == []


def test_a_warm_process_that_ended_says_so():
    with pytest.raises(RuntimeError, match="has ended; what it said stands above"):
        WarmProcess(("no_such_package",)).ask(poll=1)
