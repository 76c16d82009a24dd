"""Learners: start, next, check, hint, catch-up, progress, grade. Authors: branches, audit."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from milestones.branches import KINDS, BranchError, build
from milestones.checking import KIT, PASSED
from milestones.live import course_folder

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
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


@app.command()
def start(
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    milestone: Annotated[int, typer.Option(help="begin here: earlier milestones come solved")] = 1,
) -> None:
    """Make a work folder of your own."""
    from milestones.learning import CourseError, next_task
    from milestones.learning import start as make

    try:
        made = make(folder, milestone)
    except CourseError as error:
        stop(str(error))
    task = next_task(made)
    console.print(f"{made} is ready: a git repository of your own.\n\n  source {made}/.venv/bin/activate\n"
                  f"  cd {made}\n  python -m jupyter lab nbs/{task.notebook if task else ''}\n", markup=False)
    if task:
        console.print(
            f'Your first task is {task.id}: {task.title}. In the notebook, check("{task.id}") judges it.', markup=False
        )


@app.command(name="next")
def next_(folder: Folder = None) -> None:
    """Show the next open task."""
    from milestones.learning import next_task

    task = next_task(here(folder))
    console.print(
        f"{task.id}  {task.title}  in nbs/{task.notebook}"
        if task
        else "every task is written, and none is known to be wrong: course grade",
        markup=False,
    )


@app.command()
def check(choice: Choice = "", folder: Folder = None) -> None:
    """Run the checks on your notebooks, and say what is wrong."""
    from milestones.learning import keep_results
    from milestones.showing import print_results

    report, results = graded(here(folder), choice)
    print_results(console, results)
    keep_results(here(folder), results)
    finish(report, results)


@app.command()
def hint(task: Annotated[str, typer.Argument(help="as 2.3")], folder: Folder = None) -> None:
    """Give one hint more: three levels, the last is nearly the answer."""
    from milestones.learning import CourseError
    from milestones.learning import hint as give

    try:
        level, text = give(here(folder), task)
    except CourseError as error:
        stop(str(error))
    console.print(f"Hint {level} of 3 for task {task}\n{text}", markup=False)


@app.command(name="catch-up")
def catch_up(milestone: Annotated[int, typer.Argument(help="what comes before it is taken from the reference")],
             folder: Folder = None) -> None:
    """Take the reference for what comes before a milestone; your own notebooks are kept aside."""
    from milestones.learning import CourseError
    from milestones.learning import catch_up as take

    if here(folder).resolve() == KIT.parent and not (here(folder) / ".work/course.json").exists():
        stop("this is the course itself, not a work folder; make one: course start DIR")
    try:
        tasks, aside = take(here(folder), milestone)
    except CourseError as error:
        stop(str(error))
    console.print(
        f"{len(tasks)} tasks before milestone {milestone} are the reference's now; yours are in {aside}", markup=False
    )


@app.command()
def progress(folder: Folder = None) -> None:
    """Show all tasks, what was last found, and draw it."""
    from milestones.learning import is_open, last_results
    from milestones.showing import draw_progress, task_table
    from milestones.tasks import find_tasks

    place = here(folder)
    tasks, results = find_tasks(place), last_results(place)
    console.print(task_table(tasks, results, {task.id for task in tasks if is_open(task.source)}))
    console.print(f"picture: {draw_progress(tasks, results, place / '.work/progress.png')}", markup=False)


@app.command()
def grade(choice: Choice = "", folder: Folder = None, json_file: Json = None,
          gradescope: Annotated[Path | None, typer.Option(help="write Gradescope's results.json")] = None,
          junit: Annotated[Path | None, typer.Option(help="write JUnit XML")] = None) -> None:
    """Grade the notebooks in a fresh process, with points; exit 0 only when all points are there."""
    from milestones.learning import keep_results
    from milestones.projections import to_gradescope, to_junit
    from milestones.showing import task_table
    from milestones.tasks import find_tasks

    report, results = graded(here(folder), choice)
    keep_results(here(folder), results)
    ids = {result.check.task for result in results}
    console.print(task_table([task for task in find_tasks(KIT.parent) if task.id in ids], results))
    write(json_file, json.dumps(report, indent=1))
    write(gradescope, json.dumps(to_gradescope(report), indent=1))
    write(junit, to_junit(report))
    if report["limits"]["not_set"]:
        console.print(f"not limited on this machine: {', '.join(report['limits']['not_set'])}", style="dim")
    finish(report, results)


def graded(folder: Path, choice: str):
    from milestones.grading import grade, results_in

    try:
        with console.status("exporting your notebooks and running the checks"):
            report = grade(folder, choice)
    except ValueError as error:
        stop(str(error))
    return report, results_in(report)


def finish(report: dict, results: list) -> None:
    console.print(f"{report['points']:g} of {report['max_points']:g} points")
    if any(result.state != PASSED for result in results):
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
        try:
            made = build(here(folder), kind, source)
        except BranchError as error:
            stop(str(error), 1)
        console.print(f"{made.name}: commit {made.commit[:12]}, tree {made.tree[:12]}", markup=False)


@app.command()
def audit(milestone: Annotated[int | None, typer.Argument(help="one milestone; all when left out")] = None,
          folder: Folder = None, json_file: Json = None,
          markdown: Annotated[Path | None, typer.Option(help="write the matrix to this file")] = None) -> None:
    """Measure the grader: solution, skeleton, mutants, alternatives, tolerances; exit 1 on any gap."""
    from milestones.audit import Audit
    from milestones.showing import matrix, matrix_markdown

    done = Audit(here(folder), KIT, milestone, say=lambda text: console.print(text, style="dim", markup=False)).run()
    console.print(matrix(done.rows.values()))
    write(json_file, json.dumps(done.to_dict(), indent=1))
    write(markdown, matrix_markdown(done.rows.values()))
    for gap in done.gaps:
        console.print(f"gap: {gap}", style="red", markup=False)
    console.print("no gap" if not done.gaps else f"{len(done.gaps)} gaps", markup=False)
    raise typer.Exit(bool(done.gaps))


def main() -> None:
    app()
