"""Learners: start, next, check, hint, catch-up, progress, grade, update. Authors: branches, audit."""

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from milestones.branches import KINDS, BranchError, build
from milestones.checking import KIT
from milestones.exporting import ExportFailure
from milestones.learning import CourseError
from milestones.live import course_folder
from milestones.tasks import LIST, TaskError, find_tasks

EXPECTED = (CourseError, TaskError, BranchError, ExportFailure, PermissionError)  # told in a line, without a traceback


class Course(typer.core.TyperGroup):
    """All commands; what a person can mend is told as a sentence."""

    def invoke(self, context):
        try:
            return super().invoke(context)
        except EXPECTED as error:
            stop(str(error))


app = typer.Typer(
    cls=Course, help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
)
console = Console(highlight=False)
if not console.is_terminal:
    console.width = 160  # a file or a pipe: tables whole, whatever the terminal around it
Choice = Annotated[str, typer.Argument(help="a milestone (2) or a task (2.3); all when left out")]
Folder = Annotated[
    Path | None, typer.Option("--folder", help="the course's folder; the one you stand in when left out")
]
Json = Annotated[Path | None, typer.Option("--json", help="write the report to this file")]


def here(folder: Path | None) -> Path:
    found = folder or course_folder()
    if found is None or not (found / "nbs").is_dir():
        stop(
            f"{folder or Path.cwd()} holds no notebooks of the course; go to your folder, or make one: course start DIR"
        )
    return found


def stop(message: str, code: int = 2) -> None:
    console.print(message, style="red", markup=False)
    raise typer.Exit(code)


def work_folder(folder: Path | None) -> Path:
    """Where a learner works: a folder whose tasks were handed out, which main is not."""
    place = here(folder)
    if not (place / LIST).is_file():
        stop(f"{place} is the course itself, not a work folder; make one: course start DIR")
    return place


@app.command()
def start(
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    milestone: Annotated[int, typer.Option(help="begin here: earlier milestones come solved")] = 1,
) -> None:
    """Make a work folder of your own."""
    from milestones.learning import next_task
    from milestones.starting import start as make

    made = make(folder, milestone)
    task, _ = next_task(made)
    place = shlex.quote(str(made))
    console.print(f"{made} is ready: a git repository of your own.\n\n  cd {place}\n  source .venv/bin/activate\n"
                  f"  jupyter lab nbs/{task.notebook if milestone > 1 else '00_start.ipynb'}\n", markup=False,
                  soft_wrap=True)
    console.print(f"Your first task is {task.id}: {task.title}, in nbs/{task.notebook}. In the notebook, "
                  f'check("{task.id}") judges it; here, course check {task.id}.', markup=False)


@app.command()
def update(folder: Annotated[Path, typer.Argument(help="a work folder")] = Path()) -> None:
    """Renew kit, data and environment of a work folder, as after it was moved or cloned; notebooks are not touched."""
    from milestones.starting import update as renew

    aside = renew(folder)
    console.print(f"kit, data and environment are new; the kit as it was is in {aside}", markup=False, soft_wrap=True)


@app.command(name="next")
def next_(folder: Folder = None) -> None:
    """Show the next open task."""
    from milestones.learning import next_task

    task, why = next_task(here(folder))
    console.print(
        f"{task.id}  {task.title}  in nbs/{task.notebook}, “{task.section}”: {why}"
        if task
        else "every task is written, and none is known to be wrong: course grade",
        markup=False,
    )


@app.command()
def check(choice: Choice = "", folder: Folder = None) -> None:
    """Run the checks on your notebooks, and say what is wrong."""
    from milestones.exporting import export_apart
    from milestones.learning import keep_results
    from milestones.showing import print_results

    place = here(folder)
    report, results = graded(place, choice, only_checks=True)
    print_results(console, results, find_tasks(place))
    keep_results(place, results)
    if (place / LIST).is_file():  # a learner's folder: later notebooks import what was written
        export_apart(place)
    finish(report)


@app.command()
def hint(task: Annotated[str, typer.Argument(help="as 2.3")], folder: Folder = None) -> None:
    """Give one hint more: three levels, the last is nearly the answer."""
    from milestones.learning import LEVELS
    from milestones.learning import hint as give

    level, text = give(here(folder), task)
    console.print(f"Hint {level} of {LEVELS} for task {task}\n{text}", markup=False)


@app.command(name="catch-up")
def catch_up(milestone: Annotated[int, typer.Argument(help="what comes before it is taken from the reference")],
             folder: Folder = None) -> None:
    """Take the reference for what comes before a milestone; your own notebooks are kept aside."""
    from milestones.learning import catch_up as take

    place = work_folder(folder)
    tasks, aside = take(place, milestone)
    console.print(f"{len(tasks)} tasks before milestone {milestone} are the reference's now. Notebooks that are open "
                  "in JupyterLab: close and open them again.\nYours are kept; to bring them back:\n\n"
                  f"  cp -R {shlex.quote(str(aside))}/nbs/. {shlex.quote(str(place))}/nbs/\n  nbdev-export\n",
                  markup=False, soft_wrap=True)


@app.command()
def progress(folder: Folder = None) -> None:
    """Show all tasks, what was last found, and draw it."""
    from milestones.learning import is_open, last_results
    from milestones.showing import draw_progress, task_table

    place = here(folder)
    tasks, results = find_tasks(place), last_results(place)
    console.print(task_table(tasks, results, {task.id for task in tasks if is_open(task)}))
    picture = draw_progress(tasks, results, place / ".work/progress.png")
    console.print(f"picture: {picture}", markup=False, soft_wrap=True)


