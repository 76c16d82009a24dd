"""The tasks of the course, found in its notebooks: a cell with the directive `#| task: 2.1` is one.

One source for both branches: blanking a task keeps its signature, docstring and numbered steps, and takes the code.
A learner's folder also holds the list of its tasks, so that one is known whatever has become of its cell.
"""
import ast
import io
import json
import re
import tokenize
from dataclasses import asdict, dataclass, replace
from pathlib import Path

DIRECTIVE = re.compile(r"^#\|\s*task:\s*(?P<id>\d+\.\d+)(?P<names>(?:[ \t]+\w+)*)[ \t]*\n?", re.MULTILINE)
EXPORTED_TO = re.compile(r"^#\|\s*default_exp\s+(\S+)", re.MULTILINE)
STEP = re.compile(r"^#\s*(\d+)\.\s*(.*)$")
EXPORTED = re.compile(r"^#\|\s*export\b", re.MULTILINE)
HEADING = re.compile(r"^#{1,4} +(.+?) *$", re.MULTILINE)
LIST = "milestones/tasks.json"  # in a skeleton: its tasks as they were handed out
Function = ast.FunctionDef | ast.AsyncFunctionDef


class TaskError(ValueError):
    """A task cell that the course cannot use: says where, and what must hold."""


@dataclass(frozen=True)
class Task:
    """One thing that a learner writes."""

    id: str  # "2.1": milestone and number
    notebook: str  # path below nbs/, as "02_lora/01_adapter.ipynb"
    module: str  # full name of the module it is exported to, as "finetune_lib.lora.adapter"
    cell: int  # index among all cells of the notebook
    targets: tuple[str, ...]  # what has to be written: "scaling", or "LoRALinear.forward"
    source: str  # the cell's text; of all its cells where a learner split it, "" where there is none
    section: str = ""  # heading that the cell stands under

    @property
    def milestone(self) -> int:
        return int(self.id.split(".")[0])

    @property
    def order(self) -> tuple[int, int]:
        return task_order(self.id)

    @property
    def title(self) -> str:
        """What the learner is told is open: `LoRALinear.forward` or `quantize, dequantize`."""
        return ", ".join(self.targets)


def task_order(task_id: str) -> tuple[int, int]:
    """Tasks in the order of the course: 2.9 comes before 2.10."""
    milestone, number = task_id.split(".")
    return int(milestone), int(number)


def read_notebook(path: Path) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def write_notebook(path: Path, notebook: dict) -> None:
    """Write in the form that nbformat writes, so that an unchanged notebook keeps its bytes."""
    text = json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True)
    Path(path).write_text(text + "\n", encoding="utf-8")


def cell_source(cell: dict) -> str:
    return "".join(cell["source"])


def set_source(cell: dict, source: str) -> None:
    cell["source"] = source.splitlines(keepends=True)


def notebook_paths(folder: Path) -> list[Path]:
    """All notebooks below `folder`/nbs, in reading order."""
    found = (Path(folder) / "nbs").rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def find_tasks(folder: Path) -> list[Task]:
    """Every task of the course in `folder` (it holds nbs/), in the order of their ids.

    In a learner's folder: those of its list, wherever their cells are now. On main: those that the notebooks hold; an
    id used twice, or a cell that cannot be a task, is refused.
    """
    if listed := handed_out(folder):
        return [located(task, Path(folder)) for task in listed]
    tasks = [task for path in notebook_paths(folder) for task in tasks_in(path, Path(folder) / "nbs")]
    seen: dict[str, Task] = {}
    for task in tasks:
        if task.id in seen:
            raise TaskError(f"a task's id must be used once, got {task.id} in {seen[task.id].notebook} "
                            f"and in {task.notebook}; give one of them the next free number")
        seen[task.id] = task
    return sorted(tasks, key=lambda task: task.order)


