"""Small faults put into the house at random, and whether a wing's own fast tests see them.

    python -m tests.support.mutants --seed 0 --count 300 --wings stability cnn random_matrix store

Needs `coverage`; never part of CI. A mutant changes one operator, comparison, constant or condition
of a room; its tests run in a fork that has torch loaded, on a copy of the tree: those that execute
the changed statement, fastest first, then all others of their files. A survivor has passed them.
Verdicts go to `mutants.json` beside this file. A survivor that no test can kill is judged there by
hand, {"verdict": "equivalent", "why": one sentence}, which later runs keep; `--again` runs what is
neither equivalent nor killed. A mutant recorded with this seed stays in the sample as long as its
statement stands, so that an edit of a room draws anew only what it replaced. Once all are judged or
run, score and survivors are stored in `book/results/mutants/`, from where pages read them.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import difflib
import hashlib
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lib import store

Lines = dict[tuple[str, str], dict[int, list[str]]]  # of (wing, file), by line: tests
ROOT = Path(__file__).resolve().parents[2]
REPORT = Path(__file__).with_suffix(".json")
STORED = ROOT / "book" / "results" / "mutants"
PRELOADED = ["torch", "numpy", "scipy.optimize", "scipy.stats", "pandas", "sklearn", "hypothesis"]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
# A test's own seconds, of the processor and of the clock, beyond which its mutant counts as killed.
ALLOWANCE = {signal.ITIMER_PROF: (10, 10), signal.ITIMER_REAL: (100, 60)}  # times baseline, plus
LEFT_OUT = (".git", ".venv", "_build", "__pycache__", ".*cache", ".hypothesis")
BEGIN = time.perf_counter()
MEMORY = 16 << 30  # bytes of address space, most of which torch only reserves


@dataclass(frozen=True)
class Mutant:
    """A room with one fault: where it is, and the lines of the statement that holds it."""

    file: str
    lines: range
    source: str
    diff: str

    @property
    def wing(self) -> str:
        return self.file.split("/")[1]

    @property
    def key(self) -> tuple[str, str]:
        """What it is, wherever in its file it stands."""
        return self.file, self.diff


def sites(node: ast.AST, lines: range = range(0)) -> Iterator[tuple[ast.AST, range]]:
    """Nodes with the lines of their statement; no annotations, messages or texts."""
    if isinstance(node, ast.stmt):
        body = getattr(node, "body", None)
        lines = range(node.lineno, body[0].lineno if body else (node.end_lineno or node.lineno) + 1)
    yield node, lines
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.JoinedStr):
                yield from sites(child, lines)


def faults(node: Any) -> Iterator[tuple[Any, ast.AST]]:
    """What can go wrong at a node: pairs of the node to replace and its replacement."""
    if type(getattr(node, "op", None)) in SWAPS:
        yield node, _with(node, op=SWAPS[type(node.op)]())
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                swapped = SWAPS[type(op)]()
                yield node, _with(node, ops=[*ops[:i], swapped, *ops[i + 1 :]])
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node, node.operand
        case ast.Constant(value=bool(value)):
            yield node, ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield node, ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield node, ast.Constant(1.5 * value if value else 1.0)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.comprehension(ifs=tests):
            yield from ((test, ast.UnaryOp(ast.Not(), test)) for test in tests)


def _with(node: ast.AST, **fields: Any) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every mutant of one file."""
    file, source = path.relative_to(ROOT).as_posix(), path.read_text()
    raw = source.encode().splitlines(keepends=True)
    starts = [sum(map(len, raw[:i])) for i in range(len(raw))]  # columns of ast count bytes
    for node, lines in sites(ast.parse(source)):
        for old, new in faults(node):
            text = ast.unparse(new) if isinstance(new, ast.stmt) else f"({ast.unparse(new)})"
            begin = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            content = source.encode()
            changed = (content[:begin] + text.encode() + content[end:]).decode()
            rows = difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm="")
            yield Mutant(file, lines, changed, "\n".join(list(rows)[3:]))


