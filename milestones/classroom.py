"""A folder of submissions, graded one by one into a table: written row by row, so that nothing is lost.

A submission is a work folder, a folder or zip that holds one, a folder of single notebooks, or a notebook whose name
ends in that of the course's (`ada-01_adapter.ipynb`); where only some notebooks are handed in, the others are blank.
"""
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from milestones.beside import RESULT
from milestones.checking import ERROR, FAILED, KIT, PASSED, UNATTEMPTED
from milestones.exporting import blank_all
from milestones.grading import fingerprint, grade
from milestones.learning import is_open
from milestones.running import Limits, all_checks
from milestones.tasks import find_tasks, notebook_paths, task_order

UNPACKED = 500 * 2**20  # bytes that a zip may hold
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a cell that begins so
Row = dict[str, Any]


class SubmissionError(ValueError):
    """What was handed in is none of the course's; says what was found."""


@dataclass(frozen=True)
class Submission:
    name: str
    path: Path  # as it was handed in
    sha256: str = ""  # of its notebooks; empty where it cannot be read
    trouble: str = ""  # why not


def grade_all(
    folder: Path,  # holds the submissions
    table: Path,  # the CSV; rows that stand there are not graded again
    choice: str = "",  # a milestone, a task, or everything
    jobs: int = 2,
    kit: Path = KIT,
    keep: Callable[[str, dict[str, Any]], None] = lambda name, report: None,  # is given each report
    say: Callable[[Row], None] = lambda row: None,  # is given each row as it is written
    **options: Any,  # of grade: seed, only_checks, hidden, whole
) -> list[Row]:
    """Grade all submissions of a folder; returns the table's rows, by name. What is broken is a row like the others."""
    found = [looked_at(path, kit) for path in sorted(folder.iterdir()) if is_submission(path)]
    if not found:
        raise SubmissionError(f"{folder} holds no submissions: folders, zip files or notebooks")
    fields = columns(kit, choice, options)
    rows = {row["name"]: row for row in rows_in(table, fields)}
    kept = {one.name: rows[one.name] for one in found
            if one.name in rows and rows[one.name]["sha256"] == one.sha256 != "" and rows[one.name]["state"] != ERROR}
    write_rows(table, fields, kept.values())
    twins = {one.name: [other.name for other in found if other.sha256 == one.sha256 != "" and other != one]
             for one in found}
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        for row in graded_rows([one for one in found if one.name not in kept], choice, kit, jobs, options, keep):
            row |= {"same_as": " ".join(twins[row["name"]])}
            kept[row["name"]] = {key: harmless(row.get(key, "")) for key in fields}
            writer.writerow(kept[row["name"]])
            file.flush()
            say(kept[row["name"]])
    ordered = [kept[one.name] for one in found]
    write_rows(table, fields, ordered)
    return ordered


def is_submission(path: Path) -> bool:
    return not path.name.startswith((".", "__")) and (path.is_dir() or path.suffix in (".zip", ".ipynb"))


def looked_at(path: Path, kit: Path) -> Submission:
    """What was handed in, with the hash of its notebooks; whatever is wrong with it is said, not raised."""
    name = path.name if path.is_dir() else path.stem
    with tempfile.TemporaryDirectory(prefix="course-look-") as place:
        try:
            return Submission(name, path, fingerprint(laid_out(path, Path(place), kit))["sha256"])
        except (SubmissionError, OSError, zipfile.BadZipFile) as error:
            return Submission(name, path, trouble=str(error))


def laid_out(path: Path, place: Path, kit: Path) -> Path:
    """The folder with `nbs` of what was handed in, made in `place` where it comes as something else."""
    if path.suffix == ".zip" and path.is_file():
        path = unpacked(path, place / "zip")
    if path.is_dir():
        inner = [path, *sorted(child for child in path.iterdir() if child.is_dir())]
        if holding := next((folder for folder in inner if (folder / "nbs").is_dir()), None):
            return holding
    notebooks = [path] if path.is_file() else sorted(path.rglob("*.ipynb"))
    return among_blank(notebooks, place / "course", kit)


def unpacked(path: Path, place: Path) -> Path:
    """A zip's files; `zipfile` keeps them inside `place`, whatever their names say."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
        if size > UNPACKED:
            raise SubmissionError(f"a zip may hold {UNPACKED >> 20} MiB, {path.name} holds {size >> 20}")
        archive.extractall(place)
    return place


def among_blank(notebooks: list[Path], course: Path, kit: Path) -> Path:
    """Single notebooks among the course's own, in which every task is blank."""
    known = {path.name: path.relative_to(kit.parent / "nbs") for path in notebook_paths(kit.parent)}
    placed = {known[name]: path for path in notebooks for name in known if path.name.endswith(name)}
    if not placed:
        raise SubmissionError("it holds no nbs/ and no notebook that is named as one of the course's")
    shutil.copytree(kit.parent / "nbs", course / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    blank_all(course, [task for task in find_tasks(course) if not is_open(task)])
    for name, path in placed.items():
        shutil.copyfile(path, course / "nbs" / name)
    return course


def graded_rows(submissions: list[Submission], choice: str, kit: Path, jobs: int, options: dict[str, Any],
                keep: Callable[[str, dict[str, Any]], None]) -> Iterator[Row]:
    """A row for each, as they come; of equal submissions one is graded."""
    groups: dict[str, list[Submission]] = {}
    for one in submissions:
        groups.setdefault(one.sha256 or one.name, []).append(one)
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(graded, group[0], choice, kit, options): group for group in groups.values()}
        for done in as_completed(running):
            report, trouble = done.result()
            for one in running[done]:
                if report:
                    keep(one.name, report)
                yield row_of(one, report, trouble)


