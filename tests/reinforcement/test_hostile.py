"""Programs that cheat or attack: all contained, the right verdict, and a host that has noticed nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from counterpoise.reinforcement import IsolationError, Sandbox
from counterpoise.reinforcement._outputs import same_output

from .hostile import EXPECTED, PROGRAMS, STDIN, Host

SECRET = "a-secret-of-the-host"
BACKENDS = ["unshare", "bubblewrap"] if shutil.which("bwrap") else ["unshare"]


@pytest.fixture(scope="module", params=BACKENDS)
def sandbox(request):
    try:
        made = Sandbox(timeout=1.0, memory_mb=512, processes=16, backend=request.param)
    except IsolationError as error:
        pytest.skip(f"untrusted programs are not run here: {error}")
    with made:
        yield made


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """A machine with something to lose: a file, a process, a port, a socket, a secret in the environment."""
    folder = tmp_path_factory.mktemp("host")
    canary, mark = folder / "canary", folder / "mark"
    canary.write_text(SECRET)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    abstract = f"counterpoise-{os.getpid()}"
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as port, socket.socket(socket.AF_UNIX) as local:
        patch.setenv("COUNTERPOISE_SECRET", SECRET)
        local.bind("\0" + abstract)
        local.listen()
        try:
            yield Host(str(canary), str(mark), process.pid, port.getsockname()[1], abstract)
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
    assert canary.read_text() == SECRET and canary.stat().st_nlink == 1
    assert sorted(folder.iterdir()) == [canary]


def processes_of(sandbox) -> set[int]:
    """The agents of a sandbox and everything that descends from them, but the processes that keep the isolation itself."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:
            continue
        parents[int(status.parent.name)] = int(lines["PPid"])
    found = {agent._process.pid for agent in sandbox._idle}
    while more := {process for process, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def test_there_are_enough_of_them() -> None:
    assert len(PROGRAMS) >= 40
    assert len({program.name for program in PROGRAMS}) == len(PROGRAMS)


@pytest.mark.parametrize("hostile", PROGRAMS, ids=lambda program: program.name)
def test_contained(sandbox, host, hostile) -> None:
    sandbox.run("pass")
    before = processes_of(sandbox)
    began = time.monotonic()
    result = sandbox.run(hostile.program(host), STDIN)
    assert time.monotonic() - began < 4
    assert "BREACH" not in result.stdout + result.stderr, result
    assert SECRET not in result.stdout + result.stderr
    assert (result.ok and same_output(result.stdout, EXPECTED)) == hostile.passes, result
    assert processes_of(sandbox) == before  # the same agent, and nothing else
    assert not Path(host.mark).exists()
    # The next program finds a clean place.
    after = sandbox.run("import json, os\nprint(sum(map(int, input().split())), os.listdir('/tmp'), json.dumps(len('ab')))", "2 3")
    assert (after.status, after.stdout) == ("ok", "5 [] 2\n")


def test_time_outs_leave_no_process_behind(sandbox) -> None:
    hang = "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(9)\ntime.sleep(9)"
    sandbox.run("pass")
    before = processes_of(sandbox)
    kept, sandbox.timeout = sandbox.timeout, 0.1
    try:
        results = [sandbox.run(hang) for _ in range(20)]
    finally:
        sandbox.timeout = kept
    assert {result.status for result in results} == {"timeout"}
    assert processes_of(sandbox) == before
