"""The kit goes first, and `--minutes` ends a run with a table of seconds for each folder of tests and each notebook."""
from collections import Counter
from pathlib import PurePosixPath

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", action="store_true", help="end with a table of where the minutes went")


def group(nodeid: str) -> str:
    """The row of a test: its folder under tests/, or its notebook."""
    path = PurePosixPath(nodeid.split("::")[0])
    return str(path if path.suffix == ".ipynb" else path.parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The kit's tests first: they fork often, and a worker that has run a thousand others is slow to fork."""
    items.sort(key=lambda item: group(item.nodeid) not in ("tests/kit", "tests/kit/audits"))


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    if not config.getoption("--minutes"):
        return
    seconds, tests = Counter(), Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[group(report.nodeid)] += report.duration
                tests[group(report.nodeid)] += report.when == "call"
    terminalreporter.section("where the minutes went (of all workers together)")
    for name, value in seconds.most_common():
        terminalreporter.line(f"{value / 60:7.2f} min  {tests[name]:5d}  {name}")
    terminalreporter.line(f"{sum(seconds.values()) / 60:7.2f} min  {sum(tests.values()):5d}  together")
