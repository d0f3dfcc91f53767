"""Whether the judge of programs can be fooled, what a run costs, and what time-outs leave behind.

Verdicts: the hostile programs of the tests and some honest ones, judged in three ways. Ours: in the sandbox, outputs compared outside. The
zip rule of TAROT's released reward: the same runs, lines compared with ``zip``. Exec-style, as human-eval and its descendants do: the
program is executed by the judge's own interpreter, in a child process with a guard that sets functions of ``os`` to None, compared there,
and the verdict sent to the parent; this judge itself runs inside a sandbox here, so that nothing happens to the machine.

Speed: programs that print a sum, one core. Ours with one worker and with more (a run waits for the kernel to take its namespaces apart, so
several workers keep one core busier), against a fresh interpreter per program, without isolation and under ``unshare``. Alternating.

Time-outs: programs that leave children in sessions of their own and sleep; afterwards no process but the agents may be there.

    python benchmarks/sandbox.py             # needs an idle core and some minutes
    python benchmarks/sandbox.py --quick
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the programs are the tests'

from _ending import keep, said
from tests.reinforcement.hostile import EXPECTED, PROGRAMS, STDIN, Host, Hostile

from counterpoise.reinforcement import Sandbox
from counterpoise.reinforcement._outputs import same_output

OURS_WRONG, ZIP_WRONG, EXEC_WRONG = 0, 2, 5  # bars: verdict errors, at most and at least
RUNS_PER_SECOND = 100  # bar: per core, best number of workers
ORPHANS, TIME_OUTS = 0, 1000  # bar

HONEST = [
    Hostile("honest", "a, b = map(int, input().split())\nprint(a + b)\nprint(a * b)", passes=True, prelude=False),
    Hostile(
        "honest, reads all of stdin", "import sys\na, b = map(int, sys.stdin.read().split())\nprint(a + b, a * b, sep='\\n')", True, False
    ),
    Hostile("honest, trailing blanks", "print('5  ')\nprint('6')\nprint()", passes=True, prelude=False),
    Hostile("wrong", "print(5)\nprint(7)", prelude=False),
    Hostile("wrong order", "print(6)\nprint(5)", prelude=False),
]

EXEC_JUDGE = r"""
import io, json, multiprocessing, os, sys
task = json.loads(sys.stdin.read())

def guard():
    import builtins, shutil
    builtins.exit = builtins.quit = None
    for name in ("kill", "system", "putenv", "remove", "removedirs", "rmdir", "fchdir", "setuid", "fork", "forkpty", "killpg", "rename",
                 "renames", "truncate", "replace", "unlink", "fchmod", "fchown", "chmod", "chown", "chroot", "lchown", "getcwd", "chdir"):
        setattr(os, name, None)
    shutil.rmtree = shutil.move = shutil.chown = None

def compare(printed, expected):
    lines, wanted = printed.strip().split("\n"), expected.strip().split("\n")
    return len(lines) == len(wanted) and all(one.strip() == other.strip() for one, other in zip(lines, wanted))

def check(code, stdin, expected, answers):
    results = []
    guard()
    sys.stdin, sys.stdout = io.StringIO(stdin), io.StringIO()
    try:
        exec(code, {"__name__": "__main__"})
        results.append(compare(sys.stdout.getvalue(), expected))
    except BaseException:
        results.append(False)
    answers.send(results[0])
    os._exit(0)

here, there = multiprocessing.Pipe()
if os.fork() == 0:
    check(task["code"], task["stdin"], task["expected"], there)
there.close()
passed = False
try:
    passed = bool(here.poll(1.5) and here.recv())
except EOFError:
    pass
