"""A plugin of pytest: notes each test's outcome in a file at once, and leaves out tests whose outcome is known.

Files are named by HCE_TEST_OUTCOMES (lines of JSON: test, outcome, seconds, reason) and HCE_TEST_KNOWN (a JSON list of tests).
"""

from __future__ import annotations

import json
import os

import pytest

WHY = 300  # characters of a reason


def reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])[:WHY]
    if report.failed:
        return str(report.longrepr)[-WHY:]
    return ""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    path = os.environ.get("HCE_TEST_OUTCOMES")
    # With several processes every report also passes through the one that collects them: it alone writes.
    if not path or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" or report.outcome != "passed":
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, report.outcome, round(report.duration, 2), reason(report)]) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = os.environ.get("HCE_TEST_KNOWN")
    if not path or not os.path.exists(path):
        return
    with open(path, encoding="utf-8") as file:
        known = set(json.load(file))
    left_out = [item for item in items if item.nodeid in known]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in known]
