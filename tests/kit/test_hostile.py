"""Hostile submissions: none scores a point that it did not earn, none loses the report, each is named in it.

A course made for this: one task for each act, and the right answer after it, so that only what the grader notices can
cost the points. Acts on import have a milestone of their own each; all are graded in one run.
"""
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode

from milestones.apart import changed_checks
from milestones.checking import FAILED, PASSED
from milestones.grading import grade
from milestones.running import Limits
from milestones.sandbox import AS_ROOT, AS_USER, best_box, run_boxed
from milestones.seal import Seal
from milestones.wrong import unsound

ROOT = Path(__file__).parents[2]
LIMITS = Limits(seconds=4, start=3, memory=2**30, processes=64, file=2**24, space=2**27)
MARK = f"hostile-{uuid.uuid4().hex}"
BOXED = sys.platform == "linux"

ACTS = {  # what a graded function does before it gives the right answer, and what the report must say
    "endless_loop": ("while True: pass", "more than 4 s"),
    "ten_gigabytes": ("b = bytearray(10 * 2**30)", "MemoryError"),
    "fork_bomb": ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
                  ("processes without end", "processes that it had started")),  # whichever comes first
    "fork_bomb_in_c": ("import ctypes\nfor _ in range(500):\n    if ctypes.CDLL(None).fork() < 0: "
                       "raise BlockingIOError('no more processes')",
                       ("no more processes", "processes that it had started")),
    "leaves_at_once": ("import os\nos._exit(0)", "exit code 0"),
    "sys_exit": ("import sys\nsys.exit(0)", "SystemExit"),
    "kills_itself": ("import os\nos.kill(os.getpid(), 9)", "SIGKILL"),
    "sleeps": ("import time\ntime.sleep(999)", "it took more than"),
    "skips_the_check": ("import pytest\npytest.skip('no thanks')", "Skipped"),
    "interrupts": ("raise KeyboardInterrupt", "ended in the middle"),
    "ends_the_run": ("import pytest\npytest.exit('bye', 0)", "ended in the middle"),
    "prints_without_end": ("for _ in range(1024): print('x' * 2**20, flush=True)", "File too large"),
    "fills_the_disk": ("for i in range(99): open(f'big{i}', 'wb').write(bytes(2**23))", "No space left"),
    "reads_the_solution": ("try: open('{course}/nbs/01_acts/01_acts.ipynb').read()\nexcept OSError: pass",
                           "read the course's own files"),
    "asks_git": ("import subprocess\ntry: subprocess.run(['git', '-C', '{course}', 'show', 'solution:nbs'])\n"
                 "except OSError: pass", "start another program (git"),
    "takes_the_installed_one": ("import sys, os\nfor p in [*sys.path, '{checkout}']:\n    "
                                "if os.path.isfile(p + '/milestones/01_data/mistakes.py'): return n + 1\nreturn 0",
                                "not right"),
    "writes_at_home": ("try: open('{home}/{mark}', 'w')\nexcept OSError: pass", "write outside its folder"),
    "writes_to_tmp": ("try: open('/tmp/{mark}', 'w')\nexcept OSError: pass", "write outside its folder"),
    "writes_to_tmp_by_shell": ("import os\ntry: os.system('touch /tmp/{mark}')\nexcept OSError: pass",
                               "start another program"),
    "changes_the_checks": ("import milestones\nfrom pathlib import Path\nfile = Path(milestones.__file__).parent / "
                           "'02_patch/checks.py'\ntry: file.write_text('')\nexcept OSError: pass", "write outside"),
    "deletes_the_library": ("import os\ntry: os.remove(__file__)\nexcept OSError: pass", "write outside its folder"),
    "calls_the_network": ("import socket\ntry: socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError: pass",
                          "use the network (192.0.2.1)"),
    "kills_the_parent": ("import os\ntry: os.kill(os.getppid(), 9)\nexcept OSError: pass", "end the grader"),
    "closes_all_files": ("import os\nos.closerange(0, 256)\nwhile True: pass", "closed its line to the grader"),
    "leaves_a_thread": ("import threading, time\ndef stay():\n    while True: time.sleep(9)\n"
                        "threading.Thread(target=stay, daemon=True).start()", "left a thread running"),
    "looks_at_its_caller": ("import sys\ntry: return sys._getframe(1).f_locals['right']\nexcept OSError: pass",
                            "look into the code that called it"),
    "looks_through_a_traceback": ("try: 1 / 0\nexcept ZeroDivisionError as error:\n    "
                                  "try: error.__traceback__.tb_frame\n    except OSError: pass", "look into the code"),
    "answers_by_table": ("return {number: number + 1 for number in range(9999)}.get(n, 0)", "not right"),
    "a_number_that_equals_all": ("class Any(float):\n    __eq__ = __ge__ = __le__ = lambda a, b: True\nreturn Any(0)",
                                 "not right"),
}
FINE = {  # noise that changes nothing
    "noise_on_stderr": "import sys\nsys.stderr.write('x' * 2**16)",
    "warnings": "import warnings\nwarnings.warn('careful')",
    "writes_into_its_own_folder": "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nopen('x', 'w')",
    "a_thread_that_ends": "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
}
ON_IMPORT = {  # what a module does when it is imported, and what the report must say
    "loop": ("while True: pass", "on import: it took more than 3 s"),
    "exit": ("import os\nos._exit(0)", "on import: the process left with exit code 0"),
    "left": ("raise SystemExit(0)", "SystemExit"),
    "pytest": ("import pytest\npytest.main = lambda *a, **k: 0", "tampered with: pytest.main"),
    "outcome": ("import milestones.expecting as e\ne.equal = lambda *a, **k: True", "tampered with: milestones.expec"),
    "code": ("import milestones.expecting as e\ne.same.__code__ = (lambda *a, **k: None).__code__", "look into the"),
    "builtin": ("import builtins\nbuiltins.isinstance = lambda *a: True", "tampered with: builtins.isinstance"),
    "fake": ("import sys, types\nsys.modules['milestones.expecting'] = types.ModuleType('x')",
             "tampered with: milestones.expecting"),
    "assertion": ("import _pytest.assertion.rewrite as r\nr.rewrite_asserts = lambda *a, **k: None",
                  "tampered with: _pytest.assertion.rewrite"),
    "numpy": ("import numpy\nnumpy.allclose = lambda *a, **k: True", "tampered with: numpy.allclose"),
    "network": ("import urllib.request\ntry: urllib.request.urlopen('http://example.com', timeout=1)\n"
                "except OSError: pass", "on import: the code tried to use the network"),
}
LAZY = {  # what a function does when it is called: all that its process said is spoilt, so each is alone
    "late": ("import milestones.expecting as e\ne.equal = lambda *a, **k: True", "tampered with: milestones.expecting"),
    "once": ("import milestones.expecting as e\nkeep = e.equal\ndef once(*a, **k):\n    e.Mismatch.__init__ = None\n"
             "    return True\ne.equal = once", "tampered with: milestones.expecting"),
    "plugin": ("import _pytest.assertion.util as u\nfor p in u._config.pluginmanager.get_plugins():\n"
               "    if hasattr(p, 'judge'): p.record = lambda item: None", "tampered with: the engine.record"),
    "forged": ("import os, json\nfor fd in range(3, 64):\n    try: os.write(fd, json.dumps(dict(done=True)).encode() + "
               "b'\\n')\n    except OSError: pass", "tampered with: a result came that no check sent"),
    "sent": ("import _pytest.assertion.util as u\nfor p in u._config.pluginmanager.get_plugins():\n"
             "    if hasattr(p, 'judge'):\n        p.judge.send(dict(result=dict(check=dict(name='test_other'), "
             "state='passed')))", "tampered with: a result came out of turn"),
}
CHECK = '''
@pytest.mark.task("{task}", points={points})
def test_{name}(lib, seed):
    right = seed + 10001
    same(lib.{name}(seed + 10000), right, "the next number")
'''
NOTEBOOKS = {  # what is wrong with a notebook itself, and what the report must say
    "text": "could not be exported: JSONDecodeError",
    "million": "a notebook has at most 16 MiB",
    "big": "a module has at most 1 MiB",
    "link": "this one leads elsewhere",
    "pipe": "is no file",
    "escape": "could not be exported",
}
PARTS = [*ON_IMPORT, *LAZY, *NOTEBOOKS]


