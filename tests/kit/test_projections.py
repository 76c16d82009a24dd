"""The report in other people's formats holds what their documentation asks for, and nothing that it does not know.

Gradescope: https://gradescope-autograders.readthedocs.io/en/latest/specs/ ("Output format", "Controlling test case
visibility", "Test case status", "Output string formatting"), written as a JSON schema here.
JUnit: https://github.com/windyroad/JUnit-Schema/blob/master/JUnit.xsd (Ant) and
https://github.com/jenkinsci/xunit-plugin, types/model/xsd/junit-10.xsd (Jenkins), written as tables here; what both
allow is asked for.
"""
import json
import re
from xml.etree import ElementTree

import jsonschema
import pytest

from milestones.checking import KIT
from milestones.projections import LONGEST, to_gradescope, to_junit

FORMAT = {"enum": ["text", "html", "simple_format", "md", "ansi"]}
VISIBILITY = {"enum": ["hidden", "after_due_date", "after_published", "visible"]}
NUMBER, TEXT = {"type": "number"}, {"type": "string"}
GRADESCOPE = {
    "type": "object", "additionalProperties": False, "anyOf": [{"required": ["score"]}, {"required": ["tests"]}],
    "properties": {
        "score": NUMBER, "execution_time": NUMBER, "output": TEXT, "output_format": FORMAT,
        "test_output_format": FORMAT, "test_name_format": FORMAT, "visibility": VISIBILITY,
        "stdout_visibility": VISIBILITY, "extra_data": {"type": "object"},
        "tests": {"type": "array", "items": {
            "type": "object", "additionalProperties": False,
            "properties": {
                "score": NUMBER, "max_score": NUMBER, "status": {"enum": ["passed", "failed"]}, "name": TEXT,
                "name_format": FORMAT, "number": TEXT, "output": TEXT, "output_format": FORMAT,
                "tags": {"type": "array", "items": TEXT}, "visibility": VISIBILITY, "extra_data": {"type": "object"}}}},
        "leaderboard": {"type": "array", "items": {
            "type": "object", "additionalProperties": False, "required": ["name", "value"],
            "properties": {"name": TEXT, "value": {"type": ["number", "string"]}, "order": {"enum": ["asc", "desc"]}}}},
    },
}
WHOLE, DECIMAL, ANY = r"\d+", r"\d+(\.\d+)?", r"(?s).+"
SUITE = {"name": ANY, "package": ANY, "id": WHOLE, "hostname": ANY, "tests": WHOLE, "failures": WHOLE, "errors": WHOLE,
         "skipped": WHOLE, "time": DECIMAL, "timestamp": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"}
CASE = {"name": ANY, "classname": ANY, "time": DECIMAL}
PROBLEM = {"message": ANY, "type": ANY}


def check(name, state, points, most, **more):
    return {"name": f"test_{name}", "claim": name.replace("_", " "), "file": "02_lora/checks.py", "hidden": False,
            "state": state, "points": points, "max_points": most, "hint": "look again", "what": "", "expected": "",
            "got": "", "reason": "", "needs": [], "seconds": 0.25, **more}


@pytest.fixture
def report():
    """A report with every state, a hidden check, notebooks, a result, and text that XML cannot hold."""
    checks = [check("right", "passed", 10, 10), check("half", "failed", 0, 20, what="2 < 3 & \x00", got="x" * 9999),
              check("later", "unattempted", 0, 10, what="task 5.2 is not written yet"),
              check("behind", "blocked", 0, 10, what="mend task 5.1 first"),
              check("lost", "error", 0, 10, what="the run gave no results"),
              check("kept", "passed", 5, 5, hidden=True, file="02_lora/checks_hidden_checks.py")]
    task = {"task": "5.1", "title": "pooled", "state": "error", "points": 15, "max_points": 65, "checks": checks}
    notebook = {"notebook": "nbs/a.ipynb", "state": "passed", "points": 2.31, "max_points": 10, "what": "", "cells": 3,
                "ran": 3, "seconds": 4.5}
    result = {"state": "failed", "points": 0, "max_points": 10, "what": "80.0% of …", "score": 0.8, "wanted": 0.9,
              "seconds": 61.2}
    milestone = {"milestone": 5, "points": 17.31, "max_points": 85, "tasks": [task], "notebooks": [notebook],
                 "result": result}
    made = {"schema": "finetune-course/grade/1", "graded": {"sha256": "a" * 64, "notebooks": {}}, "seconds": 70.1,
            "time": "2026-11-21T10:11:12+00:00", "seed": 3, "points": 17.31, "max_points": 85,
            "trouble": ["the run gave no results"], "export_failures": {}, "milestones": [milestone],
            "limits": {"seconds": 20, "start": 60, "memory": 2**32, "not_set": ["network"]}}
    jsonschema.validate(made, json.loads((KIT / "grade.schema.json").read_text(encoding="utf-8")))
    return made


def test_the_published_schema_is_a_schema_and_refuses_an_unknown_field(report):
    schema = json.loads((KIT / "grade.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$id"].endswith(report["schema"].rpartition("/")[2])
    for place in (report, report["milestones"][0], report["milestones"][0]["tasks"][0]["checks"][0]):
        place["more"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(report, schema)
        del place["more"]


def test_gradescope_gets_the_fields_that_it_documents(report):
    made = to_gradescope(report)
    jsonschema.validate(json.loads(json.dumps(made)), GRADESCOPE)
    assert made["score"] == 17.31 == round(sum(test["score"] for test in made["tests"]), 2)
    assert sum(test["max_score"] for test in made["tests"]) == report["max_points"]
    assert [test["status"] for test in made["tests"]] == ["passed", *["failed"] * 4, "passed", "passed", "failed"]
    assert made["tests"][0]["name"] == "5.1 right" and made["tests"][6]["name"] == "5 nbs/a.ipynb runs"


def test_gradescope_shows_hidden_checks_when_grades_are_published_and_no_endless_text(report):
    tests = to_gradescope(report)["tests"]
    assert [test["visibility"] for test in tests].count("after_published") == 1
    assert tests[5]["visibility"] == "after_published" and len(tests[1]["output"]) == LONGEST


def test_junit_has_the_elements_and_attributes_of_ants_schema_in_their_order(report):
    root = ElementTree.fromstring(to_junit(report))
    assert root.tag == "testsuites" and not root.attrib
    for place, suite in enumerate(root):
        assert suite.tag == "testsuite" and suite.get("id") == str(place)
        assert_attributes(suite, SUITE)
        kinds = [child.tag for child in suite]
        assert kinds == ["properties", *["testcase"] * (len(kinds) - 3), "system-out", "system-err"]
        for entry in suite.find("properties"):
            assert_attributes(entry, {"name": ANY, "value": r"(?s).*"})
        for case in suite.iter("testcase"):
            assert_attributes(case, CASE)
            assert len(case) <= 1 and {child.tag for child in case} <= {"skipped", "error", "failure"}
            for problem in [*case.iter("error"), *case.iter("failure")]:
                assert_attributes(problem, PROBLEM)


def assert_attributes(element, wanted):
    assert set(element.attrib) == set(wanted), element.attrib
    for name, pattern in wanted.items():
        assert re.fullmatch(pattern, element.get(name)), (name, element.get(name))


def test_junit_counts_each_state_once_and_keeps_hidden_checks_out_of_the_log(report):
    suite = ElementTree.fromstring(to_junit(report))[0]
    counted = {name: int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped")}
    assert counted == {"tests": 7, "failures": 3, "errors": 1, "skipped": 1}
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert counted[name] == len(list(suite.iter(tag)))
    assert [problem.get("type") for problem in suite.iter("failure")] == ["failed", "blocked", "failed"]
    assert "kept" not in ElementTree.tostring(suite, encoding="unicode")
