"""The inside of a :class:`Sandbox`: a small server that runs one untrusted program after the other, each in a jail of its own.

The host starts this file as a script, ``python -I -S _sandbox_agent.py CONFIG``; it imports nothing but the standard library. What happens:

1. **Build** (backend "unshare"): new mount, network, process, IPC, host-name and control-group namespaces; a root file system of read-only
   system folders; the old root is gone. With "bubblewrap" that was done before this script began, with "subprocess" nobody does it.
2. **Serve**: for each job, fork a runner that reads it, runs it, and answers with what the program wrote and how it ended. Warm modules are
   shared, so a run costs three forks. The server itself reads neither jobs nor outputs: a program finds nothing in its memory of those that
   were run before, such as the right answer to the same test.
3. **Jail** (each job): a process namespace of its own, whose end is the end of every process in it; an empty scratch folder in memory; an
   unprivileged user without capabilities, for whom limits on processes bind; a system-call filter. The program starts after all of that
   held; if a step fails, it does not start.

The expected output of a test never comes here: there is nothing to steal.
"""

from __future__ import annotations

import _socket
import atexit
import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import linecache
import os
import platform
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import types
from typing import Any, NoReturn

Job = dict[str, Any]
Answer = dict[str, Any]

MB = 1 << 20
STDOUT_MOST, STDERR_MOST = MB, 64 * 1024  # bytes kept; a program that writes more is ended
SCRATCH_MB, SCRATCH_FILES = 64, 4096
OPEN_FILES, SIGNALS_WAITING = 64, 128
JAIL_MOST = 30.0  # seconds to make a jail
TICK = 0.05  # seconds between two looks at the memory of all processes of a job together
# One pool of malloc for all threads: each further one takes up to 128 MB of the address space, and 15 threads would have all of it.
ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "TMPDIR": "/tmp", "MALLOC_ARENA_MAX": "1"}
WARM = (
    "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "heapq",
    "io", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "threading", "typing",
)  # fmt: skip

# linux/sched.h, sys/mount.h, sys/prctl.h
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x8000, 1, 2, 4
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 22, 38
SYS_MOUNT_SETATTR = 442  # the same number on every architecture

_libc = ctypes.CDLL(None, use_errno=True)


class SetupError(Exception):
    """A step of the isolation failed; the message says which."""


def _call(step: str, result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise SetupError(f"{step}: {os.strerror(code)}")


def _unshare(flags: int) -> None:
    _call(f"unshare({flags:#x})", _libc.unshare(flags))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, data)]
    _call(f"mount {target}", _libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3]))


def _prctl(option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    return int(_libc.prctl(option, *padded))


# ---- build: once per agent -------------------------------------------------------------------------------------------------------------


def build(config: dict[str, Any]) -> None:
    """New namespaces and a new root. Afterwards this is the first process of its namespace; the one that called waits for it."""
    if _machine() is None:
        raise SetupError(f"no numbers of system calls are known for {platform.machine()}")
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP | (0 if config["network"] else CLONE_NEWNET)
    uid, gid = os.geteuid(), os.getegid()
    try:
        _unshare(flags)
    except SetupError:  # no privilege here: a user namespace gives it, for what belongs to this namespace only
        _unshare(flags | CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        config["user_namespace"] = True
    if _libc.sethostname(b"sandbox", 7) != 0:
        raise SetupError("sethostname failed")
    first = os.fork()
    if first:
        # Nothing may keep the host's pipes open but the agent itself.
        os.closerange(0, 256)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) & 0xFF)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    _new_root(config["root"], config["readonly"])
    # The folder below the mounts: nothing can be added to it.
    _set_attributes("/", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, recursive=False)