def notebook_of(part: str) -> str:
    return f"nbs/{PARTS.index(part) + 2:02d}_{part}/01_{part}.ipynb"


def break_notebook(path: Path, name: str, course: Path) -> None:
    """Put something in a notebook's place that is none, or one that should not be read."""
    text = path.read_text()
    path.unlink()
    if name == "link":
        path.symlink_to(course / notebook_of(name))
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "text":
        path.write_text("no notebook")
    elif name == "million":
        cells = ",".join(['{"cell_type": "raw", "source": ""}'] * 10**6)
        path.write_text(json.dumps({**json.loads(text), "cells": ["?"]}).replace('"?"', cells))
    elif name == "big":
        path.write_text(text.replace("return n + 1", "return n + 1 # " + "x" * 2**21))
    elif name == "escape":
        path.write_text(text.replace("default_exp escape.escape", f"default_exp ..tmp.{MARK}"))


def indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())


def task(number: str, name: str, body: str = "", before: str = "") -> str:
    """A task's cell: the next number, after `body`; `before` stands above the function."""
    return f"#| export\n#| task: {number} {name}\n{before}\ndef {name}(n):\n{indented(body)}    return n + 1"


def write_course(folder: Path, write, hostile: dict[str, str]) -> None:
    """The course, or with the texts of `hostile` its submission: by name of the function or of the part."""
    functions = [*ACTS, *FINE]
    cells = [task(f"1.{place + 1}", name, hostile.get(name, "")) for place, name in enumerate(functions)]
    write(folder / "nbs/01_acts/01_acts.ipynb", ["#| default_exp acts.acts", *cells])
    for place, name in enumerate(PARTS):
        body, before = (hostile.get(name, ""), "") if name in LAZY else ("", hostile.get(name, ""))
        write(folder / notebook_of(name), [
            f"#| default_exp {name}.{name}", task(f"{place + 2}.1", "act", body, before)])