@app.command()
def grade(choice: Choice = "", folder: Folder = None, json_file: Json = None,
          gradescope: Annotated[Path | None, typer.Option(help="write Gradescope's results.json")] = None,
          junit: Annotated[Path | None, typer.Option(help="write JUnit XML")] = None,
          every: Annotated[Path | None, typer.Option("--all", help="grade each submission in this folder")] = None,
          csv: Annotated[Path | None, typer.Option(help="with --all: the table; rows in it are kept")] = None,
          jobs: Annotated[int, typer.Option(min=1, help="with --all: how many at a time")] = 2,
          hidden: Annotated[Path | None, typer.Option(help="a folder of checks that you keep")] = None,
          seed: Annotated[int | None, typer.Option(min=0, help="of a report, to draw the same values again")] = None,
          only_checks: Annotated[bool, typer.Option("--only-checks", help="not the notebooks' run, nor the result")]
          = False,
          whole: Annotated[bool, typer.Option("--whole", help="run notebooks to their last cell")] = False) -> None:
    """Grade the notebooks in a fresh process, with points; exit 0 only when all points are there."""
    from milestones.beside import beside_table
    from milestones.learning import keep_results
    from milestones.projections import to_gradescope, to_junit
    from milestones.showing import task_table

    options = {"hidden": hidden, "seed": seed, "only_checks": only_checks, "whole": whole}
    if every:
        return grade_class(every, csv, choice, jobs, json_file, options)
    place = here(folder)
    report, results = graded(place, choice, **options)
    keep_results(place, [result for result in results if "checks_hidden_" not in result.check.file])
    ids = {result.check.task for result in results}
    console.print(task_table([task for task in find_tasks(KIT.parent) if task.id in ids], results))
    if not only_checks and "." not in choice:
        console.print(beside_table(report))
    write(json_file, json.dumps(report, indent=1))
    write(gradescope, json.dumps(to_gradescope(report), indent=1))
    write(junit, to_junit(report))
    for what in report["trouble"]:
        console.print(f"trouble: {what}", style="red", markup=False)
    if report["limits"]["not_set"]:
        console.print(f"not limited on this machine: {', '.join(report['limits']['not_set'])}", style="dim")
    finish(report)


def grade_class(folder: Path, table: Path | None, choice: str, jobs: int, reports: Path | None, options: dict) -> None:
    """`course grade --all`: a line for each submission as it is done, and the table."""
    from milestones.classroom import SubmissionError, grade_all

    if not folder.is_dir() or table is None:
        stop("a class is graded so: course grade 2 --all FOLDER --csv FILE; the folder holds one folder a submission")

    def keep(name: str, report: dict) -> None:
        if reports:
            reports.mkdir(parents=True, exist_ok=True)
            (reports / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    def say(row: dict) -> None:
        same = f", the same as {row['same_as']}" if row["same_as"] else ""
        console.print(f"{row['name']}: {row['points']} of {row['max_points'] or '?'} points, {row['state']}{same}"
                      f"{'; ' if row['trouble'] else ''}{row['trouble']}", markup=False, soft_wrap=True)

    try:
        rows = grade_all(folder, table, choice, jobs, keep=keep, say=say, **options)
    except SubmissionError as error:
        stop(str(error))
    console.print(f"{len(rows)} submissions in {table}", markup=False, soft_wrap=True)


def graded(folder: Path, choice: str, **options):
    from milestones.grading import grade, results_in

    try:
        with console.status("exporting your notebooks and running the checks"):
            report = grade(folder, choice, **options)
    except ValueError as error:
        stop(str(error))
    return report, results_in(report)


def finish(report: dict) -> None:
    console.print(f"{report['points']:g} of {report['max_points']:g} points")
    if report["points"] < report["max_points"]:
        raise typer.Exit(1)


def write(path: Path | None, text: str) -> None:
    if path:
        path.write_text(text + "\n", encoding="utf-8")
        console.print(f"wrote {path}", markup=False)


@app.command()
def branches(
    source: Annotated[str, typer.Option(help="the commit of main they are made from")] = "HEAD",
    folder: Folder = None,
) -> None:
    """Build the local branches `skeleton` and `solution`; no work tree is touched."""
    for kind in KINDS:
        made = build(here(folder), kind, source)
        console.print(f"{made.name}: commit {made.commit[:12]}, tree {made.tree[:12]}", markup=False)


@app.command()
def audit(milestone: Annotated[int | None, typer.Argument(help="one milestone; all when left out")] = None,
          folder: Folder = None, json_file: Json = None,
          markdown: Annotated[Path | None, typer.Option(help="write the matrix to this file")] = None) -> None:
    """Measure the grader: solution, skeleton, mutants, alternatives, tolerances; exit 1 on any gap."""
    from milestones.audit import Audit
    from milestones.matrix import audit_page, matrix

    place = here(folder)
    kit = KIT if place.resolve() == KIT.parent else place / "milestones"
    if not any(kit.glob("*/mistakes.py")):
        stop(f"{kit} holds no mistakes.py to audit with: they stay on main; a work folder is judged by course grade")
    done = Audit(place, kit, milestone, say=lambda text: console.print(text, style="dim", markup=False)).run()
    console.print(matrix(done))
    write(json_file, json.dumps(done.to_dict(), indent=1))
    if markdown:
        stood = markdown.read_text(encoding="utf-8") if markdown.exists() else ""
        write(markdown, audit_page(done, stood).rstrip())
    for gap in done.gaps:
        console.print(f"gap: {gap}", style="red", markup=False)
    console.print("no gap" if not done.gaps else f"{len(done.gaps)} gaps", markup=False)
    raise typer.Exit(bool(done.gaps))


def main() -> None:
    app()
