"""What gives points beside the checks: notebooks that run, and in milestone 5 the model that comes out.

The checks of a milestone and these make 100 points together; `course check` skips these, since they take minutes.
"""
from typing import Any

from milestones.showing import MARKS, STYLES

FULL = 100  # points of a milestone
NOTEBOOKS = 10  # of them for notebooks that run, in every milestone
RESULT = {5: 10}  # of them for the result, by milestone

SCORE = 0.9  # exact match on the held-out instructions that the result must reach; data/README.md has what is usual


def points_beside_checks(milestone: int) -> dict[str, int]:
    """Points of a milestone that no check gives: {"notebooks": 10}, and in milestone 5 {"result": 10} too."""
    return {"notebooks": NOTEBOOKS} | ({"result": RESULT[milestone]} if milestone in RESULT else {})


def points_of_checks(milestone: int) -> int:
    """What the checks of a milestone have to make."""
    return FULL - sum(points_beside_checks(milestone).values())


def shared_out(points: int, parts: int) -> list[int]:
    """Whole points for each of some parts; the first ones get what does not go evenly."""
    each, rest = divmod(points, parts)
    return [each + (place < rest) for place in range(parts)]


def beside_table(report: dict[str, Any]) -> Any:
    """A rich table of what a report says about notebooks and result."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("milestone", "beside the checks", "state", "points", "what", box=None, header_style="bold")
    for milestone in report["milestones"]:
        result = [{**milestone["result"], "notebook": "your own pipeline's model"}] if milestone["result"] else []
        for part in [*milestone["notebooks"], *result]:
            style, mark = STYLES[part["state"]], MARKS[part["state"]]
            table.add_row(str(milestone["milestone"]), part["notebook"], f"[{style}]{mark} {part['state']}[/]",
                          f"{part['points']:g}/{part['max_points']:g}", escape(part["what"]))
    return table
