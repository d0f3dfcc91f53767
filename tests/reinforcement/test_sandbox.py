from __future__ import annotations

import io
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from counterpoise._errors import InputError
from counterpoise.reinforcement import IsolationError, Sandbox
from counterpoise.reinforcement import _sandbox as module
from counterpoise.reinforcement import _sandbox_agent as agent

from .hostile import PROGRAMS, STDIN, Host


def test_a_program_reads_and_writes(sandbox) -> None:
    result = sandbox.run("print(*sorted(input().split()))\nimport sys\nprint('aside', file=sys.stderr)", "b a ä 🙂\n")
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("ok", 0, "a b ä 🙂\n", "aside\n")
    assert result.ok and 0 < result.seconds < 1 and 4 < result.peak_mb < 100


@pytest.mark.parametrize(
    ("code", "status", "exit_code", "words"),
    [
        ("1/0", "error", 1, "ZeroDivisionError: division by zero"),
        ("def f(:", "error", 1, "SyntaxError"),
        ("import sys; sys.exit('no')", "error", 1, "no"),
        ("raise SystemExit(7)", "error", 7, ""),
        ("raise SystemExit", "ok", 0, ""),
        ("raise SystemExit(256)", "ok", 0, ""),
        ("raise SystemExit(-1)", "error", 255, ""),
        ("import atexit, os; atexit.register(os._exit, 9)", "error", 9, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "error", 137, ""),
        ("bytearray(1 << 30)", "error", 1, "MemoryError"),
        ("import numpy", "error", 1, "ModuleNotFoundError"),
        ("while True: pass", "timeout", 137, ""),
        ("while True: print('x' * 10_000)", "output", 137, ""),
        ("raise KeyboardInterrupt", "error", 1, "KeyboardInterrupt"),
    ],
)
def test_how_programs_end(sandbox, code, status, exit_code, words) -> None:
    result = sandbox.run(code)
    assert (result.status, result.exit_code) == (status, exit_code) and words in result.stderr
    assert len(result.stdout) <= 1 << 20 and result.ok == (status == "ok")


def test_a_traceback_shows_the_program_and_nothing_else(sandbox) -> None:
    stderr = sandbox.run("def f():\n    return 1 / 0\nf()").stderr
    assert stderr.splitlines()[:3] == ["Traceback (most recent call last):", '  File "<program>", line 3, in <module>', "    f()"]
    assert "agent" not in stderr


def test_a_program_is_what_a_script_would_be(sandbox) -> None:
    code = """
    import atexit, random, sys, threading, dataclasses
    @dataclasses.dataclass
    class Row:
        a: "int"
    print(__name__, sys.argv[1:], Row(3), sys.flags.isolated, sys.flags.no_site)
    atexit.register(print, "last")
    threading.Thread(target=lambda: print("thread")).start()
    """
    assert sandbox.run(textwrap.dedent(code)).stdout == "__main__ [] Row(a=3) 1 1\nthread\nlast\n"
    assert sandbox.run("import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    print(1)\nasyncio.run(f())").stdout == "1\n"
    assert sandbox.run("print(open('/dev/stdin').read(), file=open('/dev/stdout', 'w'))", "2 3").stdout == "2 3\n"
    numbers = {sandbox.run("import random; print(random.random())").stdout for _ in range(3)}
    assert len(numbers) == 3  # forked programs do not share their random numbers


HONEST = {
    "as many threads as it may have": """
import threading, time
def work():
    held = [bytes(1000) for _ in range(2000)]
    time.sleep(0.1)
    done.append(len(held))
done = []
threads = [threading.Thread(target=work) for _ in range(15)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(done) == 30_000)
""",
    "a pool of processes": "from multiprocessing import get_context\nwith get_context('fork').Pool(2) as pool:\n"
    "    print(pool.map(abs, [-1, 2]) == [1, 2])",
    "shared memory with a name": "from multiprocessing.shared_memory import SharedMemory\narea = SharedMemory(create=True, size=10)\n"
    "area.buf[0] = 7\nother = SharedMemory(area.name)\nprint(other.buf[0] == 7)\nother.close()\narea.close()\narea.unlink()",
    "a child": "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(input())'], input='x', text=True, "
    "capture_output=True).stdout == 'x\\n')",
    "asyncio": "import asyncio\nasync def main():\n    pipe = asyncio.subprocess.PIPE\n"
    "    cat = await asyncio.create_subprocess_exec('cat', stdin=pipe, stdout=pipe)\n"
    "    return await cat.communicate(b'x' * 100_000)\nprint(asyncio.run(main())[0] == b'x' * 100_000)",
}


