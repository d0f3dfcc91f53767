"""Untrusted code under real isolation, and a plain refusal where there is none.

A reward from unit tests runs what a model wrote, thousands of times a minute, on the machine that trains it. Setting a few functions of
``os`` to None (the usual guard) is no wall: the program has the same user, files, network and interpreter as the judge. Here a program runs
behind several walls, any of which may fail alone:

========================  ==================================================================================================
processes                 a namespace of its own per run; when its first process goes, the kernel ends all others
number of processes       RLIMIT_NPROC of an unprivileged user. It does *not* bind root, nor root of a user namespace that is
                          mapped to root, so every start proves it on a harmless program and refuses if it does not hold
files                     read-only system folders, the interpreter, and an empty scratch folder of 64 MB in memory
network                   an empty network namespace, and no sockets
memory                    RLIMIT_AS per process; of all processes together, every 50 ms: pages (those in swap, too), page tables, and what
                          their sockets may buffer. Calls that hold other memory of the kernel are refused, or bounded by a limit
time                      wall clock from outside, RLIMIT_CPU
output                    1 MB of stdout and 64 kB of stderr; a program that writes more is ended
privileges, system calls  no capability, no_new_privs, a seccomp filter (x86-64 and ARM64), made here without a library
========================  ==================================================================================================

Landlock and control groups are not used: a group that this process may make limits in is rare. What is not counted is small or bounded:
pipes (64 kB each, 32 MB with 16 processes), the scratch folder, the kernel's notes on mappings and locks of files, and up to as much per
process as the warm interpreter holds. A memory limit of the container bounds the rest; where memory runs short, the kernel ends programs
first.

A kernel with an unknown hole is not a wall either: for programs of an adversary, rather than of a model in training, put this into a
virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from counterpoise._errors import CounterpoiseError, bad_input, check_choice, check_range

__all__ = ["IsolationError", "RunResult", "Sandbox"]

Status = Literal["ok", "error", "timeout", "memory", "output", "lost"]
BACKENDS = ("auto", "bubblewrap", "unshare", "subprocess")
AGENT = Path(__file__).with_name("_sandbox_agent.py")
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
START_MOST, GRACE = 60.0, 45.0  # seconds: until an agent is ready; beyond the time-out of a program until its agent is given up
FREE_USERS = range(52_000, 60_000)  # numbers that distributions leave to nobody

# Forks at most 8 children that wait, opens a file, sends a packet to an address reserved for documentation: harmless where it succeeds.
PROBE_PROCESSES, PROBE_TIMEOUT = 4, 30.0
PROBE = """
import json, os, socket, sys
secret = sys.stdin.read()
wait, release = os.pipe()
children = 0
for _ in range(8):
    try:
        child = os.fork()
    except OSError:
        break
    if child == 0:
        os.close(release)
        os.read(wait, 1)
        os._exit(0)
    children += 1
os.close(release)
def works(attempt):
    try:
        attempt()
    except OSError:
        return False
    return True
