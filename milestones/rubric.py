"""The rubric of each milestone's README, made from its checks: `python -m milestones.rubric` writes it."""

import sys
from pathlib import Path

from milestones.beside import SCORE, points_beside_checks
from milestones.checking import KIT, collect
from milestones.tasks import Task, find_tasks

BESIDE = {
    "notebooks": "each notebook with tasks runs from its top through its last check, and gives as large a share of its "
                 "points as its tasks got of theirs",
    "result": f"your own pipeline exports a model that answers at least {SCORE:.0%} of the held-out instructions",
}
BEGIN, END = "<!-- rubric: python -m milestones.rubric -->", "<!-- end of rubric -->"


def rubric(tasks: list[Task], kit: Path = KIT) -> str:
    """A table of tasks, what is proven about them, and points."""
    milestone = tasks[0].milestone
    checks = collect(kit, milestone)
    lines = ["| task | you write | in | proven by the checks | points |", "|---|---|---|---|---|"]
    for task in tasks:
        own = [check for check in checks if check.task == task.id]
        claims = "<br>".join(f"{check.claim} ({check.points:g})" for check in own)
        names = ", ".join(f"`{target}`" for target in task.targets)
        lines.append(
            f"| {task.id} | {names} | `nbs/{task.notebook}` | {claims} | {sum(check.points for check in own):g} |"
        )
    lines += [f"| | | {BESIDE[name]} | | {points} |" for name, points in points_beside_checks(milestone).items()]
    return "\n".join(lines)


def with_rubric(text: str, table: str) -> str:
    """The README's text with the table between its marks."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def readmes(folder: Path = KIT.parent, kit: Path = KIT) -> dict[Path, str]:
    """Each milestone's README as it should be."""
    tasks = find_tasks(folder)
    found = {}
    for path in sorted(kit.glob("[0-9][0-9]_*/README.md")):
        own = [task for task in tasks if task.milestone == int(path.parent.name[:2])]
        found[path] = with_rubric(path.read_text(encoding="utf-8"), rubric(own, kit))
    return found


def main() -> None:
    for path, text in readmes().items():
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path.relative_to(KIT.parent)}\n")


if __name__ == "__main__":
    main()