@pytest.mark.parametrize("code", HONEST.values(), ids=HONEST)
def test_what_honest_programs_need_is_there(sandbox, code) -> None:
    with Sandbox(timeout=10) as patient:
        result = patient.run(code)
    assert (result.status, result.stdout) == ("ok", "True\n"), result


def test_output_that_is_exactly_as_long_as_it_may_be(sandbox) -> None:
    assert sandbox.run(f"import sys; sys.stdout.write('x' * {1 << 20})").ok
    result = sandbox.run(f"import sys; sys.stdout.write('x' * {(1 << 20) + 1})")
    assert result.status == "output" and len(result.stdout) == 1 << 20


def test_a_long_stdin_that_nobody_reads(sandbox) -> None:
    assert sandbox.run("print(1)", "x" * (8 << 20)).stdout == "1\n"
    assert sandbox.run("import sys; print(len(sys.stdin.read()))", "x" * (8 << 20)).stdout == f"{8 << 20}\n"


def test_many_in_their_order_and_from_several_threads(sandbox) -> None:
    jobs = [(f"print({i} * int(input()))", "3") for i in range(12)]
    expected = [f"{3 * i}\n" for i in range(12)]
    assert [result.stdout for result in sandbox.run_many(jobs, workers=3)] == expected
    found: dict[int, str] = {}
    threads = [threading.Thread(target=lambda i=i: found.__setitem__(i, sandbox.run(*jobs[i]).stdout)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict(enumerate(expected[:4]))
    # The threads that started them are gone; the agents are not.
    assert sandbox.run(*jobs[5]).stdout == "15\n"
    assert sandbox.run_many([]) == []


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed: hostile programs are run under unshare alone")
def test_bubblewrap(sandbox) -> None:
    with Sandbox(timeout=1, backend="bubblewrap") as wrapped:
        assert wrapped.run("import os; print(os.listdir('/tmp'), input())", "x").stdout == "[] x\n"
    assert sandbox.backend == "bubblewrap"  # the first choice


def test_many_asked_for_in_several_threads_at_once(sandbox) -> None:
    found: dict[int, list[str]] = {}

    def ask(i: int) -> None:
        found[i] = [result.stdout for result in sandbox.run_many([(f"print({i}, {j})", "") for j in range(6)], workers=2)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [f"{i} {j}\n" for j in range(6)] for i in range(3)}


def test_an_error_ends_what_has_not_begun(sandbox) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="code"):
        sandbox.run_many([(b"no text", ""), *[("import time; time.sleep(0.3)", "")] * 80], workers=2)
    assert time.monotonic() - began < 8


def test_processes_started_together_share_the_cores(monkeypatch) -> None:
    monkeypatch.setattr(module.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(48)))
    found = {}
    for ranks in ("", "1", "8", "100", "many"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        found[ranks] = module._cores()
    assert found == {"": 48, "1": 48, "8": 8, "100": 1, "many": 48}


# -- what several agents share -----------------------------------------------------------------------------------------------------------


def user_of(sandbox) -> int:
    return module.json.loads(sandbox._idle[0]._process.args[-1])["uid"]


@pytest.mark.skipif(os.geteuid() != 0, reason="programs of others have the user that runs the tests, in a user namespace that counts alone")
def test_every_agent_of_the_machine_has_a_user_of_its_own(sandbox, monkeypatch) -> None:
    monkeypatch.setattr(module.os, "urandom", lambda count: b"\7" * count)  # all begin their search at the same number
    with Sandbox(timeout=1) as first:
        script = "import sys; from tests.reinforcement import test_sandbox as t; t.module.os.urandom = lambda count: b'\7' * count\n"
        script += "with t.Sandbox(timeout=1) as other:\n    print(t.user_of(other), flush=True)\n    sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rank:
            assert rank.stdout is not None
            second = int(rank.stdout.readline())
            with Sandbox(timeout=1) as third:
                users = [user_of(first), second, user_of(third)]
            rank.communicate()
    assert len(set(users)) == 3 and set(users) < set(module.FREE_USERS)
    with Sandbox(timeout=1) as fourth:
        assert user_of(fourth) == users[0]  # given back


def test_programs_at_the_same_time_neither_count_nor_see_each_other(sandbox) -> None:
    forks = "import os, time\nchildren = 0\nfor _ in range(40):\n    try:\n        child = os.fork()\n    except OSError:\n        break\n"
    forks += "    if child == 0:\n        time.sleep(0.5)\n        os._exit(0)\n    children += 1\ntime.sleep(0.5)\nprint(children)"
    kills = "import os, signal\nfor process in range(2, 3000):\n    if process != os.getpid():\n        try:\n"
    kills += "            os.kill(process, signal.SIGKILL)\n        except OSError:\n            continue\n        print(process)"
    with Sandbox(timeout=5) as three:
        found = three.run_many([(forks, ""), (forks, ""), (kills, "")], workers=3)
    assert [result.stdout for result in found] == ["15\n", "15\n", ""]


# -- memory that no process shows ----------------------------------------------------------------------------------------------------------

SOCKETS = """
import os, socket, time
held, children = [], {0}
for _ in range(children):
    if os.fork() == 0:
        break
for _ in range({1}):
    one, other = socket.socketpair()
    one.setblocking(False)
    try:
        while True:
            one.send(b"x" * 65536)
    except BlockingIOError:
        held += [one, other]
time.sleep(0.5)
"""
PAGE_TABLES = """
import ctypes, time
libc = ctypes.CDLL(None)
for i in range({0}):  # one page in every GiB, never written, and a page of pages for each
    libc.mmap(ctypes.c_void_p((1 << 44) + (i << 30)), ctypes.c_size_t(4096), 1, 0x8022, -1, 0)
time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (SOCKETS.format(5, 28), "memory"),
        (SOCKETS.format(0, 28), "ok"),
        pytest.param(
            PAGE_TABLES.format(24_000), "memory", marks=pytest.mark.skipif(os.uname().machine != "x86_64", reason="their numbers")
        ),
        (PAGE_TABLES.format(100), "ok"),
    ],
    ids=["sockets", "few sockets", "page tables", "few page tables"],
)
def test_buffers_and_page_tables_count(sandbox, code, status) -> None:
    with Sandbox(timeout=5, memory_mb=128) as small:
        result = small.run(code)
    assert result.status == status, result


def test_what_was_moved_to_disk_counts_and_what_files_can_give_again_does_not(monkeypatch) -> None:
    status = (
        "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t  700 kB\nRssShmem:\t  20 kB\nVmPTE:\t   3 kB\nVmSwap:\t   4000 kB\n"
    )
    monkeypatch.setattr(agent, "open", lambda path, mode: io.BytesIO(status.encode()), raising=False)
    assert agent._held_kb(7) == 100 + 20 + 3 + 4000


SEARCHES = {
    "variables of the functions around it": "frame = sys._getframe()\nwhile frame:\n    for value in list(frame.f_locals.values()):\n"
    "        found |= re.search({0!r}, repr(value)) is not None\n    frame = frame.f_back\n",
    "memory, freed or not": "for line in list(open('/proc/self/maps')):\n    place, mode = line.split()[:2]\n"
    "    if mode.startswith('rw') and '[v' not in line:\n        low, high = (int(end, 16) for end in place.split('-'))\n"
    "        found |= re.search({0!r}.encode(), ctypes.string_at(low, high - low)) is not None\n",
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_nothing_of_the_program_before_is_left_in_memory(sandbox, search) -> None:
    # It may have printed the right answer to the same test. A pattern with a class in it does not find itself.
    def look_for(pattern: str) -> str:
        return "import ctypes, re, sys\nfound = False\n" + search.format(pattern) + "print(found)  # 777000777001"

    with Sandbox(timeout=2) as alone:
        assert alone.run("print(int(input()) ** 2)", "1234567").stdout == "1524155677489\n"
        assert alone.run(look_for("152415567748[0-9]")).stdout == "False\n"
        assert alone.run(look_for("77700077700[0-9]")).stdout == "True\n"  # what is there, is found


def test_an_agent_that_was_killed_is_replaced(sandbox) -> None:
    sandbox.run_many([("import time; time.sleep(0.2)", "")] * 3, workers=3)
    assert len(sandbox._idle) >= 2
    for one in list(sandbox._idle):
        one._process.kill()
    assert sandbox.run("print(1)").stdout == "1\n"


def test_a_jail_that_cannot_be_made_is_tried_again_and_then_an_error(sandbox, monkeypatch) -> None:
    answers = iter([{"setup": "fork: no more processes"}, None, {"setup": "fork: no more processes"}, {"setup": "mount: no"}, None, None])
    monkeypatch.setattr(module._Agent, "ask", lambda self, job, most: next(answers))
    lost = sandbox.run("print(1)")
    assert lost.status == "lost" and "lost twice" in lost.stderr
    with pytest.raises(IsolationError, match="The program was not run: mount: no"):
        sandbox.run("print(1)")
    lost = sandbox.run("print(1)")
    assert lost.status == "lost" and not lost.ok


def test_agents_end_with_the_sandbox(sandbox) -> None:
    own = Sandbox(timeout=1)
    own.run("pass")
    agents = [agent._process for agent in own._idle]
    own.close()
    assert agents and all(process.returncode is not None for process in agents)
    with pytest.raises(IsolationError, match="was closed"):
        own.run("pass")


def test_agents_end_with_the_process_that_made_them_however_it_ends(sandbox) -> None:
    code = """
    import os, signal
    from counterpoise.reinforcement import Sandbox
    sandbox = Sandbox()
    print(sandbox._idle[0]._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60)
    agent = int(done.stdout)
    for _ in range(100):
        try:
            os.kill(agent, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{agent}/stat").read_text().rpartition(")")[2].split()[0] == "Z":  # ended, and nobody asked yet
            break
        threading.Event().wait(0.05)
    else:
        pytest.fail("the agent lives on")


def test_a_copy_has_agents_of_its_own(sandbox) -> None:
    copy = pickle.loads(pickle.dumps(sandbox))
    with copy:
        assert copy.run("print(2)").stdout == "2\n" and repr(copy) == repr(sandbox)


def test_a_forked_process_starts_agents_of_its_own(sandbox) -> None:
    sandbox.run("pass")
    child = os.fork()
    if child == 0:
        os._exit(0 if sandbox.run("print(5)").stdout == "5\n" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sandbox.run("print(6)").stdout == "6\n"


def test_a_fork_may_find_the_sandbox_in_use(sandbox) -> None:
    """As a worker of a DataLoader does that is forked while a thread takes an agent."""
    with Sandbox(timeout=2) as used:
        with used._lock:
            child = os.fork()
            if child == 0:
                os._exit(0 if used.run("print(5)").stdout == "5\n" and user_of(used) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        agents = list(used._idle)
        assert used.run("print(6)").stdout == "6\n" and used._idle == agents


def processes_in(folder: Path) -> dict[int, str]:
    """Processes whose command line names the folder: agents and all they forked."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (process / "cmdline").read_text():
                found[int(process.name)] = (process / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
    return {process: state for process, state in found.items() if state != "Z"}


def assert_all_end(folder: Path) -> None:
    deadline = time.monotonic() + 15
    while left := processes_in(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def started(code: str, folder: Path) -> subprocess.Popen[str]:
    """A script with a folder for its agents that nobody else has."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize(
    "call",
    [
        "sandbox.run('import time; time.sleep(30)')",
        "sandbox.run_many([('import time; time.sleep(1)', '')] * 50, workers=3)",
        "[Sandbox() for _ in range(500)]",
        "Sandbox(timeout=60, backend='subprocess', allow_unisolated=True).run('import time; time.sleep(30)')",
    ],
    ids=["one", "many", "the start", "without isolation"],
)
def test_an_interrupted_run_leaves_nothing_behind(sandbox, tmp_path, call) -> None:
    code = f"""
    from counterpoise.reinforcement import Sandbox
    sandbox = Sandbox(timeout=60)
    print("begins", flush=True)
    try:
        {call}
    except KeyboardInterrupt:
        sandbox.close()
        print("interrupted", flush=True)
    """
    with started(code, tmp_path) as script:
        assert script.stdout is not None and script.stdout.readline() == "begins\n"
        time.sleep(0.4)
        assert processes_in(tmp_path)
        script.send_signal(signal.SIGINT)
        out, err = script.communicate(timeout=30)
    assert (out, err, script.returncode) == ("interrupted\n", "", 0)
    assert_all_end(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_agents_end_with_their_process_and_not_with_its_forks(sandbox, tmp_path) -> None:
    code = """
    import os, signal, time
    from counterpoise.reinforcement import Sandbox
    sandbox = Sandbox()
    child = os.fork()
    if child == 0:
        os.close(1)
        os.close(2)
        time.sleep(20)
        os._exit(0)
    print(child, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    with started(code, tmp_path) as script:
        assert script.stdout is not None
        child = int(script.stdout.readline())
        script.wait()
        try:
            assert_all_end(tmp_path)
            os.kill(child, 0)  # it lives
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_time_out_that_is_short_is_not_that_of_the_proof(sandbox) -> None:
    with Sandbox(timeout=0.001) as hasty:
        assert hasty.run("while True: pass").status == "timeout"


def test_the_limit_on_processes_is_the_one_asked_for(sandbox) -> None:
    count = (
        "import os\nn = 1\nr, w = os.pipe()\nfor _ in range(40):\n    try:\n        child = os.fork()\n    except OSError:\n        break\n"
    )
    count += "    if child == 0:\n        os.close(w)\n        os.read(r, 1)\n        os._exit(0)\n    n += 1\nprint(n)"
    with Sandbox(timeout=2, processes=7) as few, Sandbox(timeout=2, processes=1) as one:
        assert few.run(count).stdout == "7\n"
        assert one.run(count).stdout == "1\n"


# -- the filter of system calls, on machines that are not at hand --------------------------------------------------------------------------


def answer_of(code: bytes, number: int, architecture: int, *arguments: int) -> int:
    """What a kernel would do: classic BPF over number, architecture, instruction pointer and arguments."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    steps, at, accumulator = [struct.unpack_from("=HBBI", code, place) for place in range(0, len(code), 8)], 0, 0
    while True:
        kind, if_true, if_false, k = steps[at]
        at += 1
        if kind == 0x06:
            return k
        if kind == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        else:
            holds = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[kind]
            at += if_true if holds else if_false


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("network", [True, False])
def test_the_filter_refuses_what_it_lists_and_nothing_else(machine, network) -> None:
    column, architecture = agent._MACHINES[machine]
    code = agent.filter_program(column, architecture, network)
    refused, unknown, allowed = 0x00050001, 0x00050026, 0x7FFF0000
    listed = [*agent._NUMBERS.values(), *(() if network else agent._NETWORK.values())]
    named = {numbers[column] for numbers in listed} | (set() if network else {agent._SOCKETPAIR[column]})  # whose first argument is 0 here
    for number in range(600):
        expected = refused if number in named else unknown if number == 435 else allowed
        assert answer_of(code, number, architecture) == expected, number

    def answers(numbers: tuple[int, int], *arguments: int) -> int:
        return answer_of(code, numbers[column], architecture, *arguments)

    assert answers(agent._CLONE, 17) == allowed  # a fork
    assert answers(agent._CLONE, 0x10000000 | 17) == refused  # in a user namespace
    assert answers(agent._SOCKETPAIR, 1) == allowed
    assert answers((444, 444)) == refused  # each of its rules is memory of the kernel that nobody counts
    assert (answers(agent._FCNTL, 3, 1031), answers(agent._FCNTL, 3, 1032), answers(agent._FCNTL, 1031, 1)) == (refused, allowed, allowed)
    assert (answers(agent._SETRLIMIT, 4), answers(agent._SETRLIMIT, 3)) == (refused, allowed)
    assert (answers(agent._PRLIMIT, 0, 4), answers(agent._PRLIMIT, 4, 3)) == (refused, allowed)
    # mmap: private or of a file, against shared and huge, and shared with its flags checked, without one
    flags = {0x02: allowed, 0x22: allowed, 0x01: allowed, 0x21: refused, 0x23: refused, 0x40022: refused, 0x40002: refused}
    assert {flag: answers(agent._MMAP, 0, 0, 0, flag) for flag in flags} == flags
    assert answer_of(code, 0, architecture ^ 1) == 0x80000000  # numbers of another architecture: killed
    if machine == "x86_64":
        assert answer_of(code, 0x40000000 | 57, architecture) == refused


# -- refusal: tested everywhere ---------------------------------------------------------------------------------------------------------


def test_without_isolation_nothing_runs(monkeypatch) -> None:
    monkeypatch.setattr(Sandbox, "_breach", lambda self: "namespaces are forbidden")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(IsolationError, match=r"bubblewrap: not installed; unshare: namespaces are forbidden\), so none is run"):
        Sandbox()
    with pytest.warns(RuntimeWarning, match="Programs are not isolated"), Sandbox(allow_unisolated=True) as sandbox:
        assert sandbox.backend == "subprocess" and sandbox.run("print(1)").stdout == "1\n"


def test_no_isolation_has_to_be_asked_for_twice() -> None:
    with pytest.raises(IsolationError, match="allow_unisolated=True"):
        Sandbox(backend="subprocess")
    with Sandbox(timeout=1, backend="subprocess", allow_unisolated=True) as sandbox:
        assert sandbox.run("print(input())", "here").stdout == "here\n"
        assert sandbox.run("while True: pass").status == "timeout"
        assert sandbox.run("import os; open('x', 'w'); print(os.listdir())").stdout == "['x']\n"
        assert sandbox.run("import os; print(os.listdir())").stdout == "[]\n"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"processes": 9}, "9 processes were started where 4 were allowed"),
        ({"first": False}, "no process namespace"),
        ({"privileged": True}, "root"),
        ({"files": True}, "files of this machine"),
        ({"network": True}, "network is within reach"),
    ],
)
def test_one_wall_that_is_missing_is_enough(monkeypatch, found, words) -> None:
    whole = {"processes": 4, "first": True, "privileged": False, "files": False, "network": False}
    probed = module.RunResult("ok", module.json.dumps(whole | found), "", 0.1, 10.0, 0)
    monkeypatch.setattr(Sandbox, "_run", lambda self, *_: probed)
    with pytest.raises(IsolationError, match=words):
        Sandbox(backend="unshare")


