"""milestones/README.md is what an author reads: its example is a task that works, and its map is the kit's."""
import ast
import re

from milestones.checking import FAILED, KIT, PASSED, collect
from milestones.exporting import change_task, export
from milestones.listed import Alternative, Mistake
from milestones.running import run_in_folder
from milestones.tasks import find_tasks

PAGE = (KIT / "README.md").read_text(encoding="utf-8")
TASK, CHECK, LISTED = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_examples_task_is_passed_its_mistake_caught_its_alternative_passed(tmp_path, write, made_course):
    course, kit = tmp_path / "course", tmp_path / "course/milestones"
    write(course / "nbs/02_lora/01_merged.ipynb",
          ["#| default_exp lora.merged", "#| export\nimport torch\nfrom torch import Tensor", TASK])
    (course / "pyproject.toml").write_text((made_course / "pyproject.toml").read_text())
    (course / "finetune_lib").mkdir()
    (course / "finetune_lib/__init__.py").touch()
    (kit / "02_lora").mkdir(parents=True)
    (kit / "02_lora/checks.py").write_text(
        "import pytest\nimport torch\n\nfrom milestones.expecting import same\n\n\n" + CHECK)
    mistake, alternative = (eval(compile(ast.Expression(entry.value), "example", "eval"),
                                 {"Mistake": Mistake, "Alternative": Alternative})
                            for entry in ast.parse(LISTED).body)
    export(course)
    [task], checks = find_tasks(course), collect(kit)
    said = {}
    for entry in (None, mistake, alternative):
        change_task(course, task, entry.applied(task) if entry else task.source)
        [said[entry]] = run_in_folder(course, [task], checks, kit, seed=1)
    assert (said[None].state, said[mistake].state, said[alternative].state) == (PASSED, FAILED, PASSED)
    assert mistake.hint in said[mistake].reason


def test_every_module_is_named_once_with_its_own_first_sentence():
    lines = re.findall(r"^- `(\w+)\.py`: (.*)$", PAGE, re.M)
    modules = {path.stem: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
               for path in KIT.glob("*.py") if not path.stem.startswith("__")}
    assert sorted(name for name, _ in lines) == sorted(modules)
    assert {name: words for name, words in lines} == {
        name: " ".join(text.split("\n\n")[0].split()) for name, text in modules.items()}