def graded(one: Submission, choice: str, kit: Path, options: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """(report, "") or (None, what went wrong): in a process of its own, whose end ends no other."""
    if one.trouble:
        return None, one.trouble
    request = {"path": str(one.path), "choice": choice, "kit": str(kit), "options": plain(options)}
    places = [str(KIT.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # never the kit of the folder we stand in
    done = subprocess.run([sys.executable, "-P", "-m", "milestones.classroom"], input=json.dumps(request), text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(places)})
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or [f"grading left with exit code {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1]), ""


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `grade` as JSON holds them."""
    told = {name: asdict(value) if name == "limits" else value for name, value in options.items()}
    return {name: str(value.resolve()) if isinstance(value, Path) else value for name, value in told.items()}


def main() -> None:
    """The process of one submission: a request on its standard input, the report on its standard output."""
    request = json.load(sys.stdin)
    kit, options = Path(request["kit"]), request["options"]
    if options.get("hidden"):
        options["hidden"] = Path(options["hidden"])
    if "limits" in options:
        options["limits"] = Limits(**options["limits"])
    with tempfile.TemporaryDirectory(prefix="course-submission-") as place:
        report = grade(laid_out(Path(request["path"]), Path(place), kit), request["choice"], kit, **options)
    sys.stdout.write(json.dumps(report) + "\n")


def columns(kit: Path, choice: str, options: dict[str, Any]) -> list[str]:
    """The table's head: points of milestones and tasks beside what says who, what and how."""
    tasks = sorted({check.task for check in all_checks(kit, choice)}, key=task_order)
    if not tasks:
        raise SubmissionError(f"there are no checks for {choice or 'any milestone'!r}")
    points = []
    for number in dict.fromkeys(task.split(".")[0] for task in tasks):
        points += [f"milestone {number}", *(task for task in tasks if task.split(".")[0] == number)]
        if "." not in choice and not options.get("only_checks"):
            points += [f"notebooks {number}", *([f"result {number}"] if int(number) in RESULT else [])]
    return ["name", "state", "points", "max_points", *points, "trouble", "same_as", "seconds", "sha256"]


def row_of(one: Submission, report: dict[str, Any] | None, trouble: str) -> Row:
    if report is None:
        return {"name": one.name, "state": ERROR, "points": 0, "trouble": trouble, "sha256": one.sha256}
    row = {name: report[name] for name in ("points", "max_points", "seconds")}
    for milestone in report["milestones"]:
        number = milestone["milestone"]
        row |= {f"milestone {number}": milestone["points"]}
        row |= {task["task"]: task["points"] for task in milestone["tasks"]}
        row |= {f"notebooks {number}": round(sum(part["points"] for part in milestone["notebooks"]), 2)}
        row |= {f"result {number}": (milestone["result"] or {}).get("points", "")}
    return row | {"name": one.name, "state": state_of_all(report), "trouble": "; ".join(report["trouble"]),
                  "sha256": one.sha256}


def state_of_all(report: dict[str, Any]) -> str:
    """passed with all points, unattempted where nothing is written, error where no check gave a result, else failed."""
    states = {check["state"] for milestone in report["milestones"] for task in milestone["tasks"]
              for check in task["checks"]}
    if report["points"] == report["max_points"]:
        return PASSED
    return next((state for state in (UNATTEMPTED, ERROR) if states == {state}), FAILED)


def rows_in(table: Path, fields: list[str]) -> list[Row]:
    """The rows of an earlier run of the same kind; a line that was cut off is none."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if None not in row and None not in row.values()]
        if reader.fieldnames and reader.fieldnames != fields:
            raise SubmissionError(f"{table} holds a table of other columns; name a new file, or move that one away")
    return rows


def write_rows(table: Path, fields: list[str], rows: Iterable[Row]) -> None:
    """Write the whole table beside the old one, then put it in its place."""
    part = table.with_name(table.name + ".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(rows)
    part.replace(table)


def harmless(value: Any) -> str:
    """A cell's text on one line; one that a spreadsheet would compute begins with an apostrophe."""
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return f"'{text}" if text.startswith(FORMULA) else text


if __name__ == "__main__":
    main()
