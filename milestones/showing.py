"""What a learner sees of checks: in a notebook as HTML, elsewhere as text, on the command line as a table."""
import html
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from milestones.checking import BLOCKED, ERROR, FAILED, PASSED, UNATTEMPTED, CheckResult
from milestones.tasks import Task

MARKS = {PASSED: "✓", FAILED: "✗", UNATTEMPTED: "○", BLOCKED: "⧗", ERROR: "!"}
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

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.state == PASSED for result in self.results)

    @property
    def title(self) -> str:
        if not self.results:
            return f"Task {self.task}: {self.note}"
        state = state_of(self.results)
        got, full = sum(result.points for result in self.results), sum(result.check.points for result in self.results)
        word = {
            PASSED: "right",
            FAILED: "not yet right",
            UNATTEMPTED: "not written yet",
            BLOCKED: "waits for another task",
        }
        return f"Task {self.task}: {word.get(state, 'could not be checked')}, {points(got)} of {points(full)} points"

    def __repr__(self) -> str:
        lines = [self.title]
        for result in self.results:
            lines.append(f"  {MARKS[result.state]} {result.check.claim}")
            if result.state not in (PASSED, UNATTEMPTED):
                lines += [f"      {label + ': ' if label else ''}{text}" for label, text in explain(result)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        color = COLORS[state_of(self.results)]
        rows = "".join(self.row(result) for result in self.results)
        return (f'<div style="border-left:4px solid {color};padding:2px 10px">'
                f'<b style="color:{color}">{html.escape(self.title)}</b>{rows}</div>')

    def row(self, result: CheckResult) -> str:
        color = COLORS[result.state]
        head = f'<span style="color:{color}">{MARKS[result.state]}</span> {html.escape(result.check.claim)}'
        if result.state in (PASSED, UNATTEMPTED):
            return f"<div>{head}</div>"
        said = "".join(f'<div style="margin-left:1.6em">{f"<i>{label}</i>: " if label else ""}{html.escape(text)}</div>'
                       for label, text in explain(result))
        return f"<div>{head}{said}</div>"


def task_table(tasks: list[Task], results: list[CheckResult], still_open: set[str] = frozenset()):
    """A rich table: each task, its state and points."""
    from rich.table import Table

    table = Table("task", "what", "notebook", "state", "points", box=None, header_style="bold")
    for task in tasks:
        own = [result for result in results if result.check.task == task.id]
        state = UNATTEMPTED if task.id in still_open else state_of(own) if own else "not checked"
        got, full = sum(result.points for result in own), sum(result.check.points for result in own)
        table.add_row(
            task.id,
            task.title,
            task.notebook,
            f"[{STYLES.get(state, 'dim')}]{MARKS.get(state, '·')} {state}[/]",
            f"{points(got)}/{points(full)}" if own else "",
        )
    return table


def matrix(rows: Iterable) -> object:
    """The audit's table: of each task and measure, how many came out as they should."""
    from rich.table import Table

    rows = list(rows)
    names = list(rows[0].counts) if rows else []
    table = Table("task", "what", "points", *names, box=None, header_style="bold")
    for row in rows:
        cells = [
            f"{'' if right == every else '[red]'}{right}/{every}{'' if right == every else '[/]'}"
            if every
            else "[dim]·[/]"
            for right, every in row.counts.values()
        ]
        table.add_row(row.task.id, row.task.title, points(row.points), *cells)
    return table


def matrix_markdown(rows: Iterable) -> str:
    """The same table for a file."""
    rows = list(rows)
    names = list(rows[0].counts) if rows else []
    lines = ["| task | what | points | " + " | ".join(names) + " |", "|---" * (3 + len(names)) + "|"]
    for row in rows:
        cells = [f"{right}/{every}" if every else "·" for right, every in row.counts.values()]
        lines.append(f"| {row.task.id} | {row.task.title} | {points(row.points)} | {' | '.join(cells)} |")
    return "\n".join(lines)


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


def print_results(console, results: list[CheckResult]) -> None:
    """Each check in one line, and under those that did not pass what is to be said."""
    for result in results:
        style = STYLES[result.state]
        console.print(f"[{style}]{MARKS[result.state]}[/] {result.check.task} ", end="")
        console.print(f"{result.check.claim} ({points(result.points)}/{points(result.check.points)})", markup=False)
        if result.state not in (PASSED, UNATTEMPTED):
            for label, text in explain(result):
                console.print(
                    f"      {label + ': ' if label else ''}{text}",
                    markup=False,
                    style="dim" if label == "hint" else None,
                )
