"""The report in other people's formats: Gradescope's results.json and JUnit's XML.

Gradescope: https://gradescope-autograders.readthedocs.io/en/latest/specs/
JUnit: https://github.com/windyroad/JUnit-Schema (Ant), and Jenkins' reading of it, junit-10.xsd of its xunit plug-in.
"""
import re
import socket
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from milestones.checking import ERROR, PASSED, UNATTEMPTED

SAID = ("what", "expected", "got", "reason", "hint")
LONGEST = 2000  # characters of a check's output: a submission decides what stands in it
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
Part = dict[str, Any]


def parts_of(milestone: Part) -> list[Part]:
    """All that gives points in a milestone, in one form: checks, notebooks, result."""
    checks = [{**check, "number": task["task"], "group": f"task {task['task']}", "title": check["claim"]}
              for task in milestone["tasks"] for check in task["checks"]]
    plain = {"hidden": False, "expected": "", "got": "", "reason": "", "hint": ""}
    number = str(milestone["milestone"])
    notebooks = [{**plain, **notebook, "number": number, "group": f"milestone {number}",
                  "title": f"{notebook['notebook']} runs"} for notebook in milestone["notebooks"]]
    result = [{**plain, **milestone["result"], "number": number, "group": f"milestone {number}",
               "title": "your own pipeline's model answers"}] if milestone["result"] else []
    return checks + notebooks + result


def said(part: Part) -> str:
    """What there is to say about a part, in lines."""
    told = [name for name in SAID if part[name] and not (name == "hint" and part["state"] == PASSED)]
    return "\n".join(f"{name}: {part[name]}" for name in told)[:LONGEST] or part["state"]


def to_gradescope(report: Part) -> Part:
    """The whole score, and one entry in `tests` for each thing that gives points; hidden ones show when published."""
    return {
        "score": report["points"],
        "execution_time": report["seconds"],
        "output": f"{report['points']:g} of {report['max_points']:g} points. "
                  f"Graded was {report['graded']['sha256'][:12]}.",
        "output_format": "text",
        "visibility": "visible",
        "stdout_visibility": "hidden",
        "extra_data": {"schema": report["schema"], "graded": report["graded"]["sha256"], "seed": report["seed"],
                       "trouble": report["trouble"], "not_set": report["limits"]["not_set"]},
        "tests": [gradescope_test(part) for milestone in report["milestones"] for part in parts_of(milestone)],
    }


def gradescope_test(part: Part) -> Part:
    return {
        "score": part["points"],
        "max_score": part["max_points"],
        "status": "passed" if part["state"] == PASSED else "failed",
        "name": f"{part['number']} {part['title']}",
        "name_format": "text",
        "number": part["number"],
        "output": said(part),
        "output_format": "text",
        "tags": [part["state"]],
        "visibility": "after_published" if part["hidden"] else "visible",
    }


def to_junit(report: Part) -> str:
    """One suite for each milestone, one case for each thing that gives points; a task not yet written is skipped."""
    root = ElementTree.Element("testsuites")
    for place, milestone in enumerate(report["milestones"]):
        root.append(junit_suite(place, milestone, report))
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode")


def junit_suite(place: int, milestone: Part, report: Part) -> ElementTree.Element:
    """A suite with the attributes and children, in their order, that the schema asks for."""
    parts = [part for part in parts_of(milestone) if not part["hidden"]]  # a build's log is read by everybody
    states = [part["state"] for part in parts]
    skipped, errors = states.count(UNATTEMPTED), states.count(ERROR)
    suite = ElementTree.Element("testsuite", {
        "name": f"milestone {milestone['milestone']}", "package": "course", "id": str(place),
        "timestamp": datetime.fromisoformat(report["time"]).strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": socket.gethostname() or "localhost", "tests": str(len(parts)),
        "failures": str(len(parts) - states.count(PASSED) - skipped - errors), "errors": str(errors),
        "skipped": str(skipped), "time": f"{sum(part['seconds'] for part in parts):.3f}"})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in (("points", f"{milestone['points']:g}"), ("max_points", f"{milestone['max_points']:g}"),
                        ("graded", report["graded"]["sha256"]), ("seed", str(report["seed"]))):
        ElementTree.SubElement(properties, "property", name=name, value=value)
    suite.extend(junit_case(part) for part in parts)
    ElementTree.SubElement(suite, "system-out").text = f"{milestone['points']:g} of {milestone['max_points']:g} points"
    ElementTree.SubElement(suite, "system-err").text = clean("\n".join(report["trouble"]))
    return suite


def junit_case(part: Part) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=clean(f"{part['title']} ({part['points']:g}/{part['max_points']:g})"),
                               classname=clean(part["group"]), time=f"{part['seconds']:.3f}")
    if part["state"] == UNATTEMPTED:
        ElementTree.SubElement(case, "skipped")
    elif part["state"] != PASSED:
        kind = "error" if part["state"] == ERROR else "failure"
        message = clean(part["what"] or part["state"])
        ElementTree.SubElement(case, kind, message=message, type=part["state"]).text = clean(said(part))
    return case


def clean(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return NOT_XML.sub("�", text)
