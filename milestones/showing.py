"""What a learner sees of checks: in a notebook as HTML, elsewhere as text, on the command line as a table."""
import html
from dataclasses import dataclass, field
from pathlib import Path

from milestones.checking import BLOCKED, ERROR, FAILED, PASSED, UNATTEMPTED, CheckResult
from milestones.tasks import Task

MARKS = {PASSED: "✓", FAILED: "✗", UNATTEMPTED: "○", BLOCKED: "↑", ERROR: "!"}
STYLES = {PASSED: "green", FAILED: "red", UNATTEMPTED: "dim", BLOCKED: "yellow", ERROR: "magenta"}
COLORS = {PASSED: "#1a7f37", FAILED: "#c62828", UNATTEMPTED: "#6e6e6e", BLOCKED: "#9a6700", ERROR: "#8e24aa"}
WORST = (ERROR, FAILED, BLOCKED, UNATTEMPTED, PASSED)


def explain(result: CheckResult) -> list[tuple[str, str]]:
    """What there is to say about a result that is not a pass, as (label, text)."""
    hint = result.check.hint if result.state == FAILED else ""
    rows = [("", result.what), ("expected", result.expected), ("got", result.got),
            ("likely reason", result.reason), ("hint", hint)]
    return [(label, text) for label, text in rows if text]


def state_of(results: list[CheckResult]) -> str:
    """The state of a task: that of its worst check."""
    states = {result.state for result in results}
    return next((state for state in WORST if state in states), UNATTEMPTED)


def points(value: float) -> str:
    return f"{value:g}"


@dataclass
class Verdict:
    """What `check("2.3")` returns; a notebook shows it in color."""

    task: str
    results: list[CheckResult] = field(default_factory=list)
    note: str = ""  # why nothing was checked
    read: str = ""  # where the task is explained

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.state == PASSED for result in self.results)

    @property
    def title(self) -> str:
        return f"Task {self.task}: {found(self.results) if self.results else self.note}"

    @property
    def advice(self) -> list[tuple[str, str]]:
        """What to do next where something is not right, as (label, text)."""
        if state_of(self.results) not in (FAILED, ERROR):
            return []
        return [("read", self.read)] * bool(self.read) + [("stuck?", f"course hint {self.task}")]

    def __repr__(self) -> str:
        lines = [self.title]
        for result in self.results:
            lines.append(f"  {MARKS[result.state]} {result.check.claim}")
            if result.state not in (PASSED, UNATTEMPTED):
                lines += [f"      {labelled(label, text)}" for label, text in explain(result)]
        return "\n".join(lines + [f"  {labelled(label, text)}" for label, text in self.advice])

    def _repr_html_(self) -> str:
        color = COLORS[state_of(self.results)]
        rows = "".join(self.row(result) for result in self.results)
        advice = "".join(labelled_html(label, text) for label, text in self.advice)
        return (f'<div style="border-left:4px solid {color};padding:2px 10px">'
                f'<b style="color:{color}">{html.escape(self.title)}</b>{rows}{advice}</div>')

    def row(self, result: CheckResult) -> str:
        color = COLORS[result.state]
        head = f'<span style="color:{color}">{MARKS[result.state]}</span> {html.escape(result.check.claim)}'
        if result.state in (PASSED, UNATTEMPTED):
            return f"<div>{head}</div>"
        said = "".join(labelled_html(label, text) for label, text in explain(result))
        return f'<div>{head}<div style="margin-left:1.6em">{said}</div></div>'


def found(results: list[CheckResult]) -> str:
    """What the checks of one task found, in words: `not yet right, 12 of 31 points`."""
    got, full = sum(result.points for result in results), sum(result.check.points for result in results)
    word = {
        PASSED: "right",
        FAILED: "not yet right",
        UNATTEMPTED: "not written yet",
        BLOCKED: "waits for another task",
    }
    return f"{word.get(state_of(results), 'could not be checked')}, {points(got)} of {points(full)} points"


def labelled(label: str, text: str) -> str:
    return f"{label}: {text}" if label else text


def labelled_html(label: str, text: str) -> str:
    label = f"<i>{html.escape(label)}</i>: " if label else ""
    return f"<div>{label}{html.escape(text)}</div>"


def where_to_read(task: Task | None) -> str:
    """The notebook and the section that explain a task."""
    if task is None:
        return ""
    return f"nbs/{task.notebook}" + (f", “{task.section}”" if task.section else "")


def task_table(tasks: list[Task], results: list[CheckResult], still_open: set[str] = frozenset()):
    """A rich table: each task, its state and points."""
    from rich.table import Table

    table = Table("task", "what", "notebook", "state", "points", box=None, header_style="bold")
    for task in tasks:
        own = [result for result in results if result.check.task == task.id]
        state = UNATTEMPTED if task.id in still_open else state_of(own) if own else "not checked"
        state = state if task.source else "its cell is gone"
        got, full = sum(result.points for result in own), sum(result.check.points for result in own)
        table.add_row(
            task.id,
            task.title,
            task.notebook,
            f"[{STYLES.get(state, 'dim')}]{MARKS.get(state, '·')} {state}[/]",
            f"{points(got)}/{points(full)}" if own else "",
        )
    return table


def draw_progress(tasks: list[Task], results: list[CheckResult], path: Path) -> Path:
    """A picture of points by milestone: what is right, and what there is to get."""
    from matplotlib.figure import Figure

    milestones = sorted({task.milestone for task in tasks})
    by = {
        number: [result for result in results if result.check.task.split(".")[0] == str(number)]
        for number in milestones
    }
    figure = Figure(figsize=(6, 2.5), dpi=80, layout="constrained")
    axes = figure.subplots()
    axes.barh([str(number) for number in milestones], [100] * len(milestones), color="0.9")
    axes.barh(
        [str(number) for number in milestones],
        [sum(result.points for result in by[number]) for number in milestones],
        color="#0072B2",
    )
    axes.set(title="Points by milestone, as last checked", xlabel="points", ylabel="milestone", xlim=(0, 100))
    axes.invert_yaxis()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path)
    return path


def print_results(console, results: list[CheckResult], tasks: list[Task]) -> None:
    """Task by task: what was found, each check in one line, under those that did not pass what is to be said."""
    known = {task.id: task for task in tasks}
    for task_id in dict.fromkeys(result.check.task for result in results):
        own = [result for result in results if result.check.task == task_id]
        state, task = state_of(own), known.get(task_id)
        title = f" {task.title}" if task else ""
        console.print(f"[{STYLES[state]}]{MARKS[state]}[/] [bold]{task_id}[/bold]{title}: {found(own)}")
        for result in own if state != UNATTEMPTED else []:
            print_result(console, result)
        for label, text in Verdict(task_id, own, read=where_to_read(task)).advice:
            print_indented(console, labelled(label, text), 4)


def print_result(console, result: CheckResult) -> None:
    head = f"{MARKS[result.state]} {result.check.claim} ({points(result.points)}/{points(result.check.points)})"
    print_indented(console, head, 2, STYLES[result.state])
    if result.state not in (PASSED, UNATTEMPTED):
        for label, text in explain(result):
            print_indented(console, labelled(label, text), 6)


def print_indented(console, text: str, spaces: int, style: str = "") -> None:
    """A paragraph whose further lines stand under its first."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(text, style), (0, 0, 0, spaces), expand=False))