def keep_list(folder: Path, tasks: list[Task]) -> None:
    """Write the list of a skeleton's tasks, as they are handed out."""
    blanked = [asdict(replace(task, source=blank(task.source))) for task in tasks]
    (Path(folder) / LIST).write_text(json.dumps(blanked, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def handed_out(folder: Path) -> list[Task]:
    """The tasks of a skeleton as they were handed out; none on main."""
    path = Path(folder) / LIST
    entries = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return [Task(**{**entry, "targets": tuple(entry["targets"])}) for entry in entries]


def located(task: Task, folder: Path) -> Task:
    """The task where the learner has it now: in cells with its directive, or that define what it asks for.

    Cells may have moved, been split, copied, or lost their directive; the last one counts, as it does when they run.
    """
    try:
        cells = read_notebook(folder / "nbs" / task.notebook)["cells"]
    except (OSError, ValueError, KeyError):  # gone, or not a notebook at the moment: nothing of it can be found
        return replace(task, source="")
    sources = {index: cell_source(cell) for index, cell in enumerate(cells) if cell["cell_type"] == "code"}
    found = [index for index, source in sources.items() if holds(source, task)]
    if not found:
        return replace(task, source="", cell=min(task.cell, len(cells)))
    return replace(task, source="\n".join(sources[index] for index in found), cell=found[-1])


def holds(source: str, task: Task) -> bool:
    """Whether a cell is the task's, or a part of it."""
    directive = DIRECTIVE.search(source)
    if directive:
        return directive["id"] == task.id
    try:
        return bool(EXPORTED.search(source)) and bool(set(task.targets) & set(definitions(source)))
    except TaskError:  # a cell that is not Python, and says of no task
        return False


def tasks_in(path: Path, nbs: Path) -> list[Task]:
    """The tasks of one notebook."""
    cells = read_notebook(path)["cells"]
    sources = [cell_source(cell) if cell["cell_type"] == "code" else "" for cell in cells]
    exported = next((found[1] for found in map(EXPORTED_TO.search, sources) if found), None)
    name, tasks, section = path.relative_to(nbs).as_posix(), [], ""
    for index, source in enumerate(sources):
        if cells[index]["cell_type"] == "markdown":
            section = [section, *HEADING.findall(cell_source(cells[index]))][-1]
        directive = DIRECTIVE.search(source)
        if directive is None:
            continue
        if exported is None:
            raise TaskError(f"a notebook with tasks needs a cell `#| default_exp MODULE`, {name} has none")
        targets = tuple(target for target, _ in task_functions(source, f"{name} task {directive['id']}"))
        tasks.append(Task(directive["id"], name, f"finetune_lib.{exported}", index, targets, source, section))
    return tasks


def task_functions(source: str, where: str = "this cell") -> list[tuple[str, Function]]:
    """The functions of a cell that are the task, as (qualified name, node): those the directive names, or all."""
    directive = DIRECTIVE.search(source)
    names = directive["names"].split() if directive else []
    found = [(name, node) for name, node in definitions(source, where).items() if isinstance(node, Function)]
    missing = set(names) - {node.name for _, node in found}
    if missing:
        raise TaskError(f"{where}: the directive names {', '.join(sorted(missing))}, "
                        f"but the cell defines {', '.join(node.name for _, node in found) or 'no function'}")
    chosen = [(name, node) for name, node in found if not names or node.name in names]
    if not chosen:
        raise TaskError(f"{where}: a task cell must define a function or a class with methods")
    return chosen


def definitions(source: str, where: str = "this cell") -> dict[str, ast.AST]:
    """Functions, classes and methods on the top level of a cell by qualified name."""
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise TaskError(f"{where}: must be plain Python, got {error.msg} in line {error.lineno}") from error
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, *Function.__args__)):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}": inner for inner in node.body if isinstance(inner, Function)}
    return found


def blank(source: str) -> str:
    """The task cell as the learner gets it: each target's code replaced by TODO steps and a NotImplementedError."""
    task_id, comments = DIRECTIVE.search(source)["id"], own_line_comments(source)
    lines = source.splitlines()
    for name, node in reversed(task_functions(source)):  # from the end, so that line numbers above stay true
        first, last = code_range(lines, node)
        indent = " " * (node.col_offset + 4 if is_inline(lines, node) else node.body[0].col_offset)
        message = f"task {task_id}: write {name}; written already? course check {task_id} exports it"
        todo = steps([comments.get(number) for number in range(first + 1, last + 1)])
        head = lines[:first]
        if is_inline(lines, node):
            head[-1] = lines[first - 1][:node.body[0].col_offset].rstrip()
        new = [indent + text for text in todo] + [f'{indent}raise NotImplementedError("{message}")']
        lines = head + new + lines[last:]
    return "\n".join(lines) + ("\n" if source.endswith("\n") else "")


def header_end(lines: list[str], node: Function) -> int:
    """Number of lines up to and including the one where the function's first logical line ends."""
    rest = io.StringIO("\n".join(lines[node.lineno - 1:]) + "\n")
    for token in tokenize.generate_tokens(rest.readline):
        if token.type == tokenize.NEWLINE:
            return node.lineno - 1 + token.start[0]
    raise TaskError(f"the signature of {node.name} does not end")


def is_inline(lines: list[str], node: Function) -> bool:
    """Whether the body stands behind the colon: `def f(x): return x`."""
    return node.body[0].lineno <= header_end(lines, node)


def code_range(lines: list[str], node: Function) -> tuple[int, int]:
    """Lines of a function's code, docstring apart: (lines before it, last line); comments around it included."""
    if is_inline(lines, node):
        return node.body[0].lineno, node.end_lineno
    first, last = header_end(lines, node), node.end_lineno
    if ast.get_docstring(node, clean=False) is not None:
        first = node.body[0].end_lineno
    indent = " " * node.body[0].col_offset
    while last < len(lines) and lines[last].startswith(indent + "#"):
        last += 1
    return first, last


def own_line_comments(source: str) -> dict[int, str]:
    """Comments that have a line for themselves, by line number; text inside strings is no comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source + "\n").readline)
    return {token.start[0]: token.string for token in tokens
            if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#")}


def steps(comments: list[str | None]) -> list[str]:
    """The numbered steps among a body's comments, as TODO comments; comment lines right below a step belong to it."""
    found, open_step = [], False
    for line in comments:
        step = STEP.match(line or "")
        if step:
            found.append(f"# TODO {step[1]}: {step[2]}")
        elif line and open_step:
            found.append(line)
        open_step = bool(step) or (open_step and line is not None)
    return found


def body_lines(source: str) -> list[str]:
    """The lines that blanking takes away: none of them may be seen on the skeleton branch."""
    lines, taken, kept = source.splitlines(), [], set(blank(source).splitlines())
    for _, node in task_functions(source):
        first, last = code_range(lines, node)
        if is_inline(lines, node):
            taken.append(lines[first - 1][node.body[0].col_offset:])
        taken += [line for line in lines[first:last] if line.strip() and not STEP.match(line.strip())]
    return [line for line in taken if line not in kept]


def unmark(source: str) -> str:
    """The cell without its task directive, as the solution branch shows it."""
    return DIRECTIVE.sub("", source, count=1)