def _new_root(root: str, readonly: list[str]) -> None:
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755,size=1m")
    for path in readonly:
        if os.path.islink(path):
            os.makedirs(root + os.path.dirname(path), exist_ok=True)
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.makedirs(root + path, exist_ok=True)
            _bind(path, root + path)
        elif os.path.exists(path):
            os.makedirs(root + os.path.dirname(path), exist_ok=True)
            os.close(os.open(root + path, os.O_CREAT | os.O_WRONLY, 0o644))
            _bind(path, root + path)
    for folder in ("/proc", "/tmp", "/dev"):
        os.makedirs(root + folder, exist_ok=True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{root}/dev/{name}")
    os.symlink("/tmp", f"{root}/dev/shm")  # locks and pools of multiprocessing: in the scratch folder, which is bounded
    for name in ("null", "full", "random", "urandom"):  # zero: shared memory without a file
        os.close(os.open(f"{root}/dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        _bind(f"/dev/{name}", f"{root}/dev/{name}")
    _mount_proc(root + "/proc", "")  # while the old one is seen: without it, a user namespace may mount none
    os.chdir(root)
    _call("pivot_root", _libc.syscall(_NUMBERS["pivot_root"][(_machine() or (0, 0))[0]], b".", b"."))
    _call("umount of the old root", _libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def _bind(source: str, target: str) -> None:
    _mount(source, target, None, MS_BIND | MS_REC)
    if not source.startswith("/dev/"):
        _set_attributes(target, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, recursive=True)


def _set_attributes(target: str, attributes: int, *, recursive: bool) -> None:
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    at = AT_RECURSIVE if recursive else 0
    _call(f"mount_setattr {target}", _libc.syscall(SYS_MOUNT_SETATTR, -100, target.encode(), at, wanted, ctypes.c_size_t(len(wanted))))


def _mount_proc(target: str, options: str) -> None:
    """A view of this process namespace only. Some containers forbid it; then the folder is empty, and the agent does not start."""
    try:
        _mount("proc", target, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, options)
    except SetupError:
        if os.listdir(target):  # another namespace's view must not be seen from here
            _mount("tmpfs", target, "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")


def _write(path: str, text: str) -> None:
    try:
        file = os.open(path, os.O_WRONLY)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
    except OSError as error:
        raise SetupError(f"{path}: {error.strerror}") from error


# ---- jail: once per program ------------------------------------------------------------------------------------------------------------


def jail(config: dict[str, Any], job: Job, streams: tuple[int, int, int], ready: int) -> NoReturn:
    """First process of the job's process namespace: makes the jail, starts the program, and ends when it ends. All others end with it."""
    code = 255
    try:
        _prctl(PR_SET_DUMPABLE, 0)  # no process of the program can look into this one
        _unshare(CLONE_NEWNS | CLONE_NEWIPC)
        _mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=1777,size={SCRATCH_MB}m,nr_inodes={SCRATCH_FILES}")
        _mount_proc("/proc", "subset=pid")
        os.chdir("/tmp")
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a handler, signals from inside do not reach the first process
        program = os.fork()
        if program == 0:
            _program(config, job, streams, ready)
        for fd in (*streams, ready):
            os.close(fd)
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == program:
                code = os.waitstatus_to_exitcode(status)
                break
    except BaseException as error:
        _say(ready, error)
    finally:  # whatever happens, this process never returns into the agent's loop
        os._exit(code if code >= 0 else 128 - code)


def _program(config: dict[str, Any], job: Job, streams: tuple[int, int, int], ready: int) -> NoReturn:
    """The program's own process: gives up every privilege, then runs the code. Never returns."""
    code = 255
    try:
        os.setsid()
        for number, fd in enumerate(streams):
            os.dup2(fd, number)
        os.dup2(ready, 3)
        ready = 3
        os.closerange(4, 256)
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        os.umask(0o077)
        _limits(config, job)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if config["isolated"]:
            _drop_bounds()
            if not config["user_namespace"]:
                for fd in (1, 2):  # so that /dev/stdout can be opened
                    os.fchown(fd, config["uid"], config["uid"])
                os.setgroups([])
                os.setresgid(config["uid"], config["uid"], config["uid"])
                os.setresuid(config["uid"], config["uid"], config["uid"])
            _drop_capabilities()
            _filter_system_calls(config["filter"])
        for number in (signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_IGN)
        os.write(3, b"+")
        os.close(3)
        code = _execute(job["code"])
    except BaseException as error:
        _say(ready, error)
    finally:
        os._exit(code)


def _limits(config: dict[str, Any], job: Job) -> None:
    seconds = int(job["timeout"]) + 2
    # In a user namespace the agent, its runner and the first process of the jail have the same user, and the process that waits outside.
    processes = job["processes"] + (4 if config["user_namespace"] else 0)
    wanted = {
        resource.RLIMIT_CPU: seconds,  # CPU time of each process; the clock on the wall is watched from outside
        resource.RLIMIT_AS: job["memory_mb"] * MB,
        resource.RLIMIT_FSIZE: SCRATCH_MB * MB,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        # Not 0, which a core_pattern with a pipe ignores: it starts a handler on the host for every crash. 1 is what forbids that.
        resource.RLIMIT_CORE: 1,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: SIGNALS_WAITING,  # and timers
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_NICE: 0,
    }
    if config["isolated"]:  # elsewhere all processes of this user would count
        wanted[resource.RLIMIT_NPROC] = processes
    for name, value in wanted.items():
        most = resource.getrlimit(name)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(name, (value, value))


def _drop_bounds() -> None:
    """No program that is started from here can gain a capability, whatever its file says."""
    for capability in range(64):
        if _prctl(PR_CAPBSET_DROP, capability) != 0:  # the last one this kernel knows lies behind
            break


def _drop_capabilities() -> None:
    header, data = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _call("capset", _libc.capset(header, data))
    _call("no_new_privs", _prctl(PR_SET_NO_NEW_PRIVS, 1))


def _say(fd: int, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, f"-{error}"[:500].encode("utf-8", "replace"))


def _execute(source: str) -> int:
    """Exit code of the program, run as ``__main__`` in this interpreter, which is given up afterwards."""
    gc.enable()
    name = "<program>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"], sys.argv = module, ["program.py"]
    code = 0
    try:
        try:
            exec(compile(source, name, "exec", dont_inherit=True), module.__dict__)
        except SystemExit as error:
            code = _exit_code(error)
        except BaseException as error:
            code = 1
            traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        # Threads that are not daemons are waited for, as the interpreter does.
        threading = sys.modules["threading"]
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        return code or 120
    return code


def _exit_code(error: SystemExit) -> int:
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


# ---- the filter of system calls --------------------------------------------------------------------------------------------------------

# name -> number on x86-64, on ARM64. A program that sorts a list needs none of them; holes in kernels were found in most.
_NUMBERS = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262), "vmsplice": (278, 75),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "personality": (135, 92), "syslog": (103, 116),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224), "acct": (163, 89), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112),
    # Memory that no limit of a process counts, or that the whole machine has little of.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "splice": (275, 76), "tee": (276, 77), "io_setup": (206, 0),
    "inotify_init": (253, 26), "inotify_init1": (294, 26), "landlock_create_ruleset": (444, 444),
}  # fmt: skip
# Refused without a network. What is left is a pair of connected sockets, whose buffers cannot be enlarged, and which cannot hold others.
_NETWORK = {"socket": (41, 198), "setsockopt": (54, 208), "sendmsg": (46, 211), "sendmmsg": (307, 269)}
_CLONE, _CLONE3, _MMAP, _FCNTL = (56, 220), 435, (9, 222), (72, 25)
_SETRLIMIT, _PRLIMIT, _SOCKETPAIR = (160, 164), (302, 261), (53, 199)
MAP_SHARED, MAP_ANONYMOUS, MAP_HUGETLB, F_SETPIPE_SZ, AF_UNIX = 1, 32, 0x40000, 1031, 1
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NEW_NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
)  # fmt: skip