def write_checks(folder: Path) -> None:
    head = "import pytest\nfrom milestones.expecting import same\n"
    functions = [*ACTS, *FINE]
    texts = {"01_acts": [CHECK.format(task=f"1.{place + 1}", name=name, points=1)
                         for place, name in enumerate(functions)]}
    for place, name in enumerate(PARTS):
        number = place + 2
        texts[f"{number:02d}_{name}"] = [CHECK.format(task=f"{number}.1", name="act", points=1).replace(
            "test_act", f"test_act_{name}")]
    for name, checks in texts.items():
        (folder / f"milestones/{name}").mkdir(parents=True)
        (folder / f"milestones/{name}/checks.py").write_text(
            head + "\n".join(checks))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def hostile_kit(place, made_course, write) -> Path:
    course = place / "course"
    write_course(course, write, {})
    write_checks(course)
    shutil.copy(made_course / "pyproject.toml", course)
    (course / "finetune_lib").mkdir()
    (course / "finetune_lib/__init__.py").write_text("")
    subprocess.run(["git", "init", "-q", str(course)], check=True)
    return course / "milestones"


def filled(code: str, course: Path) -> str:
    known = {"course": course, "home": pwd.getpwuid(os.getuid()).pw_dir, "mark": MARK,
             "checkout": Path(__file__).parents[2]}
    for name, value in known.items():
        code = code.replace("{" + name + "}", str(value))
    return code


