"""The report in other people's formats: Gradescope's results.json and JUnit's XML."""
from typing import Any
from xml.etree import ElementTree

from milestones.checking import ERROR, PASSED

SAID = ("what", "expected", "got", "reason")


def checks_of(report: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [
        (task, check) for milestone in report["milestones"] for task in milestone["tasks"] for check in task["checks"]
    ]


def said(check: dict[str, Any]) -> str:
    return "\n".join(f"{label}: {check[label]}" for label in SAID if check[label])


def to_gradescope(report: dict[str, Any]) -> dict[str, Any]:
    """`score`, and one entry in `tests` for each check."""
    tests = [{"name": f"{task['task']} {check['check']['name']}", "number": task["task"], "score": check["points"],
              "max_score": check["max_points"], "status": "passed" if check["state"] == PASSED else "failed",
              "output": said(check) or check["state"]} for task, check in checks_of(report)]
    return {
        "score": report["points"],
        "output": f"{report['points']:g} of {report['max_points']:g} points",
        "tests": tests,
    }


def to_junit(report: dict[str, Any]) -> str:
    """One suite for each milestone, one case for each check."""
    root = ElementTree.Element("testsuites", name="course")
    for milestone in report["milestones"]:
        pairs = [(task, check) for task in milestone["tasks"] for check in task["checks"]]
        failed = sum(check["state"] not in (PASSED, ERROR) for _, check in pairs)
        errors = sum(check["state"] == ERROR for _, check in pairs)
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"milestone {milestone['milestone']}",
            tests=str(len(pairs)),
            failures=str(failed),
            errors=str(errors),
        )
        for task, check in pairs:
            case = ElementTree.SubElement(
                suite,
                "testcase",
                classname=f"task {task['task']}",
                name=check["check"]["name"],
                time=f"{check['seconds']:.3f}",
            )
            if check["state"] != PASSED:
                kind = "error" if check["state"] == ERROR else "failure"
                ElementTree.SubElement(
                    case, kind, message=check["what"] or check["state"], type=check["state"]
                ).text = said(check)
    return ElementTree.tostring(root, encoding="unicode")