class Watch:
    """In a fork: orders the tests, bounds each one's time, and notes seconds and who failed."""

    def __init__(self, log: Path, ranks: dict[str, int], seconds: dict[str, float]) -> None:
        self.log, self.ranks, self.seconds = log, ranks, seconds
        self.coverage: Any = None
        self.took: dict[str, float] = {}
        self.failed: list[str] = []

    def pytest_collection_modifyitems(self, items):
        if self.ranks:
            items[:] = [item for item in items if item.nodeid in self.ranks]
            items.sort(key=lambda item: self.ranks[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        if self.coverage:
            self.coverage.switch_context(item.nodeid)
        else:
            for timer, (factor, least) in ALLOWANCE.items():
                signal.setitimer(timer, least + factor * self.seconds.get(item.nodeid, 0))
        begin = time.process_time()
        result = yield
        self.took[item.nodeid] = time.process_time() - begin
        return result

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self):
        self.log.write_text(json.dumps({"took": self.took, "failed": self.failed}))


def run_tests(tree: Path, wing: str, watch: Watch, *, measure: bool = False) -> None:
    """In a fork, which it ends: the fast tests of a wing in `tree`, stopping at the first failure.

    The exit code is pytest's. With `measure`, nothing stops it, and the lines that each test
    executes go to `coverage` beside the log.
    """
    os.setsid()
    os.chdir(tree)
    sys.dont_write_bytecode = True  # what a mutant compiles to must not outlive it
    sys.path[0] = os.environ["PYTHONPATH"] = str(tree)
    for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "lib")]:
        del sys.modules[name]
    os.dup2(os.open(watch.log.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    arguments = ["-q", "-p", "no:cacheprovider", "-m", "not long and not slow"]
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what was loaded before
    if measure:
        from coverage import Coverage

        data = watch.log.with_suffix(".coverage")
        watch.coverage = Coverage(data_file=data, source=["lib"])
        watch.coverage.start()
    else:
        arguments += ["-x"]
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        signal.setitimer(signal.ITIMER_PROF, 60)
    everything = {f"tests/{wing}": 0, f"lib/{wing}": 0, "tests/test_house.py": 0}
    files = {file_of(test): 0 for test in watch.ranks} or everything
    code = pytest.main([*arguments, *files], plugins=[watch])
    if measure:
        watch.coverage.stop()
        watch.coverage.save()
    os._exit(code)


def forks(
    jobs: Sequence[Callable[[Path], None]], trees: list[Path]
) -> Iterator[tuple[int, Path, int]]:
    """Run jobs, which never return, in forks, one in each tree at a time; with how each ended.

    Yields the job's number, its tree and its status, when nothing that it started still runs.
    """
    running: dict[int, tuple[int, Path]] = {}
    waiting, free = list(enumerate(jobs)), list(trees)
    while waiting or running:
        if waiting and free:
            (number, job), tree = waiting.pop(0), free.pop()
            pid = os.fork()
            if pid == 0:
                try:
                    job(tree)
                finally:  # an error must not run on in the fork
                    traceback.print_exc()
                    os._exit(pytest.ExitCode.INTERNAL_ERROR)
            running[pid] = number, tree
            continue
        pid, status = os.wait()
        number, tree = running.pop(pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        free.append(tree)
        yield number, tree, status


def baseline(wings: list[str], trees: list[Path]) -> tuple[dict[str, dict[str, float]], Lines]:
    """By wing, seconds of each fast test; and by file and line the tests that execute it."""
    from coverage import CoverageData

    logs = [trees[0].with_name(f"{wing}.json") for wing in wings]
    jobs = [
        partial(run_tests, wing=wing, watch=Watch(log, {}, {}), measure=True)
        for wing, log in zip(wings, logs, strict=True)
    ]
    seconds: dict[str, dict[str, float]] = {}
    lines: Lines = {}
    for number, tree, _ in forks(jobs, trees):
        found = json.loads(logs[number].read_text())
        for test in {*found["failed"]}:
            print(f"left out, fails unmutated: {test}", flush=True)
            found["took"].pop(test, None)
        seconds[wings[number]] = found["took"]
        data = CoverageData(str(logs[number].with_suffix(".coverage")))
        data.read()
        for file in data.measured_files():
            name = wings[number], Path(file).relative_to(tree).as_posix()
            lines[name] = data.contexts_by_lineno(file)
    return seconds, lines


def order(mutant: Mutant, seconds: dict[str, float], lines: Lines) -> dict[str, int]:
    """Tests in order: those that execute the mutant, fastest first, then others of their files.

    All of the wing's and the house's where none is known to, as of what runs at import.
    """
    known = lines.get((mutant.wing, mutant.file), {})
    covering = {test for line in mutant.lines for test in known.get(line, [])} & {*seconds}
    files = {file_of(test) for test in covering} or {file_of(test) for test in seconds}
    wanted = [test for test in seconds if file_of(test) in files]
    wanted.sort(key=lambda test: (test not in covering, seconds[test]))
    return {test: i for i, test in enumerate(wanted)}


def file_of(test: str) -> str:
    """The file of a test, by its pytest id."""
    return test.partition("::")[0]


def attempt(tree: Path, mutant: Mutant, watch: Watch) -> None:
    """In a fork: the wing's tests on the mutant."""
    (tree / mutant.file).write_text(mutant.source)
    run_tests(tree, mutant.wing, watch)


def judge(drawn: list[Mutant], trees: list[Path]) -> Iterator[tuple[Mutant, dict[str, Any]]]:
    """Each mutant with its verdict."""
    originals = {mutant.file: (trees[0] / mutant.file).read_text() for mutant in drawn}
    seconds, lines = baseline(sorted({mutant.wing for mutant in drawn}), trees)
    logs = [trees[0].with_name(f"{number}.json") for number in range(len(drawn))]
    jobs = []
    for mutant, log in zip(drawn, logs, strict=True):
        watch = Watch(log, order(mutant, seconds[mutant.wing], lines), seconds[mutant.wing])
        jobs.append(partial(attempt, mutant=mutant, watch=watch))
    for number, tree, status in forks(jobs, trees):
        mutant, log = drawn[number], logs[number]
        (tree / mutant.file).write_text(originals[mutant.file])
        shutil.rmtree(tree / ".hypothesis", ignore_errors=True)
        verdict = {"verdict": "survived" if status == 0 else "killed"}
        if os.WIFSIGNALED(status):
            verdict["by"] = signal.Signals(os.WTERMSIG(status)).name
        elif status:
            failed = json.loads(log.read_text())["failed"] if log.exists() else []
            verdict["by"] = failed[0] if failed else "import"
        yield mutant, verdict


def draw(wings: list[str], seed: int, count: int, kept: set[tuple[str, str]]) -> list[Mutant]:
    """`count` different mutants of these wings: those to be kept, then in the seed's order."""
    rooms = [path for wing in wings for path in sorted((ROOT / "lib" / wing).glob("*.py"))]
    different = {mutant.key: mutant for path in rooms for mutant in mutants_of(path)}

    def place(mutant: Mutant) -> tuple[bool, str]:
        return mutant.key not in kept, hashlib.sha256(f"{seed} {mutant.key}".encode()).hexdigest()

    return sorted(different.values(), key=place)[:count]


def save(args: argparse.Namespace, verdicts: dict[Mutant, dict[str, Any]]) -> str:
    """Write `mutants.json`: first the score, which is the share killed of those not equivalent."""
    count = Counter(row["verdict"] for row in verdicts.values())
    score = count["killed"] / max(1, count["killed"] + count["survived"])
    head = {"seed": args.seed, "wings": args.wings, "count": len(verdicts), **count, "score": score}
    places = ({"file": m.file, "line": m.lines.start, "diff": m.diff} for m in verdicts)
    rows = [row | place for place, row in zip(places, verdicts.values(), strict=True)]
    text = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    REPORT.write_text(json.dumps(head)[:-1] + f', "mutants": [\n{text}\n]}}\n')
    if not count["waiting"]:
        publish(args, head, rows)
    return json.dumps(head)


def publish(args: argparse.Namespace, head: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Store for pages: the score, a row, and those that no test killed, a row each."""
    rooms = [path for wing in args.wings for path in sorted((ROOT / "lib" / wing).glob("*.py"))]
    verdicts = {name: head.get(name, 0) for name in ("killed", "equivalent", "survived")}
    columns = ["file", "line", "verdict", "why", "diff"]
    left = [[row.get(name, "") for name in columns] for row in rows if row["verdict"] != "killed"]
    for name, table in (
        ("score", pd.DataFrame([{"mutants": len(rows), **verdicts}])),
        ("survivors", pd.DataFrame(left, columns=columns)),
    ):
        store.save(
            STORED / name,
            table,
            parameters={"wings": args.wings},
            code=store.code_hash(*rooms),
            seed=args.seed,
            seconds=time.perf_counter() - BEGIN,
        )


def main() -> None:
    """Draw, test and report the mutants, two at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument(
        "--wings", nargs="+", default=["stability", "cnn", "random_matrix", "store"]
    )
    parser.add_argument("--again", action="store_true", help="only what survived last time")
    args = parser.parse_args()
    for name in PRELOADED:
        importlib.import_module(name)
    known = json.loads(REPORT.read_text()) if REPORT.exists() else {"seed": None, "mutants": []}
    before = {(row["file"], row["diff"]): row for row in known["mutants"]}
    kept_in = {*before} if known["seed"] == args.seed else set()
    drawn = draw(args.wings, args.seed, args.count, kept_in)
    verdicts = {mutant: before.get(mutant.key, {"verdict": "waiting"}) for mutant in drawn}
    kept = ("equivalent", "killed") if args.again else ("equivalent",)
    todo = [mutant for mutant, row in verdicts.items() if row["verdict"] not in kept]
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder, name) for name in ("left", "right")]
        for tree in trees:
            shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        for done, (mutant, verdict) in enumerate(judge(todo, trees), 1):
            if verdict["verdict"] == verdicts[mutant]["verdict"] == "survived":
                verdict = verdicts[mutant] | verdict  # with what is known of it
            verdicts[mutant] = verdict
            save(args, verdicts)
            print(f"{done}/{len(todo)} {mutant.file}:{mutant.lines.start} {verdict}", flush=True)
            if verdict["verdict"] == "survived":
                print(mutant.diff, flush=True)
    print(save(args, verdicts))


if __name__ == "__main__":
    main()