def _machine() -> tuple[int, int] | None:
    """Column of the numbers above and the kernel's name of the architecture; None where they are not known."""
    return _MACHINES.get(platform.machine()) if sys.maxsize > 2**32 else None


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def filter_program(column: int, architecture: int, network: bool) -> bytes:
    """Classic BPF over ``struct seccomp_data``: number at byte 0, architecture at 4, first argument at 16, second at 24, fourth at 40."""
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    refuse, unknown = _ERRNO | errno.EPERM, _ERRNO | errno.ENOSYS
    steps = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, _KILL), (load, 0, 0, 0)]
    if column == 0:  # numbers of the x32 interface
        steps += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, refuse)]
    for numbers in [*_NUMBERS.values(), *(() if network else _NETWORK.values())]:
        steps += [(equal, 0, 1, numbers[column]), (answer, 0, 0, refuse)]
    # clone3 hides its flags in memory, where a filter cannot look; the C library then takes clone.
    steps += [(equal, 0, 1, _CLONE3), (answer, 0, 0, unknown)]
    has, is_, is_not = (any_bit, 0, 1), (equal, 0, 1), (equal, 1, 0)
    by_argument = [
        (_CLONE, 16, has, _NEW_NAMESPACES),
        (_FCNTL, 24, is_, F_SETPIPE_SZ),
        (_SETRLIMIT, 16, is_, resource.RLIMIT_CORE),
        (_PRLIMIT, 24, is_, resource.RLIMIT_CORE),
        (_MMAP, 40, has, MAP_HUGETLB),  # pages that the machine has set aside, in nobody's resident memory
        *([] if network else [(_SOCKETPAIR, 16, is_not, AF_UNIX)]),
    ]
    for numbers, place, test, value in by_argument:
        steps += [(load, 0, 0, 0), (equal, 0, 3, numbers[column]), (load, 0, 0, place), (*test, value), (answer, 0, 0, refuse)]
    # Shared memory without a file stays when a process drops it from its resident memory, where it is counted.
    steps += [(load, 0, 0, 0), (equal, 0, 4, _MMAP[column]), (load, 0, 0, 40)]
    steps += [(any_bit, 0, 2, MAP_SHARED), (any_bit, 0, 1, MAP_ANONYMOUS), (answer, 0, 0, refuse)]
    return b"".join(struct.pack("=HBBI", *step) for step in [*steps, (answer, 0, 0, _ALLOW)])


