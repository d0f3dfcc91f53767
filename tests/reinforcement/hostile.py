# ruff: noqa: E501 - a program in as few lines as it needs
"""Programs that try to cheat the judge or to harm the machine.

Every one bounds itself - at most 200 processes, 1 GiB of memory or disk, 10 seconds - and does no more to the machine than it needs to notice
that it could: a hole in the isolation fails a test and not the machine. What succeeds although it must not prints BREACH. Names in @ are
filled in: a file, a process, a port and a socket of the host.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

STDIN, EXPECTED = "2 3\n", "5\n6\n"  # the task: print the sum, then the product
ANSWER = 'print("5\\n6", flush=True)\n'

PRELUDE = """
import ctypes, os, signal, sys, time
signal.alarm(10)
def breach(what):
    print("BREACH", what, flush=True)
def works(attempt):
    try:
        attempt()
    except BaseException:
        return False
    return True
libc = ctypes.CDLL(None, use_errno=True)
def allowed(call, *arguments):  # of the numbers of x86-64
    return os.uname().machine == "x86_64" and (libc.syscall(call, *arguments) >= 0 or ctypes.get_errno() not in (1, 38))
"""


class Host(NamedTuple):
    """What a program is told about the machine it runs on."""

    canary: str
    mark: str
    process: int
    port: int
    abstract: str

    def fill(self, code: str) -> str:
        for name, value in self._asdict().items():
            code = code.replace(f"@{name.upper()}@", str(value))
        return code


@dataclass(frozen=True)
class Hostile:
    """``passes``: whether the right verdict is that the test is passed, whatever else was tried."""

    name: str
    code: str
    passes: bool = False
    prelude: bool = True

    def program(self, host: Host) -> str:
        return host.fill((PRELUDE if self.prelude else "") + self.code)


PROGRAMS = [
    # -- answers that are not the answer
    Hostile("first line only", "print(5)", prelude=False),
    Hostile("lines too many", 'print("5\\n6\\n7")', prelude=False),
    Hostile("nothing, exit 0", "import os; os._exit(0)", prelude=False),
    Hostile("sys.exit(0)", "import sys; sys.exit(0)", prelude=False),
    Hostile("answer, exit code 3", ANSWER + "sys.exit(3)"),
    Hostile("answer, then an exception", ANSWER + "raise ValueError"),
    Hostile("answer, then a segmentation fault", ANSWER + "ctypes.string_at(0)"),
    Hostile("answer, failure, and no exit", ANSWER + "os._exit = lambda *_: None\nsys.exit(3)"),
    Hostile("answer, exit code that is a trick", ANSWER + "class Code(int):\n    __and__ = __rand__ = lambda *_: 'ok'\nsys.exit(Code(1))"),
    Hostile("answer, exit message that fails", ANSWER + "class Message:\n    def __str__(self):\n        raise SystemExit(0)\nsys.exit(Message())"),
    Hostile("answer, then abort", ANSWER + "os.abort()"),
    Hostile("answer without its last line, then silence", "print(5, flush=True)\ntime.sleep(10)"),
    Hostile("bytes that are no text", "sys.stdout.buffer.write(b'5\\n6\\xff\\n')"),
    Hostile("stdout closed", "os.close(1)\nos.write(1, b'5\\n6\\n')"),
    Hostile("a pickle on stdout", "import pickle\nclass Bomb:\n    def __reduce__(self):\n        return os.system, ('touch @MARK@',)\n"
            "sys.stdout.buffer.write(pickle.dumps(Bomb()))"),
    # -- the judge, if it sits in the same interpreter
    Hostile("built-in functions replaced", "import builtins\nbuiltins.all = builtins.any = lambda *_: True\nbuiltins.len = lambda *_: 1\n"
            "print(5)", prelude=False),
    Hostile("a string that equals everything", "import sys\nclass Equal(str):\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\n"
            "    __hash__ = str.__hash__\n    strip = rstrip = replace = lambda self, *_: self\n"
            "    split = lambda self, *_: [self, self]\nsys.stdout.getvalue = lambda: Equal('x')", prelude=False),
    Hostile("verdicts of the frames above", "import sys\nframe = sys._getframe()\nwhile frame:\n"
            "    for value in list(frame.f_locals.values()):\n        if isinstance(value, list) and not value:\n"
            "            value.append(True)\n    frame = frame.f_back", prelude=False),
    Hostile("the expected answer of the frames above", "import sys\nframe = sys._getframe()\nwhile frame:\n"
            "    if 'expected' in frame.f_locals:\n        print(frame.f_locals['expected'])\n        break\n    frame = frame.f_back",
            prelude=False),
    Hostile("the expected answer in memory", "import gc\nfor thing in gc.get_objects():\n"
            "    if isinstance(thing, dict) and isinstance(thing.get('expected'), str):\n        print(thing['expected'])\n        break",
            prelude=False),
    Hostile("comparison patched through frames", "import sys\nframe = sys._getframe()\nwhile frame:\n"
            "    for name in ('same', 'compare', 'same_output'):\n        if name in frame.f_globals:\n"
            "            frame.f_globals[name] = lambda *_: True\n    frame = frame.f_back", prelude=False),
    Hostile("exit code before the judge looks", "import atexit, os, sys\nframe = sys._getframe()\nwhile frame:\n"
            "    pipe = frame.f_locals.get('answers')\n    if hasattr(pipe, 'send'):\n        pipe.send(True)\n        os._exit(0)\n"
            "    frame = frame.f_back", prelude=False),
    Hostile("answer forged on every descriptor", "import json, struct\nframe = json.dumps({'status': 'ok', 'stdout': '5\\n6\\n', 'stderr': '', "
            "'seconds': 0.0, 'peak_mb': 1.0, 'exit_code': 0}).encode()\nfor fd in range(3, 256):\n"
            "    if works(lambda: os.write(fd, struct.pack('=I', len(frame)) + frame)):\n        breach(fd)"),
    Hostile("answer forged with the agent's own functions", "frame = sys._getframe()\nwhile frame:\n"
            "    send = frame.f_globals.get('_send')\n    if send:\n        for fd in range(3, 64):\n"
            "            if works(lambda: send(fd, {'status': 'ok', 'stdout': '5\\n6\\n'})):\n                breach(fd)\n"
            "    frame = frame.f_back"),
    Hostile("imports and hooks replaced", "class Hook:\n    def find_spec(self, *_):\n        return None\nsys.meta_path.insert(0, Hook())\n"
            "for name in list(sys.modules):\n    sys.modules[name] = None\nsys.settrace(lambda *_: None)\nprint(7)"),
    Hostile("standard library overwritten", "import json\nif works(lambda: open(json.__file__, 'r+').close()):\n    breach('library')"),
    Hostile("a file for the next program", "if os.listdir('/tmp'):\n    breach('not empty')\nopen('/tmp/counterpoise_left', 'w').write('here')\n" + ANSWER, passes=True),
    Hostile("unpickled command", "import pickle\nclass Bomb:\n    def __reduce__(self):\n        return os.system, ('touch @MARK@',)\n"
            "pickle.loads(pickle.dumps(Bomb()))"),
    # -- processes and threads
    Hostile("fork bomb of 200", "children = 0\nfor _ in range(200):\n    try:\n        child = os.fork()\n    except OSError:\n        break\n"
            "    if child == 0:\n        time.sleep(5)\n        os._exit(0)\n    children += 1\nif children >= 16:\n    breach(children)"),
    Hostile("fork tree of depth 6", "for _ in range(6):\n    try:\n        os.fork()\n    except OSError:\n        break\ntime.sleep(0.3)"),
    Hostile("200 threads", "import threading\nstarted = 0\ntry:\n    for _ in range(200):\n"
            "        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()\n        started += 1\nexcept RuntimeError:\n    pass\n"
            "if started >= 16:\n    breach(started)\nos._exit(0)"),
    Hostile("zombies", "for _ in range(10):\n    if os.fork() == 0:\n        os._exit(0)\n" + ANSWER, passes=True),
    Hostile("a child that outlives it", ANSWER + "if os.fork() == 0:\n    os.setsid()\n    time.sleep(9)\n    open('@MARK@', 'w')", passes=True),
    Hostile("a daemon that holds stdout", ANSWER + "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        for number in range(1, 64):\n"
            "            works(lambda: signal.signal(number, signal.SIG_IGN))\n        time.sleep(9)\n    os._exit(0)", passes=True),
    Hostile("endless loop", "while True:\n    pass"),
    Hostile("sleep", "time.sleep(9)"),
    Hostile("endless loop that ignores signals", "for number in range(1, 64):\n    works(lambda: signal.signal(number, signal.SIG_IGN))\n"
            "end = time.monotonic() + 9\nwhile time.monotonic() < end:\n    pass"),
    Hostile("stopped", "os.kill(os.getpid(), signal.SIGSTOP)\ntime.sleep(9)"),
    Hostile("arithmetic in one step", "pow(7, 10**8)"),
    Hostile("regular expression without end", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')"),
    Hostile("recursion without end", "sys.setrecursionlimit(10**6)\ndef down():\n    return [down()]\ndown()"),
    Hostile("kills its parent", "works(lambda: os.kill(os.getppid(), signal.SIGKILL))\nworks(lambda: os.kill(os.getppid(), signal.SIGTERM))\n"
            + ANSWER, passes=True),
    Hostile("kills everybody", "if os.getpid() > 9:\n    breach('no process namespace')\nelse:\n"
            "    works(lambda: os.kill(-1, signal.SIGKILL))\nprint(5)"),
    Hostile("kills its group", "if os.getpgid(0) == os.getpid():\n    os.killpg(0, signal.SIGKILL)"),
    Hostile("kills a process of the host", "if works(lambda: os.kill(@PROCESS@, signal.SIGTERM)):\n    breach('kill')"),
    Hostile("limits raised", "import resource\nfor limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):\n"
            "    if works(lambda: resource.setrlimit(limit, (2**40, 2**40))):\n        breach(limit)"),
    Hostile("higher priority", "if works(lambda: os.nice(-5)):\n    breach('nice')\n"
            "for policy in (os.SCHED_FIFO, os.SCHED_RR):\n    if works(lambda: os.sched_setscheduler(0, policy, os.sched_param(1))):\n"
            "        breach('real time')"),
    Hostile("priority, cores and limits of its parent", "import resource\nfor process in (1, os.getppid()):\n"
            "    works(lambda: os.sched_setaffinity(process, {min(os.sched_getaffinity(0))}))\n"
            "    works(lambda: os.setpriority(os.PRIO_PROCESS, process, 19))\n"
            "    works(lambda: resource.prlimit(process, resource.RLIMIT_CPU, (0, 0)))\n"
            "    works(lambda: resource.prlimit(process, resource.RLIMIT_NOFILE, (0, 0)))\n"
            "works(lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19))\n" + ANSWER, passes=True),
    Hostile("stops everybody", "works(lambda: os.kill(-1, signal.SIGSTOP))\nos.killpg(0, signal.SIGSTOP)\ntime.sleep(9)"),
    Hostile("a storm of signals", "signal.signal(signal.SIGALRM, signal.SIG_IGN)\nsignal.setitimer(signal.ITIMER_REAL, 1e-6, 1e-6)\n"
            "end = time.monotonic() + 0.2\nwhile time.monotonic() < end:\n    pass\n" + ANSWER, passes=True),
    # -- memory, disk, output
    Hostile("1 GiB at once", "data = bytearray(1 << 30)\nbreach('memory')"),
    Hostile("1 GiB bit by bit", "held = []\nfor _ in range(128):\n    held.append(b'x' * (8 << 20))\nbreach('memory')"),
    Hostile("1 GiB in eight processes", "for _ in range(8):\n    if os.fork() == 0:\n        data = b'x' * (128 << 20)\n        time.sleep(0.8)\n"
            "        os._exit(0)\nfor _ in range(8):\n    os.wait()\nbreach('memory')"),
    Hostile("1 GiB in processes without a first thread", "import threading\ndef hold():\n    time.sleep(0.05)\n"
            "    data = b'x' * (160 << 20)\n    time.sleep(0.3)\n    breach('memory')\n    os._exit(0)\nfor _ in range(5):\n"
            "    if os.fork() == 0:\n        break\nthreading.Thread(target=hold).start()\n"
            "libc.syscall(60 if os.uname().machine == 'x86_64' else 93, 0)"),
    Hostile("a name that is no text", "libc.prctl(15, b'\\xff\\n:\\x80', 0, 0, 0)\ntime.sleep(0.2)\n" + ANSWER, passes=True),
    Hostile("1 GiB shared memory", "import mmap\narea = mmap.mmap(-1, 1 << 30)\nfor at in range(0, 1 << 30, 4096):\n    area[at] = 1\n"
            "breach('memory')"),
    Hostile("shared memory that no process shows", "import mmap\narea = mmap.mmap(-1, 1 << 20)\narea[0] = 1\n"
            "area.madvise(mmap.MADV_DONTNEED)\nif area[0] == 1:  # still held, and in nobody's resident memory\n    breach('memory')"),
    Hostile("shared memory of a device", "import mmap\n"
            "if works(lambda: mmap.mmap(os.open('/dev/zero', os.O_RDWR), 1 << 20, mmap.MAP_SHARED)):\n    breach('zero')"),
    Hostile("memory without a name", "fd = os.memfd_create('x')\nbreach('memfd')"),
    Hostile("shared memory that stays", "if libc.shmget(0x1234, 1 << 20, 0o1666) >= 0:\n    breach('shm')"),
    Hostile("pipes of a megabyte", "import fcntl\nif works(lambda: fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)):\n    breach('pipe')"),
    Hostile("sockets with large buffers", "import socket\none, other = socket.socketpair()\n"
            "if works(lambda: one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)):\n    breach('buffer')"),
    Hostile("sockets inside sockets", "import socket\none, other = socket.socketpair()\n"
            "if works(lambda: socket.send_fds(one, [b'x'], [one.fileno()])):\n    breach('in flight')"),
    Hostile("sockets of odd kinds", "import socket\nfor family in (16, 17, 30, 38):\n    if works(lambda: socket.socketpair(family)):\n"
            "        breach(family)"),
    Hostile("1,000 timers", "timers = 0\nwhile timers < 1000 and libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) == 0:\n"
            "    timers += 1\nif timers == 1000:\n    breach(timers)"),
    Hostile("1,000 signals that wait", "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\nsent = 0\n"
            "while sent < 1000 and libc.sigqueue(os.getpid(), 40, None) == 0:\n    sent += 1\nif sent == 1000:\n    breach(sent)"),
    Hostile("pages that the machine has set aside", "libc.mmap.restype = ctypes.c_ssize_t\n"
            "if libc.mmap(None, ctypes.c_size_t(2 << 20), 3, 0x40022, -1, 0) >= 0 or ctypes.get_errno() != 1:\n    breach('huge pages')"),
    Hostile("1 GiB in a file without a name", "file = os.open('/tmp', os.O_TMPFILE | os.O_RDWR)\nfor _ in range(64):\n"
            "    os.write(file, b'x' * (16 << 20))\nbreach('disk')"),
    Hostile("a dump that the host takes", "import resource\nif works(lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0))):\n"
            "    breach('core')\n" + ANSWER + "os.abort()"),
    Hostile("others first when memory is short", "def lower():\n    with open('/proc/self/oom_score_adj', 'w') as file:\n"
            "        file.write('-1000')\nif works(lower):\n    breach('score')"),
    Hostile("1 GiB on disk", "written = 0\nwith open('/tmp/big', 'wb', buffering=0) as file:\n    for _ in range(64):\n"
            "        written += file.write(b'x' * (16 << 20))\nos.remove('/tmp/big')\nbreach('disk')"),
    Hostile("20,000 files", "for i in range(20_000):\n    open(f'/tmp/{i}', 'w').close()\nbreach('files')"),
    Hostile("50 MB of output", "for _ in range(50):\n    sys.stdout.write('x' * (1 << 20))"),
    Hostile("50 MB of errors", ANSWER + "for _ in range(50):\n    sys.stderr.write('x' * (1 << 20))"),
    Hostile("answer, then 50 MB", ANSWER + "for _ in range(50):\n    sys.stdout.write('\\n' * (1 << 20))"),
    # -- files, secrets
    Hostile("a file of the host", "if works(lambda: open('@CANARY@').read()):\n    breach('read')"),
    Hostile("a file of the host, written", "if works(lambda: open('@CANARY@', 'a').write('x')):\n    breach('write')"),
    Hostile("a file of the host through ..", "if works(lambda: open('../' * 20 + '@CANARY@'[1:]).read()):\n    breach('read')"),
    Hostile("a symbolic link", "os.symlink('@CANARY@', '/tmp/link')\nif works(lambda: open('/tmp/link', 'r+').write('x')):\n"
            "    breach('link')"),
    Hostile("a hard link to a system file", "if works(lambda: os.link('/usr/bin/env', '/tmp/env')):\n    os.remove('/tmp/env')\n    breach('link')"),
    Hostile("users and passwords", "for name in ('/etc/passwd', '/etc/shadow', '/root/.ssh', '/home'):\n    if os.path.exists(name):\n"
            "        breach(name)"),
    Hostile("system folders written", "for folder in ('/usr', '/usr/lib', '/', '/dev', '/etc', '/proc'):\n"
            "    name = os.path.join(folder, 'counterpoise_breach')\n    if works(lambda: open(name, 'x').close()):\n"
            "        os.remove(name)\n        breach(name)"),
    Hostile("root of another process", "for name in os.listdir('/proc'):\n"
            "    if works(lambda: open(f'/proc/{name}/root@CANARY@').read()):\n        breach(name)"),
    Hostile("memory of another process", "for name in os.listdir('/proc'):\n    if name.isdigit() and int(name) != os.getpid():\n"
            "        if works(lambda: open(f'/proc/{name}/mem', 'r+b')):\n            breach(name)"),
    Hostile("environment of other processes", "for name in os.listdir('/proc'):\n    try:\n"
            "        if b'COUNTERPOISE_SECRET' in open(f'/proc/{name}/environ', 'rb').read():\n            breach(name)\n"
            "    except OSError:\n        pass"),
    Hostile("its own environment", "if any('SECRET' in name or 'TOKEN' in name for name in os.environ):\n    breach('environment')\n"
            "print(os.environ)"),
    Hostile("devices", "for name in ('mem', 'kmsg', 'sda', 'vda', 'tty', 'fuse', 'kvm', 'ptmx', 'loop0'):\n"
            "    if os.path.exists(f'/dev/{name}'):\n        breach(name)"),
    Hostile("control groups", "if os.path.isdir('/sys') and os.listdir('/sys'):\n    breach('sys')"),
    Hostile("another interpreter", "os.execv(sys.executable, [sys.executable, '-c', "
            "'import os; print(\"BREACH\" if os.path.exists(\"@CANARY@\") or os.geteuid() == 0 else 7)'])"),
    Hostile("stdin written and read again", "if works(lambda: os.write(0, b'7 8\\n')) or works(lambda: os.ftruncate(0, 1 << 20)):\n"
            "    breach('stdin')\nos.lseek(0, 0, 0)\nif open('/dev/stdin').read() != '2 3\\n':\n    breach('changed')\n" + ANSWER, passes=True),
    Hostile("every descriptor read", "for fd in range(3, 256):\n    if works(lambda: os.read(fd, 1)):\n        breach(fd)"),
    Hostile("keys typed into a terminal", "import fcntl\nfor fd in range(3):\n    if works(lambda: fcntl.ioctl(fd, 0x5412, b'x')):\n"
            "        breach(fd)\nif works(os.openpty) or os.path.exists('/dev/tty'):\n    breach('terminal')"),
    Hostile("devices changed", "for attempt in (lambda: os.chmod('/dev/null', 0o600), lambda: os.chown('/dev/null', os.getuid(), -1),\n"
            "                lambda: os.rename('/dev/full', '/dev/x'), lambda: os.mknod('/tmp/null', 0o20666, 0x103)):\n"
            "    if works(attempt):\n        breach('device')"),
    Hostile("programs that set the user", "for name in ('/usr/bin', '/tmp', '/'):\n    flags = os.statvfs(name).f_flag\n"
            "    if not flags & os.ST_NOSUID or not flags & os.ST_RDONLY and name != '/tmp':\n        breach(name)"),
    # -- privileges and system calls
    Hostile("root again", "if works(lambda: os.setuid(0)) or works(lambda: os.setgid(0)) or os.geteuid() == 0:\n    breach('root')"),
    Hostile("another root folder", "os.mkdir('/tmp/jail')\nif works(lambda: os.chroot('/tmp/jail')):\n    breach('chroot')"),
    Hostile("a mount", "libc.mount(b'x', b'/tmp/not-there', b'tmpfs', 0, None)\n"
            "if ctypes.get_errno() != 1:  # EPERM comes before ENOENT\n    breach('mount')"),
    Hostile("a user namespace", "if libc.unshare(0x10000000) == 0:\n    breach('unshare')"),
    Hostile("a child in a user namespace", "if libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0:\n    breach('clone')"),
    Hostile("tracing its parent", "if libc.ptrace(16, os.getppid(), 0, 0) == 0:\n    breach('ptrace')"),
    Hostile("namespaces of others", "for name in ('mnt', 'net', 'pid', 'user', 'ipc', 'uts', 'cgroup'):\n"
            "    for process in (1, os.getppid(), os.getpid()):\n        try:\n"
            "            file = os.open(f'/proc/{process}/ns/{name}', os.O_RDONLY)\n        except OSError:\n            continue\n"
            "        if libc.setns(file, 0) == 0:\n            breach(name)\n        os.close(file)\n"
            "for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):\n"
            "    if libc.unshare(flag) == 0:\n        breach(flag)"),
    Hostile("doors of the kernel", "page = ctypes.create_string_buffer(4096)\n"
            "for call in (248, 249, 298, 300, 304, 310, 311, 323, 428, 430, 435, 438, 442, 447, 206, 275, 276, 294):\n"
            "    if allowed(call, 0, page, 0, 0, 0, 0):\n        breach(call)"),
    Hostile("calls of the x32 interface", "if allowed(0x40000000 | 39):\n    breach('x32')"),
    Hostile("calls of 32 bits", "import mmap\nif os.uname().machine == 'x86_64':\n"
            "    place = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
            "    place.write(bytes.fromhex('b814000000cd80c3'))  # getpid by the old interrupt\n"
            "    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(place)))\n    call()\n    breach('32 bits')"),
    Hostile("io_uring, bpf, keys", "for number, argument in ((425, 8), (321, 0), (250, 0)):\n"
            "    if libc.syscall(number, argument, 0, 0, 0, 0) >= 0:\n        breach(number)"),
    Hostile("another time", "if works(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())):\n    breach('clock')"),
    # -- network
    Hostile("a port of the host", "import socket\nif works(lambda: socket.create_connection(('127.0.0.1', @PORT@), timeout=1)):\n"
            "    breach('tcp')"),
    Hostile("a socket of the host without a file", "import socket\n"
            "if works(lambda: socket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@')):\n    breach('unix')"),
    Hostile("a name on the net", "import socket\nif works(lambda: socket.getaddrinfo('example.com', 80)):\n    breach('dns')"),
    Hostile("a server", "import socket\nif works(lambda: socket.create_server(('0.0.0.0', 0))):\n    breach('server')"),
]  # fmt: skip