def send():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.connect(("192.0.2.1", 9))
print(json.dumps({
    "processes": children + 1,
    "first": os.getppid() == 1,
    "privileged": os.geteuid() == 0 or works(lambda: os.setuid(0)),
    "files": os.path.exists(secret) or works(lambda: open("/usr/counterpoise", "x")),
    "network": works(send),
}))
"""


class IsolationError(CounterpoiseError, RuntimeError):
    """Untrusted code cannot be isolated here, so it is not run."""


@dataclass(frozen=True)
class RunResult:
    """How one program ended.

    Attributes
    ----------
    status : str
        "ok" (exit code 0), "error" (any other exit code, or a signal), "timeout", "memory" (all processes together held more than
        ``memory_mb``), "output" (it wrote more than is kept), "lost" (the sandbox went away twice while it ran). An allocation that the
        limit refuses is a ``MemoryError``: "error".
    stdout, stderr : str
        What it wrote, bytes that are no UTF-8 replaced; at most 1 MB and 64 kB.
    seconds : float
        Time on the clock.
    peak_mb : float
        Largest resident memory of one of its processes, the interpreter included.
    exit_code : int
        Of the program; 128 + the number of the signal that ended it.
    """

    status: Status
    stdout: str
    stderr: str
    seconds: float
    peak_mb: float
    exit_code: int

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.status == "ok"


class Sandbox:
    """Runs Python programs that nobody has read.

    A program is run as ``python -I -S`` runs a script: standard library only, no environment, stdin from a string. Nothing that it does
    outlives it, and it finds nothing in its memory of the programs before it. An agent inside the isolation forks a warm interpreter for
    each program; agents are started as ``run_many`` asks for them, and end with the sandbox, or with the process that made it, however
    that ends. Memory that is shared without a file (``mmap.mmap(-1, ...)``) is refused; ``multiprocessing`` works where it forks.

    Parameters
    ----------
    timeout : float, default=5.0
        Seconds on the clock that one program may take.
    memory_mb : int, default=512
        Address space of each process, and memory of all of them together, looked at every 50 ms.
    processes : int, default=16
        Processes and threads that a program may have at once, itself included.
    network : bool, default=False
        Leave the network of this machine open to the programs. Everything it reaches, they reach; buffers of their sockets are not counted.
    backend : {"auto", "bubblewrap", "unshare", "subprocess"}, default="auto"
        What builds the isolation: the tool bubblewrap where it is installed, else the system call. "auto" takes the first that proves
        itself. "subprocess" isolates nothing: limits on time, memory, files and output only.
    allow_unisolated : bool, default=False
        Accept "subprocess", with a warning, where nothing better works. Only for code that you would run anyway.

    Attributes
    ----------
    backend : str
        The one in use.

    Raises
    ------
    IsolationError
        If no backend isolates here, saying why, or "subprocess" was asked for without ``allow_unisolated``. A backend counts only if a
        harmless program inside it can neither start more processes than it may, nor see a file of this one, nor write, nor reach a network.

    Notes
    -----
    Every start proves the isolation with that program: 0.1 to 0.3 seconds. Objects may be used from several threads, and copied to other
    processes, which start agents of their own, as forks do. Each agent of a machine runs its programs in namespaces of its own, and as a
    user of its own where it is root: ranks of one training neither share a limit nor reach each other's programs.

    Examples
    --------
    >>> from counterpoise.reinforcement import Sandbox
    >>> with Sandbox(timeout=2) as sandbox:  # doctest: +SKIP
    ...     result = sandbox.run("print(sum(map(int, input().split())))", "1 2 3")
    ...     result.status, result.stdout
    ('ok', '6\\n')
    """

    def __init__(
        self,
        timeout: float = 5.0,
        memory_mb: int = 512,
        processes: int = 16,
        network: bool = False,
        backend: str = "auto",
        *,
        allow_unisolated: bool = False,
    ) -> None:
        check_range("timeout", timeout, low=0, high=3600, open_low=True)
        check_range("memory_mb", memory_mb, low=64, integer=True)
        check_range("processes", processes, low=1, high=4096, integer=True)
        check_choice("backend", backend, BACKENDS)
        self.timeout, self.memory_mb, self.processes, self.network = float(timeout), int(memory_mb), int(processes), bool(network)
        self._asked = {"backend": backend, "allow_unisolated": allow_unisolated}
        self._lock = threading.Lock()
        self._idle: list[_Agent] = []
        self._closed = False
        _sandboxes.add(self)
        # Without a reference to this object: it shall not live for its own end.
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        self.backend = self._choose(backend, allow_unisolated)

    # ---- what people call --------------------------------------------------------------------------------------------------------------

    def run(self, code: str, stdin: str = "") -> RunResult:
        """Run one program to its end, or to one of its limits."""
        for name, text in (("code", code), ("stdin", stdin)):
            if not isinstance(text, str):
                bad_input(name, text, "a string")
        try:
            stdin.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            bad_input("stdin", f"{stdin[error.start]!r} at {error.start}", "text that UTF-8 can write", "Half of a surrogate pair?")
        return self._run(code, stdin, self.processes, self.timeout)

    def run_many(self, jobs: Iterable[tuple[str, str]], workers: int | None = None) -> list[RunResult]:
        """Results of ``(code, stdin)`` pairs in their order, ``workers`` at a time.

        By default as many as this process has cores, and no more than its share of the machine's if it is one of several that were started
        together (``LOCAL_WORLD_SIZE``, as torchrun sets it). Interrupted, it starts no other and waits for those that run.
        """
        if workers is None:
            workers = _cores()
        check_range("workers", workers, low=1, integer=True)
        pairs = list(jobs)
        if workers == 1 or len(pairs) < 2:
            return [self.run(code, stdin) for code, stdin in pairs]
        with ThreadPoolExecutor(min(workers, len(pairs))) as pool:
            try:
                return [job.result() for job in [pool.submit(self.run, *pair) for pair in pairs]]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def close(self) -> None:
        """End the agents; nothing can be run afterwards."""
        with self._lock:
            self._closed = True
        self._finalizer()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., Sandbox], tuple[Any, ...]]:
        settings = (self.timeout, self.memory_mb, self.processes, self.network, self._asked["backend"], self._asked["allow_unisolated"])
        return _again, settings

    def __repr__(self) -> str:
        return (
            f"Sandbox(timeout={self.timeout:g}, memory_mb={self.memory_mb}, processes={self.processes}, network={self.network}, "
            f"backend={self.backend!r})"
        )

    # ---- choosing ----------------------------------------------------------------------------------------------------------------------

    def _choose(self, backend: str, allow_unisolated: bool) -> str:
        if backend == "subprocess" and not allow_unisolated:
            raise IsolationError(
                "backend='subprocess' isolates nothing: programs would have your files, your network and your user. "
                "Sandbox(backend='subprocess', allow_unisolated=True) runs them all the same."
            )
        reasons = []
        for name in ("bubblewrap", "unshare") if backend == "auto" else (backend,):
            self.backend = name
            reason = self._refusal(name)
            if reason is None:
                return name
            reasons.append(f"{name}: {reason}")
        if backend == "auto" and allow_unisolated:
            self.backend = "subprocess"
            if self._refusal("subprocess") is None:
                warnings.warn(f"Programs are not isolated ({'; '.join(reasons)}).", RuntimeWarning, stacklevel=3)
                return "subprocess"
        raise IsolationError(
            f"Programs cannot be isolated here ({'; '.join(reasons)}), so none is run. Install bubblewrap, or run where namespaces are "
            "allowed; Sandbox(allow_unisolated=True) runs code that you trust with limits only."
        )

    def _refusal(self, backend: str) -> str | None:
        """Why this backend is not good enough; None if a harmless program has found every wall in its place."""
        if not sys.platform.startswith("linux"):
            return "needs Linux"
        if backend == "bubblewrap" and shutil.which("bwrap") is None:
            return "not installed"
        try:
            if backend == "subprocess":
                self._idle.append(_Agent(backend, self.network))
                return None
            return self._breach()
        except IsolationError as error:
            return str(error)

    def _breach(self) -> str | None:
        with tempfile.NamedTemporaryFile(prefix="counterpoise-secret-") as secret:
            result = self._run(PROBE, secret.name, PROBE_PROCESSES, PROBE_TIMEOUT)
        if not result.ok:
            return f"a harmless program ended with {result.status!r}: {result.stderr.strip()[-200:]}"
        found = json.loads(result.stdout)
        walls = {
            f"{found['processes']} processes were started where {PROBE_PROCESSES} were allowed": found["processes"] > PROBE_PROCESSES,
            "there is no process namespace": not found["first"],
            "the user of the program is root": found["privileged"],
            "files of this machine are within reach": found["files"],
            "the network is within reach": found["network"] and not self.network,
        }
        broken = [words for words, open_ in walls.items() if open_]
        if broken:
            _close_all(self._idle)
        return ", ".join(broken) or None

    # ---- running -----------------------------------------------------------------------------------------------------------------------

    def _run(self, code: str, stdin: str, processes: int, timeout: float) -> RunResult:
        job = {"code": code, "stdin": stdin, "timeout": timeout, "memory_mb": self.memory_mb, "processes": processes}
        refusal = ""
        for new in (False, True):  # an agent that went away, or could not make a jail, is replaced once, by one that has not been used
            agent = self._take(new)
            try:
                answer = agent.ask(job, timeout + GRACE)
            except BaseException:
                agent.close()
                raise
            if answer is not None and "setup" not in answer:
                self._give_back(agent)
                return RunResult(**answer)
            agent.close()
            refusal = answer["setup"] if answer is not None else ""
        if refusal:
            raise IsolationError(f"The program was not run: {refusal}.")
        return RunResult("lost", "", "the sandbox was lost twice while this program ran", 0.0, 0.0, 255)

    def _take(self, new: bool) -> _Agent:
        with self._lock:
            if self._closed:
                raise IsolationError("This sandbox was closed; make a new one.")
            while self._idle and not new:
                agent = self._idle.pop()
                if agent.alive():
                    return agent
                agent.close()
        return _Agent(self.backend, self.network)

    def _give_back(self, agent: _Agent) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(agent)
                return
        agent.close()

    def _start_over(self) -> None:
        """In a new fork: another thread of the parent may have held the lock, and the agents are the parent's."""
        self._lock = threading.Lock()
        self._idle.clear()