def test_without_a_view_of_its_processes_an_agent_does_not_start(sandbox, monkeypatch, tmp_path) -> None:
    """Their memory together would be 0, whatever they hold."""
    source = module.AGENT.read_text()
    without = source.replace('_mount("proc", target, "proc",', '_mount("proc", target, "no such",')
    assert without != source
    (tmp_path / "agent.py").write_text(without)
    monkeypatch.setattr(module, "AGENT", tmp_path / "agent.py")
    with pytest.raises(IsolationError, match="unshare: /proc cannot be mounted here"):
        Sandbox(backend="unshare")


@pytest.mark.skipif(os.geteuid() != 0, reason="the trap is one of root")
def test_a_namespace_mapped_to_root_in_which_the_limit_does_not_bind_is_refused() -> None:
    """As root in many containers: no privilege but to map users. There RLIMIT_NPROC is set, and binds nobody."""
    code = """
    import ctypes, struct
    libc, setfcap = ctypes.CDLL(None), 31
    for capability in set(range(64)) - {setfcap}:
        libc.prctl(24, capability, 0, 0, 0)
    libc.capset(struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", 1 << setfcap, 1 << setfcap, 0, 0, 0, 0))
    from counterpoise.reinforcement import Sandbox
    Sandbox(backend="unshare")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "IsolationError: Programs cannot be isolated here (unshare: " in done.stderr


def test_programs_that_attack_do_bite_where_nothing_holds_them(tmp_path) -> None:
    """Without isolation some of the harmless ones succeed: that they fail inside is not for another reason."""
    canary = tmp_path / "canary"
    canary.write_text("a secret")
    host = Host(str(canary), str(tmp_path / "mark"), os.getpid(), 9, "none")
    with Sandbox(timeout=1, backend="subprocess", allow_unisolated=True) as sandbox:
        for program in PROGRAMS:
            if program.name in {"a file of the host", "a file of the host through ..", "a server", "memory without a name"}:
                assert "BREACH" in sandbox.run(program.program(host), STDIN).stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timeout": 0}, "timeout: got 0; expected a number in"),
        ({"memory_mb": 1}, "memory_mb: got 1"),
        ({"processes": 0}, "processes: got 0"),
        ({"backend": "docker"}, "backend: got 'docker'; expected one of auto"),
    ],
)
def test_bad_options(options, words) -> None:
    with pytest.raises(InputError, match=words):
        Sandbox(**options)


def test_input_that_cannot_be_written_is_no_error_of_the_program(sandbox) -> None:
    with pytest.raises(InputError, match=r"stdin: got .*ud800.* at 1.*expected text that UTF-8 can write"):
        sandbox.run("print(1)", "1\ud800")
    assert sandbox.run("import os\nprint(os.read(0, 9))", "\udcff\u00e9").stdout == "b'\\xff\\xc3\\xa9'\n"


def test_programs_are_strings(sandbox) -> None:
    with pytest.raises(InputError, match="code: got b'pass'; expected a string"):
        sandbox.run(b"pass")
    with pytest.raises(InputError, match="workers"):
        sandbox.run_many([], workers=0)