@pytest.fixture(scope="module")
def report(place, hostile_kit, write) -> dict:
    """The report on all hostile acts, in one run."""
    course, folder = hostile_kit.parent, place / "submission"
    acts = {name: code for name, (code, _) in {**ACTS, **ON_IMPORT, **LAZY}.items()} | FINE
    write_course(folder, write, {name: filled(code, course) for name, code in acts.items()})
    for name in NOTEBOOKS:
        break_notebook(folder / notebook_of(name), name, course)
    return grade(folder, kit=hostile_kit, limits=LIMITS, only_checks=True)


@pytest.fixture(scope="module")
def checks(report) -> dict[str, dict]:
    return {check["name"]: check for milestone in report["milestones"] for task in milestone["tasks"]
            for check in task["checks"]}


def all_that_is_said(check: dict) -> str:
    return " ".join(check[part] for part in ("what", "got", "reason"))


@pytest.mark.parametrize("name", ACTS)
def test_a_hostile_function_fails_by_name(checks, name):
    found = checks[f"test_{name}"]
    assert (found["state"], found["points"]) == (FAILED, 0), found
    words = ACTS[name][1]
    assert any(said in all_that_is_said(found) for said in ([words] if isinstance(words, str) else words)), found


@pytest.mark.parametrize("name", FINE)
def test_what_harms_nobody_costs_nothing(checks, name):
    assert checks[f"test_{name}"]["state"] == PASSED, checks[f"test_{name}"]


@pytest.mark.parametrize("name", [*ON_IMPORT, *LAZY])
def test_a_hostile_module_fails_by_name(checks, name):
    found = checks[f"test_act_{name}"]
    assert (found["state"], found["points"]) == (FAILED, 0), found
    assert {**ON_IMPORT, **LAZY}[name][1] in all_that_is_said(found), found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_hostile_notebook_fails_by_name(checks, report, name):
    found = checks[f"test_act_{name}"]
    assert (found["state"], found["points"]) == (FAILED, 0), found
    assert NOTEBOOKS[name] in found["what"], found
    assert any(NOTEBOOKS[name] in line for line in report["trouble"]), report["trouble"]


@pytest.mark.parametrize("name", ["torch.allclose", "torch.equal", "torch.Tensor.equal", "torch.Tensor.__eq__"])
def test_the_seal_knows_what_compares_tensors(monkeypatch, name):
    owner, _, last = name.rpartition(".")
    seal = Seal()
    monkeypatch.setattr(torch.Tensor if owner == "torch.Tensor" else torch, last, lambda *a, **k: True)
    assert seal.broken() == name


