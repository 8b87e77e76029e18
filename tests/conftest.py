import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """On matrices this small a second thread costs more than it brings."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _double_precision():
    """Theory is float64; tests build their tensors so without saying it each time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _reason(report):
    """Why a test was skipped; pytest keeps it as the last of (path, line, text)."""
    return str(report.longrepr[-1] if isinstance(report.longrepr, tuple) else report.longrepr)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """In CI only a missing GPU excuses a test from running."""
    report = yield
    skipped = report.skipped and not hasattr(report, "wasxfail")
    if skipped and os.environ.get("CI") == "true" and "CUDA" not in _reason(report):
        report.outcome = "failed"
        report.longrepr = f"in CI nothing is skipped but CUDA tests: {_reason(report)}"
    return report


def pytest_terminal_summary(terminalreporter):
    """Name every skipped test: what did not run was not tested."""
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped:
        cuda = sum("CUDA" in _reason(report) for report in skipped)
        title = f"{len(skipped)} NOT RUN, {cuda} of them for want of CUDA"
        terminalreporter.section(title, sep="!", red=True, bold=True)
        for report in sorted(skipped, key=lambda report: report.nodeid):
            terminalreporter.line(f"{report.nodeid}: {_reason(report)}")