def _compiled_filter(network: bool) -> _Filter | None:
    """Where the machine is unknown, there is no filter: the other layers stand without it."""
    machine = _machine()
    if machine is None:
        return None
    code = filter_program(*machine, network)
    return _Filter(len(code) // 8, code)


def _filter_system_calls(program: _Filter | None) -> None:
    if program is None:
        return
    result = _prctl(PR_SET_SECCOMP, 2, ctypes.addressof(program))
    if result != 0 and ctypes.get_errno() != errno.EINVAL:  # EINVAL: a kernel without seccomp
        _call("seccomp", result)


# ---- serve -----------------------------------------------------------------------------------------------------------------------------


def run(config: dict[str, Any], job: Job, control: int) -> Answer | None:
    """What became of one program; None if the host went away."""
    out, to_out = os.pipe()
    err, to_err = os.pipe()
    began, to_began = os.pipe()
    stdin = os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    _write_all(stdin, job["stdin"].encode("utf-8", "surrogateescape"))
    os.lseek(stdin, 0, os.SEEK_SET)
    fcntl.fcntl(stdin, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    streams = (stdin, to_out, to_err)
    folder = "" if config["isolated"] else tempfile.mkdtemp(dir=config["root"])
    if config["isolated"]:
        _unshare(CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        os.close(control)
        with contextlib.suppress(SetupError):  # where memory is short, the kernel ends a program before the training
            _write("/proc/self/oom_score_adj", "1000")
        if config["isolated"]:
            jail(config, job, streams, to_began)
        os.chdir(folder)
        _program(config, job, streams, to_began)
    for fd in (*streams, to_began):
        os.close(fd)
    gone = os.pidfd_open(child)
    texts = {out: bytearray(), err: bytearray()}
    most = {out: STDOUT_MOST, err: STDERR_MOST}
    started, ended, said = _wait_for_the_jail(began, control)
    if ended == "began":
        ended = _watch(job, config, gone, control, texts, most, started)
    if ended != "exited":
        _kill(config, child)
    _, status, usage = os.wait4(child, 0)
    if not config["isolated"]:
        _kill(config, child)  # those that the program left behind in its group
        shutil.rmtree(folder, ignore_errors=True)
    seconds = time.monotonic() - started
    for fd, text in texts.items():
        if ended == "exited" and _drain(fd, text, most[fd]):
            ended = "output"
    for fd in (out, err, began, gone):
        os.close(fd)
    if ended == "host gone":
        return None
    if ended == "setup":
        return {"setup": said[1:].decode("utf-8", "replace") or "the jail could not be made"}
    code = os.waitstatus_to_exitcode(status)
    code = code if code >= 0 else 128 - code
    if ended == "exited":
        ended = "ok" if code == 0 else "timeout" if code == 128 + signal.SIGXCPU else "error"
    texts_as = {"stdout": texts[out], "stderr": texts[err]}
    answer: Answer = {name: bytes(text).decode("utf-8", "replace") for name, text in texts_as.items()}
    return answer | {"status": ended, "exit_code": code, "seconds": seconds, "peak_mb": usage.ru_maxrss / 1024}


def _wait_for_the_jail(began: int, control: int) -> tuple[float, str, bytes]:
    """When the program began, "began", "setup" or "host gone", and what was said. Only from here on does its time run."""
    poll = select.poll()
    poll.register(began, select.POLLIN)
    poll.register(control, select.POLLHUP)
    events = {fd for fd, _ in poll.poll(JAIL_MOST * 1000)}
    now = time.monotonic()
    if control in events:
        return now, "host gone", b""
    said = os.read(began, 512) if events else b"-it took too long"
    return now, "began" if said == b"+" else "setup", said


def _watch(
    job: Job, config: dict[str, Any], gone: int, control: int, texts: dict[int, bytearray], most: dict[int, int], started: float
) -> str:
    """Collects output until the program has ended, or has to be ended: "exited", "timeout", "output", "memory", "host gone"."""
    poll = select.poll()
    for fd in (*texts, gone):
        poll.register(fd, select.POLLIN)
    poll.register(control, select.POLLHUP)
    deadline, look = started + job["timeout"], started + TICK
    while True:
        now = time.monotonic()
        if now >= deadline:
            return "timeout"
        if now >= look:
            look = now + TICK
            if config["isolated"] and _memory_mb(config["socket_kb"]) > job["memory_mb"]:
                return "memory"
        for fd, _ in poll.poll(max(0.0, min(deadline, look) - now) * 1000 + 0.5):
            if fd == control:
                return "host gone"
            if fd == gone:
                return "exited"
            piece = os.read(fd, 65536)
            texts[fd] += piece
            if len(texts[fd]) > most[fd]:
                del texts[fd][most[fd] :]
                return "output"
            if not piece:
                poll.unregister(fd)


def _memory_mb(socket_kb: float) -> float:
    """Memory of all processes of the job beyond what they share with this one, with their page tables, and what their sockets may hold."""
    own = _held_kb(os.getpid())
    held = _sockets() * socket_kb if socket_kb else 0.0
    for process in {int(name) for name in os.listdir("/proc") if name.isdigit()} - {1, os.getppid(), os.getpid()}:
        with contextlib.suppress(OSError):  # it has just ended
            held += max(0, _held_kb(process) - own)
    return held / 1024


def _held_kb(process: int) -> int:
    """Pages of files aside, which the kernel can read again. Page tables: those of pages that lie far apart exceed the pages."""
    fields = _status(f"/proc/{process}/status")
    if b"RssAnon" not in fields:  # its first thread has ended; others may not have
        for thread in os.listdir(f"/proc/{process}/task"):
            with contextlib.suppress(OSError):
                fields |= _status(f"/proc/{process}/task/{thread}/status")
    return sum(int(fields[name].split()[0]) for name in (b"RssAnon", b"RssShmem", b"VmSwap", b"VmPTE") if name in fields)


def _status(path: str) -> dict[bytes, bytes]:
    with open(path, "rb") as file:  # the name in it is the program's choice
        return {name: value for name, _, value in (line.partition(b":") for line in file)}


def _sockets() -> int:
    """Sockets in this network namespace that anything is left of."""
    with open("/proc/self/net/sockstat") as file:
        return int(file.readline().split()[2])


def _check_memory_is_seen(network: bool) -> float:
    """Most kB that a socket may buffer: twice its limit, which the last message may exceed; 0 if sockets cannot be told from the host's.

    Without /proc, the memory of all processes of a job together would be 0 whatever they hold.
    """
    try:
        seen = _held_kb(os.getpid()) > 1024 and _sockets() >= 0  # an interpreter holds more than a MB
    except OSError as error:
        raise SetupError("/proc cannot be mounted here, so nobody could watch the memory of all processes together") from error
    if not seen:
        raise SetupError("/proc does not show here what memory processes hold")
    if network:
        return 0.0
    one, other = _socket.socketpair()
    with contextlib.closing(one), contextlib.closing(other):
        return 2 * one.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF) / 1024


def _kill(config: dict[str, Any], child: int) -> None:
    try:
        if config["isolated"]:
            os.kill(child, signal.SIGKILL)  # the first process of a namespace: the kernel ends all the others
        else:
            os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def _drain(fd: int, text: bytearray, most: int) -> bool:
    """Reads what is left in a pipe; True if that is too much."""
    os.set_blocking(fd, False)
    while len(text) <= most:
        piece = _read_some(fd)
        if not piece:
            return False
        text += piece
    del text[most:]
    return True


def _read_some(fd: int) -> bytes | None:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return None


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _send(fd: int, answer: Answer) -> None:
    data = json.dumps(answer).encode()
    _write_all(fd, struct.pack("=I", len(data)) + data)


def _receive(fd: int) -> Job | None:
    head = _exactly(fd, 4)
    body = head and _exactly(fd, struct.unpack("=I", head)[0])
    return json.loads(body) if body else None


def _exactly(fd: int, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = os.read(fd, min(count - len(data), MB))
        if not piece:
            return None
        data += piece
    return bytes(data)


def main() -> None:
    config: dict[str, Any] = json.loads(sys.argv[1])
    config["user_namespace"] = bool(config.get("user_namespace"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    control, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    os.close(nothing)
    try:
        if config["build"]:
            build(config)
        if config["isolated"]:
            config["filter"] = _compiled_filter(config["network"])  # once: a run has no time for it
            config["socket_kb"] = _check_memory_is_seen(config["network"])
    except (SetupError, OSError) as error:
        _send(answers, {"setup": str(error)})
        return
    for name in WARM:
        __import__(name)
    gc.disable()
    gc.freeze()
    _send(answers, {"ready": True, "user_namespace": config["user_namespace"]})
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while poll.poll():
        runner = os.fork()
        if runner == 0:
            _serve_one(config, control, answers)
        if os.waitpid(runner, 0)[1] != 0:  # the host is gone, or the runner: all that is left ends with this process
            return
        os.write(answers, b".")


def _serve_one(config: dict[str, Any], control: int, answers: int) -> NoReturn:
    """Reads one job, runs it, answers, and ends with everything it has read; 1 if there is no host to answer."""
    code = 1
    try:
        job = _receive(control)
        if job is not None:
            try:
                answer = run(config, job, control)
            except (SetupError, OSError) as error:
                answer = {"setup": str(error)}
            if answer is not None:
                _send(answers, answer)
                code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