def test_a_mode_that_makes_all_tensors_equal_is_unsound():
    class Zero(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            value = function(*arguments, **(options or {}))
            return value * 0 if function.__name__ == "detach" else value

    assert not unsound()
    with Zero():
        assert unsound() == "different tensors are not the same"


def test_only_what_harms_nobody_has_points(report):
    assert report["points"] == len(FINE)


def test_nothing_is_left_outside(checks):
    places = [Path("/tmp"), Path(pwd.getpwuid(os.getuid()).pw_dir)]
    assert not [place for place in places if list(place.glob(f"{MARK}*"))]


@pytest.mark.skipif(not BOXED, reason="Linux namespaces")
def test_every_limit_holds_here(report):
    assert report["limits"]["not_set"] == []


def test_what_ended_a_check_is_in_the_troubles(report):
    assert any("end the grader" in line for line in report["trouble"]), report["trouble"]


def test_changed_and_deleted_checks_are_named_and_of_no_effect(course, kit, tmp_path):
    folder = Path(shutil.copytree(course, tmp_path / "mine"))
    assert changed_checks(folder, kit) == []
    (folder / "milestones/02_lora/checks.py").write_text("")
    assert "02_lora/checks.py was changed or deleted" in changed_checks(folder, kit)[0]
    (folder / "milestones/02_lora/checks.py").unlink()
    assert "02_lora/checks.py was changed or deleted" in changed_checks(folder, kit)[0]


@pytest.fixture
def boxed(tmp_path):
    if best_box() not in (AS_ROOT, AS_USER):
        pytest.skip("this machine has no namespaces for us")
    (tmp_path / "scratch").mkdir()

    def run(words, **options):
        return run_boxed(["sh", "-c", words], tmp_path / "scratch", environment={"PATH": os.environ["PATH"]}, **options)
    return run


def test_an_installed_copy_of_the_course_is_not_seen_in_the_box(boxed, tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    for name in ("finetune_lib", "milestones", "another"):
        (packages / name).mkdir(parents=True)
        (packages / name / "file.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    assert boxed(f"cd {packages}; echo */file.py").stdout.split() == ["another/file.py"]


def test_a_checkout_inside_what_is_shown_is_hidden(boxed, tmp_path):
    for name in ("nbs", ".git", "data"):
        (tmp_path / "shown/course" / name).mkdir(parents=True)
        (tmp_path / "shown/course" / name / "file").write_text("")
    done = boxed(f"cd {tmp_path}/shown/course; echo */file .git/*", readable=[tmp_path / "shown"],
                 hidden=[tmp_path / "shown/course"])
    assert done.stdout.split() == ["data/file", ".git/*"]


def test_in_the_box_there_is_nobody_and_nothing_else(boxed):
    said = boxed("id -u; ls /proc | grep -c '^[0-9]'; ls -A .; cat /proc/net/dev | grep -c :").stdout.split()
    assert said[0] == "65534" and int(said[1]) <= 4 and said[2:] == ["1"]


def test_processes_in_one_box_do_not_count_in_another(boxed, tmp_path):
    (tmp_path / "shown").mkdir(mode=0o777)
    crowd = (f"for i in $(seq 40); do sleep 60 & done; touch {tmp_path}/shown/full; "
             f"while test -e {tmp_path}/shown/full; do sleep 0.05; done")
    thread = f"from milestones.sandbox import limit_here; limit_here(8, 2**20)\n{FINE['a_thread_that_ends']}"
    with ThreadPoolExecutor() as pool:
        other = pool.submit(boxed, crowd, writable=[tmp_path / "shown"])
        while not (tmp_path / "shown/full").exists() and not other.done():
            pass
        done = boxed(f"PYTHONPATH={ROOT} OMP_NUM_THREADS=1 {sys.executable} -c {shlex.quote(thread)}", readable=[ROOT])
        (tmp_path / "shown/full").unlink()
    assert done.returncode == 0, done.stderr
    assert other.result().returncode == 0


def test_the_box_holds_as_much_as_its_scratch_may(boxed):
    done = boxed("head -c 5000000 /dev/zero > big", space=2**20)
    assert "No space left" in done.stderr


def test_what_does_not_hold_is_named():
    code = "from milestones.sandbox import limit_here; print(limit_here(8, 2**20, [], []))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert "other processes" in done.stdout
    assert ("number of processes" in done.stdout) == (os.geteuid() == 0)


def said_by(code: str) -> str:
    """What a fresh process prints; a warm one has imported too much to show what an import changes."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    return done.stdout.strip() or done.stderr


@pytest.mark.parametrize("late", [
    "import torch, numpy, finetune_lib.data.batches",  # a part of the course
    "import peft, accelerate; from transformers import LlamaConfig, LlamaForCausalLM; "  # a check that makes a model
    "LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, "
    "num_attention_heads=2))",
])
def test_what_is_imported_for_the_first_time_breaks_no_seal(late):
    code = f"from milestones.running import Seal; seal = Seal(); {late}; print(repr(seal.broken()))"
    assert said_by(code) == "''"


def test_what_the_seal_needs_is_imported_before_a_child_is_forked():
    """A child that imported it would spend the time that a learner's module has for its own import."""
    code = "import sys; from milestones.apart import run_checks_apart; from milestones.seal import NEEDED; " \
           "run_checks_apart({'tasks': [], 'checks': [], 'hidden': [], 'scratch': '.'}, print, False); " \
           "print([name for name in NEEDED if name not in sys.modules])"
    assert said_by(code) == "[]"
