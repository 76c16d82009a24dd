"""The audit's table: of each task and measure how many came out as they should. For the eye, and for AUDIT.md."""

import re

from milestones.audit import MEASURES, Audit, Row
from milestones.showing import points

HEAD = """# The grader, measured

Written by `course audit --markdown milestones/AUDIT.md`; a number behind `audit` renews that milestone alone.
A cell says how many came out as they should, of how many.

| measure | what is counted |
|---|---|
| solution | checks that the solution passes, on five seeds |
| skeleton | checks that are unattempted where nothing is written |
| opening | notebooks that run up to their first task |
| blanked | this task alone taken away fails a check of its own, and none of an earlier task |
| mutants | known mistakes that the named check refuses |
| hints | those of them where the promised words show |
| reasons | those of them where the likely reason is the right one |
| alternatives | other right ways that pass every check |
| tolerances | checks that refuse zeros, 5 % more, the other sign, rows for columns |
"""
SECTION = re.compile(r"^## Milestone (\d+)\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def cells_of(row: Row) -> list[str]:
    return [f"{right}/{every}" if every else "·" for right, every in row.counts.values()]


def matrix(done: Audit) -> object:
    """The table for the command line; what is not whole is red."""
    from rich.table import Table

    table = Table("task", "what", "points", *MEASURES, box=None, header_style="bold")
    for row in done.rows.values():
        cells = [text if right == every else f"[red]{text}[/]"
                 for text, (right, every) in zip(cells_of(row), row.counts.values(), strict=True)]
        table.add_row(row.task.id, row.task.title, points(row.points), *cells)
    return table


def sections(done: Audit) -> dict[int, str]:
    """The audit in Markdown, by milestone. The same audit gives the same text anywhere."""
    made = {}
    for milestone in done.milestones:
        rows = [row for row in done.rows.values() if row.task.milestone == milestone]
        lines = [f"## Milestone {milestone}", "", f"| task | what | points | {' | '.join(MEASURES)} |",
                 "|---" * (3 + len(MEASURES)) + "|"]
        lines += [f"| {row.task.id} | {row.task.title} | {points(row.points)} | {' | '.join(cells_of(row))} |"
                  for row in rows]
        own = {check.name: check for check in done.checks if check.task in {row.task.id for row in rows}}
        spared = [f"- `{name}`: {', '.join(done.numberless[name])}" for name in own if name in done.numberless]
        if spared:
            lines += ["", "Not about numbers, so that these changes pass:", "", *spared]
        made[milestone] = "\n".join(lines) + "\n"
    return made


def audit_page(done: Audit, before: str = "") -> str:
    """AUDIT.md: the milestones of this audit, and the others as they stood."""
    stood = {int(found[1]): found[0].rstrip() + "\n" for found in SECTION.finditer(before)}
    return "\n".join([HEAD, *(text for _, text in sorted((stood | sections(done)).items()))])