def _cores() -> int:
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "")
    share = (os.cpu_count() or 1) // max(1, int(ranks) if ranks.isdigit() else 1)
    return max(1, min(len(os.sched_getaffinity(0)), share))


def _again(timeout: float, memory_mb: int, processes: int, network: bool, backend: str, allow_unisolated: bool) -> Sandbox:
    return Sandbox(timeout, memory_mb, processes, network, backend, allow_unisolated=allow_unisolated)


def _close_all(agents: list[_Agent]) -> None:
    while agents:
        agents.pop().close()


def _after_fork() -> None:
    """What a fork inherits stays its parent's: not ended from here, but not held open either, so that it ends with the parent."""
    for agent in list(_agents):
        agent.let_go()
        _of_parents.append(agent)  # for ever: its end would wait for a process that is not a child of this one
    _agents.clear()
    for sandbox in list(_sandboxes):
        sandbox._start_over()


_sandboxes: weakref.WeakSet[Sandbox] = weakref.WeakSet()
_agents: weakref.WeakSet[_Agent] = weakref.WeakSet()
_of_parents: list[_Agent] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# ---- one agent -------------------------------------------------------------------------------------------------------------------------


class _Agent:
    """The process that runs programs, one at a time, seen from outside.

    Frames: four bytes of length, then JSON; behind an answer, one byte more once the runner of that program has ended.
    """

    def __init__(self, backend: str, network: bool) -> None:
        isolated = backend != "subprocess"
        self._reserved: socket.socket | None = None
        self._root = tempfile.mkdtemp(prefix="counterpoise-sandbox-")
        with tempfile.TemporaryFile() as stderr:
            try:
                user = os.geteuid()
                if isolated and user == 0:
                    user, self._reserved = _reserve_user()
                config = {
                    "build": backend == "unshare", "isolated": isolated, "network": network, "root": self._root, "readonly": _readonly(),
                    "uid": user, "user_namespace": backend == "bubblewrap" and os.geteuid() != 0,
                }  # fmt: skip
                python = [os.path.realpath(sys.executable), "-I", "-S", "-B", "-X", "utf8"]
                wrapped = _bubblewrap(network) if backend == "bubblewrap" else []
                self._process = subprocess.Popen(
                    [*wrapped, *python, str(AGENT), json.dumps(config)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env={"MALLOC_ARENA_MAX": "1"}, cwd="/",
                    start_new_session=True, bufsize=0,
                )  # fmt: skip
            except BaseException:
                self._tidy()
                raise
            _agents.add(self)
            try:
                hello = self._receive(START_MOST)
                if hello is None or "setup" in hello:
                    stderr.seek(0)
                    said = stderr.read().decode("utf-8", "replace").strip()[-200:]
                    raise IsolationError(hello["setup"] if hello else said or "the agent did not start")
                if isolated:  # it was a place to mount on, in a name space of its own
                    os.rmdir(self._root)
            except BaseException:
                self.close()
                raise

    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: dict[str, Any], most: float) -> dict[str, Any] | None:
        """The agent's answer; None if it is gone, or gives none in ``most`` seconds."""
        data = json.dumps(job).encode()
        try:
            assert self._process.stdin is not None
            view = memoryview(struct.pack("=I", len(data)) + data)
            while view:
                view = view[self._process.stdin.write(view) :]
        except BrokenPipeError:
            return None
        answer = self._receive(most)
        ended = self._exactly(1, time.monotonic() + GRACE) if answer is not None else None
        return answer if ended else None

    def close(self) -> None:
        """Kills it; all processes inside end with it."""
        if self.alive():  # else its number may be another process's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self.let_go()
        self._process.wait()
        self._tidy()

    def let_go(self) -> None:
        """Closes this process's ends of the pipes. An agent whose pipes nobody holds ends."""
        for held in (self._process.stdin, self._process.stdout, self._reserved):
            if held is not None:
                held.close()

    def _tidy(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
        shutil.rmtree(self._root, ignore_errors=True)

    def _receive(self, most: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + most
        head = self._exactly(4, deadline)
        body = head and self._exactly(struct.unpack("=I", head)[0], deadline)
        return json.loads(body) if body else None

    def _exactly(self, count: int, deadline: float) -> bytes | None:
        assert self._process.stdout is not None
        fd, data = self._process.stdout.fileno(), bytearray()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        while len(data) < count:
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            piece = os.read(fd, min(count - len(data), 1 << 20))
            if not piece:
                return None
            data += piece
        return bytes(data)


def _readonly() -> list[str]:
    """What a program may read: the system's libraries and this interpreter with its standard library."""
    own = {os.path.realpath(sys.executable), *(f"{prefix}/lib" for prefix in (sys.base_prefix, sys.base_exec_prefix) if prefix != "/")}
    return [*SYSTEM, *sorted(path for path in own if not path.startswith(tuple(f"{system}/" for system in SYSTEM)))]


def _bubblewrap(network: bool) -> list[str]:
    """The agent keeps the privileges of its namespaces, to make a jail for each program; the programs have none. No session of its own: it
    has that of its agent, and is ended with that group."""
    command = ["bwrap", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox"]
    command += [] if network else ["--unshare-net"]
    command += [] if os.geteuid() == 0 else ["--unshare-user"]
    shown = [*_readonly(), str(AGENT)]
    for folder in sorted({str(parent) for path in shown for parent in Path(path).parents if str(parent) != "/"} | {"/dev"}):
        command += ["--perms", "0755", "--dir", folder]
    for path in shown:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    for name in ("null", "full", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        command += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    command += ["--symlink", "/tmp", "/dev/shm", "--proc", "/proc", "--tmpfs", "/tmp", "--remount-ro", "/"]
    return [shutil.which("bwrap") or "bwrap", *command[1:], "--cap-add", "ALL", "--"]


def _reserve_user() -> tuple[int, socket.socket]:
    """A user number without a name that no other agent has - limits are counted per user, over all processes of the machine - and what
    keeps it reserved: a socket bound to a name without a file, which the kernel gives to one process and takes back when that ends.
    """
    first = int.from_bytes(os.urandom(4), "little")  # containers on one machine do not see each other's sockets
    for step in range(len(FREE_USERS)):
        number = FREE_USERS[(first + step) % len(FREE_USERS)]
        if not _is_known(number):
            lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                lock.bind(f"\0counterpoise-sandbox-user-{number}")
                return number, lock
            except OSError:
                lock.close()
    raise IsolationError("no user number is free for programs")


def _is_known(number: int) -> bool:
    import pwd  # not on every system where this module can be imported, and refuse

    try:
        pwd.getpwuid(number)
    except KeyError:
        return False
    return True