os.write(1, b"PASSED" if passed else b"FAILED")
os._exit(0)
"""


def by_zip(printed: str, expected: str) -> bool:
    pairs = zip(printed.strip().split("\n"), expected.strip().split("\n"), strict=False)
    return all(one.strip() == other.strip() for one, other in pairs)


def verdicts() -> tuple[list[dict[str, Any]], list[str]]:
    """One row per program: the right verdict, and three judges'."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as port:
        canary = Path(folder) / "canary"
        canary.write_text("a secret")
        sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        host = Host(str(canary), str(Path(folder) / "mark"), sleeper.pid, port.getsockname()[1], "none")
        with Sandbox(timeout=1.0) as sandbox, Sandbox(timeout=4.0) as judge:
            for program in [*PROGRAMS, *HONEST]:
                code = program.program(host)
                result = sandbox.run(code, STDIN)
                task = json.dumps({"code": code, "stdin": STDIN, "expected": EXPECTED})
                rows.append(
                    {
                        "part": "verdicts", "program": program.name, "right": program.passes,
                        "ours": result.ok and same_output(result.stdout, EXPECTED),
                        "zip": result.ok and by_zip(result.stdout, EXPECTED),
                        "exec": judge.run(EXEC_JUDGE, task).stdout.endswith("PASSED"),
                        "breach": "BREACH" in result.stdout + result.stderr,
                    }
                )  # fmt: skip
        untouched = sleeper.poll() is None and canary.read_text() == "a secret" and sorted(Path(folder).iterdir()) == [canary]
        sleeper.kill()
        sleeper.wait()
    print(f"\n{len(PROGRAMS)} hostile programs, {len(HONEST)} others\n\n| judge | wrong verdicts | wrongly passed |\n|---|---|---|")
    wrong = {}
    for name in ("ours", "zip", "exec"):
        wrong[name] = [row for row in rows if row[name] != row["right"]]
        passed = [row["program"] for row in wrong[name] if row[name]]
        print(f"| {name} | {len(wrong[name])} | {', '.join(passed) or 'none'} |")
    missed = [f"breach: {row['program']}" for row in rows if row["breach"]] + ([] if untouched else ["the host was touched"])
    missed += [f"ours is wrong about {row['program']}" for row in wrong["ours"]] if len(wrong["ours"]) > OURS_WRONG else []
    missed += [f"zip: {len(wrong['zip'])} errors < {ZIP_WRONG}"] if len(wrong["zip"]) < ZIP_WRONG else []
    missed += [f"exec: {len(wrong['exec'])} errors < {EXEC_WRONG}"] if len(wrong["exec"]) < EXEC_WRONG else []
    return rows, missed


PROGRAM = "print(sum(map(int, input().split())))"


def speed(rounds: int, count: int) -> tuple[list[dict[str, Any]], list[str]]:
    kept = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(kept)})
    sandbox = Sandbox()
    plain = [os.path.realpath(sys.executable), "-I", "-S", "-c", PROGRAM]
    arms: dict[str, Callable[[], None]] = {
        f"ours, {n} worker{'s' * (n > 1)}": lambda n=n: [one.stdout for one in sandbox.run_many([(PROGRAM, "1 2 3")] * count, n)] and None  # type: ignore[misc]
        for n in (1, 2, 4)
    }

    def one_by_one(command: list[str]) -> None:
        for _ in range(max(5, count // 5)):
            done = subprocess.run(command, input="1 2 3", capture_output=True, text=True, check=True)
            assert done.stdout == "6\n"

    arms["an interpreter each, not isolated"] = lambda: one_by_one(plain)
    if shutil.which("unshare"):
        arms["an interpreter each under unshare(1)"] = lambda: one_by_one(["unshare", "-Urnpf", "--mount-proc", "--kill-child", *plain])
    rows = []
    try:
        for arm in arms.values():
            arm()  # warm
        for turn in range(rounds):
            for name, arm in arms.items():
                began = time.perf_counter()
                arm()
                runs = count if name.startswith("ours") else max(5, count // 5)
                rows.append({"part": "speed", "round": turn, "arm": name, "runs_per_second": runs / (time.perf_counter() - began)})
    finally:
        sandbox.close()
        os.sched_setaffinity(0, kept)
    medians = {name: statistics.median(row["runs_per_second"] for row in rows if row["arm"] == name) for name in arms}
    print("\n| one core | runs per second, median |\n|---|---|")
    for name, rate in medians.items():
        print(f"| {name} | {rate:.1f} |")
    best = max(rate for name, rate in medians.items() if name.startswith("ours"))
    missed = [f"{best:.1f} runs per second < {RUNS_PER_SECOND}"] if best < RUNS_PER_SECOND else []
    return rows, missed


HANG = "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(9)\ntime.sleep(9)"


def descendants(of: int) -> set[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {of}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {of}


def time_outs(count: int) -> tuple[list[dict[str, Any]], list[str]]:
    with Sandbox(timeout=0.05) as sandbox:
        before = descendants(os.getpid())
        began = time.perf_counter()
        ended = [sandbox.run(HANG).status for _ in range(count)]
        seconds = time.perf_counter() - began
        time.sleep(0.5)
        left = descendants(os.getpid()) - before
    after = descendants(os.getpid())
    row = {"part": "time-outs", "count": count, "timed_out": ended.count("timeout"), "left": len(left), "left_after_close": len(after)}
    print(f"\n{row['timed_out']} of {count} time-outs in {seconds:.0f} s: {len(left)} processes left, {len(after)} after closing")
    missed = [f"{len(left) + len(after)} orphans"] if len(left) + len(after) > ORPHANS else []
    missed += [f"{count - row['timed_out']} runs did not time out"] if row["timed_out"] < count else []
    return [row | {"seconds": seconds}], missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: 20 time-outs, few rounds; does not count")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    parts = (verdicts, lambda: speed(*((1, 20) if options.quick else (5, 200))), lambda: time_outs(20 if options.quick else TIME_OUTS))
    for part in parts:
        rows, wrong = part()
        found += rows
        missed += wrong
    if not options.quick:
        keep("sandbox", found)
    return said(missed)


if __name__ == "__main__":
    sys.exit(main())
