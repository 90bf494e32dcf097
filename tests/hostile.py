"""Programs that try to get a passing verdict, to get out, to stay, or to hang the judge.

Each is `(what it tries, source, the verdicts it may get)`, with a test of its own as a fourth where
it needs one. The usual test is `assert f(2) == 4`, or, for the ones that do their deed and then
answer rightly, the deed itself is what must have failed: such a program returns 4 only if it was
stopped. SECRET, PORT, ABSTRACT and MARK stand for a file and two services of the caller, and for a
number by which what is left behind can be found.
"""

from __future__ import annotations

import platform

from ppl.verifiers.exact.seccomp import DENIED, JUDGED

TEST = "assert f(2) == 4"
Program = tuple[str, str, set[str]] | tuple[str, str, set[str], str]
FAILED, ERROR = {"failed"}, {"error"}
NO, STOPPED = {"failed", "error", "oom"}, {"passed"}
ENDED = {"failed", "error", "oom", "timeout"}

# `tried(deed)`: 4 if the deed raised, 5 if it succeeded.
_TRIED = """
def tried(deed):
    try:
        deed()
    except BaseException:
        return 4
    return 5
"""


def _deed(body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return f"{_TRIED}\ndef deed():\n{lines}\ndef f(x):\n    return tried(deed)\n"


def _call(name: str, arguments: str, machine: str = platform.machine()) -> str:
    """Returns 4 only if the kernel says that there is no such call, family or permission."""
    number = (DENIED | JUDGED)[name][machine == "aarch64"]
    return (
        "import ctypes\ndef f(x):\n    libc = ctypes.CDLL(None, use_errno=True)\n"
        f"    end = libc.syscall({number}, {arguments})\n"
        "    return 4 if end == -1 and ctypes.get_errno() in (1, 38, 97) else (5, end)\n"
    )


def _family(number: int) -> str:
    return _deed(
        f"import socket\nsocket.socket({number}, socket.SOCK_RAW if {number} in (16, 17) "
        "else socket.SOCK_STREAM if {number} != 38 else socket.SOCK_SEQPACKET)"
    )


def _reply(line: str) -> str:
    """Writes a message in place of its answer, to whatever takes it."""
    return (
        f"import os\ndef f(x):\n    for fd in range(3, 64):\n"
        f"        try: os.write(fd, {line!r}.encode() + b'\\n')\n"
        "        except OSError: pass\n    return 5"
    )


def _sees(name: str) -> str:
    return f"SEES = open({name!r}).read()\nif not SEES.strip(): raise OSError"


_OLD = "class S:\n    def __getitem__(s, i): return f(2)\n"
_SWALLOWING = {
    "all(map())": "assert all(map(lambda x: f(x) == 4, [2, 2]))",
    "zip": "for got, want in zip(map(f, [2]), [4]): assert got == want",
    "old-style iteration": _OLD + "assert all(v == 4 for v in S())",
    "collections.abc": "from collections.abc import Sequence\nclass S(Sequence):\n"
    "    def __len__(s): return 1\n    def __getitem__(s, i): return f(2)\n"
    "assert all(v == 4 for v in S())",
    "getattr": "class S:\n    @property\n    def v(s): return f(2)\n"
    "assert getattr(S(), 'v', 4) == 4",
    "Mapping.get": "from collections.abc import Mapping\nclass M(Mapping):\n"
    "    def __len__(s): return 1\n    def __iter__(s): return iter([2])\n"
    "    def __getitem__(s, k): return f(k)\nassert M().get(2, 4) == 4",
    "async for": "import asyncio\nclass A:\n    def __aiter__(s): return s\n"
    "    async def __anext__(s): return f(2)\n"
    "async def main():\n    async for v in A(): assert v == 4\nasyncio.run(main())",
    "expects KeyError": "try: f(2)\nexcept KeyError: pass\nelse: assert False",
    "expects TypeError": "try: f(2)\nexcept TypeError: pass\nelse: assert False",
    "catches BaseException": "try: f(2)\nexcept BaseException: pass",
}


def _raises(error: str) -> str:
    return f"def f(x): raise {error}"


WINNING: list[Program] = [
    # -- a passing verdict without being right
    ("exits with code 0 at import", "import os\nos._exit(0)", ERROR),
    ("exits with code 0 when called", "import os\ndef f(x):\n    os._exit(0)", ERROR),
    ("sys.exit(0) when called", "import sys\ndef f(x):\n    sys.exit(0)", FAILED),
    ("patches check", "def check(*a): return True\nimport builtins\nbuiltins.check = check\n"
     "def f(x): return 5", FAILED),
    ("patches AssertionError", "import builtins\nbuiltins.AssertionError = type(None)\n"
     "def f(x): return 5", FAILED),
    ("returns an object equal to all", "class E(int):\n    def __eq__(s, o): return True\n"
     "    __hash__ = int.__hash__\ndef f(x): return E(5)", FAILED),
    ("returns an object that is no data", "class E:\n    def __eq__(s, o): return True\n"
     "def f(x): return E()", FAILED),
    ("prints a verdict", "def f(x):\n    print('0' * 32, '{\"status\": \"passed\"}', flush=True)\n"
     "    return 5", FAILED),
    ("writes a verdict to all descriptors", "import os\ndef f(x):\n    for fd in range(64):\n"
     "        try: os.write(fd, b'0 {\"status\": \"passed\", \"passed\": [true]}\\n')\n"
     "        except OSError: pass\n    return 5", NO),
    ("looks for the nonce in memory", "import gc\ndef f(x):\n    for o in gc.get_objects():\n"
     "        if isinstance(o, dict) and 'nonce' in o: return 4\n    return 5", FAILED),
    ("looks for the tests in the frames", "import sys\ndef f(x):\n    frame = sys._getframe()\n"
     "    while frame:\n        for v in frame.f_locals.values():\n"
     "            if 'assert' in str(v): return 4\n        frame = frame.f_back\n    return 5",
     FAILED),
    ("traces its caller", "import sys\nsys.settrace(lambda *a: (_ for _ in ()).throw(SystemExit))\n"
     "def f(x): return 5", NO),
    ("replaces json", "import json\njson.dumps = lambda *a, **k: '{\"value\": true}'\n"
     "def f(x): return 5", NO),
    ("patches the runner's own functions", "import sys\nm = sys.modules['__main__']\n"
     "m.check = m.serve = m.encode = lambda *a, **k: True\ndef f(x): return 5", NO),
    ("passes at exit", "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): return 5",
     FAILED),
    ("a pickle that executes", "class P:\n    def __reduce__(s): return (exec, ('x=4',))\n"
     "def f(x):\n    import pickle\n    return pickle.dumps(P())", FAILED),
    ("sends a malformed message", "import os\ndef f(x):\n    for fd in range(3, 5000):\n"
     "        try: os.write(fd, b'\\xff{]\\n')\n        except OSError: pass\n    return 4", NO),
    ("sends deeply nested data", "def f(x):\n    v = []\n    for _ in range(10**5): v = [v]\n"
     "    return v", NO),
    ("sends an endless line", "import os\ndef f(x):\n    while True:\n"
     "        for fd in range(3, 5000):\n            try: os.write(fd, b'1' * 65536)\n"
     "            except OSError: pass", ENDED),
    ("returns a giant answer", "def f(x): return 'a' * (1 << 27)", ENDED),
    ("raises a giant message", "def f(x): raise ValueError('a' * (1 << 24))", FAILED),
    ("raises an exception that fails to print", "class E(Exception):\n"
     "    def __str__(s): raise s\ndef f(x): raise E()", NO),
    ("StopIteration ends all(map())", _raises("StopIteration"), FAILED, _SWALLOWING["all(map())"]),
    ("StopIteration ends zip", _raises("StopIteration(4)"), FAILED, _SWALLOWING["zip"]),
    ("its own kind of StopIteration", "class StopIteration(StopIteration): pass\n"
     "def f(x): raise StopIteration", FAILED, _SWALLOWING["zip"]),
    ("IndexError ends old-style iteration", _raises("IndexError"), FAILED,
     _SWALLOWING["old-style iteration"]),
    ("StopIteration ends old-style iteration", _raises("StopIteration"), FAILED,
     _SWALLOWING["old-style iteration"]),
    ("IndexError ends a Sequence", _raises("IndexError"), FAILED, _SWALLOWING["collections.abc"]),
    ("AttributeError takes a default", _raises("AttributeError"), FAILED, _SWALLOWING["getattr"]),
    ("KeyError takes a default", _raises("KeyError"), FAILED, _SWALLOWING["Mapping.get"]),
    ("StopAsyncIteration ends async for", _raises("StopAsyncIteration"), FAILED,
     _SWALLOWING["async for"]),
    ("GeneratorExit", _raises("GeneratorExit"), FAILED, _SWALLOWING["all(map())"]),
    ("KeyboardInterrupt", _raises("KeyboardInterrupt"), FAILED),
    ("SystemExit(0)", _raises("SystemExit(0)"), FAILED, _SWALLOWING["all(map())"]),
    ("an exception that calls itself SystemExit", "class E(Exception): pass\n"
     "E.__name__ = 'SystemExit'\ndef f(x): raise E(0)", FAILED),
    ("is missing where KeyError is expected", "g = 4", FAILED, _SWALLOWING["expects KeyError"]),
    ("is no function where TypeError is expected", "f = 4", FAILED,
     _SWALLOWING["expects TypeError"]),
    ("returns no data where TypeError is expected", "def f(x): return object()", FAILED,
     _SWALLOWING["expects TypeError"]),
    ("is a generator", "def f(x): yield 4", FAILED),
    ("is a coroutine", "async def f(x): return 4", FAILED),
    ("ends while everything is caught", "import os\ndef f(x): os._exit(0)", ERROR,
     _SWALLOWING["catches BaseException"]),
    ("kills itself while everything is caught", "import os\ndef f(x): os.kill(os.getpid(), 9)",
     ERROR, _SWALLOWING["catches BaseException"]),
    ("aborts", "import os\ndef f(x): os.abort()", ERROR),
    ("replaces its process", "import os\ndef f(x): os.execv('/usr/bin/true', ['true'])", ERROR),
    ("replies with an unknown kind", _reply('{"value": {"exec": "1"}}'), NO),
    ("replies with a set of lists", _reply('{"value": {"set": [[1]]}}'), NO),
    ("replies with a list", _reply('[4]'), NO),
    ("replies with nothing", _reply('{}'), NO),
    ("replies that it has passed", _reply('{"status": "passed", "passed": [true]}'), NO),
    ("replies with a mangled error", _reply('{"error": ["SystemExit"], "message": {}}'), NO),
    ("forks and both answer", "import os\ndef f(x):\n    os.fork()\n    return 5", NO),
    ("its child holds the pipe when it ends", "import os, time\ndef f(x):\n"
     "    if os.fork(): os._exit(0)\n    time.sleep(100)", ENDED),
    ("closes the pipe and goes on", "import os, time\ndef f(x):\n    os.closerange(3, 64)\n"
     "    time.sleep(100)", ENDED),
]  # fmt: skip
LASTING: list[Program] = [
    # -- time and memory
    ("answers byte by byte", "import os, time\ndef f(x):\n    while True:\n"
     "        for fd in range(3, 64):\n            try: os.write(fd, b' ')\n"
     "            except OSError: pass\n        time.sleep(0.01)", {"timeout"}),
    ("an answer whose hashes collide", "def f(x):\n"
     "    return {i * (2**61 - 1) for i in range(1, 12000)}", ENDED),
    ("an integer of a million digits", "def f(x): return 16 ** 800000", {"failed"}),
    ("maps 10 GB", _deed("import mmap\nmmap.mmap(-1, 10 << 30)"), STOPPED),
    ("locks memory", _deed("import ctypes\nlibc = ctypes.CDLL(None)\n"
     "if libc.mlockall(3): raise OSError"), STOPPED),
    ("a sparse file of 1 TB", _deed("open('/tmp/sparse', 'wb').truncate(1 << 40)"),
     STOPPED | NO),
    ("ignores the limit of its time", "import signal\nsignal.signal(signal.SIGXCPU, "
     "signal.SIG_IGN)\ndef f(x):\n    while True: pass", {"timeout"}),
    ("a compiler bomb", "def f(x): return eval('(' * 90 + '1' + ')' * 90 + '**9' * 5000)", ENDED),
    ("loops for ever", "def f(x):\n    while True: pass", {"timeout"}),
    ("loops for ever at import", "while True: pass", {"timeout"}),
    ("sleeps and ignores signals", "import signal, time\nfor s in range(1, 64):\n"
     "    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
     "def f(x): time.sleep(100)", {"timeout"}),
    ("stops itself", "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
     {"timeout"}),
    ("kills everything it can see", "import os\ndef f(x):\n    os.kill(-1, 9)\n    return 5", NO),
    ("catastrophic regular expression", "import re\ndef f(x): re.match('(a+)+b', 'a' * 40)",
     {"timeout"}),
    ("a power that never ends", "def f(x): return 9 ** 9 ** 9", ENDED),
    ("allocates 10 GB", "def f(x): return len(bytearray(10 << 30))", {"oom"}),
    ("grows a list for ever", "def f(x):\n    v = []\n    while True: v.append(' ' * 10**6)",
     {"oom", "timeout"}),
    ("fork bomb", "import os\ndef f(x):\n    while True:\n        try: os.fork()\n"
     "        except OSError: pass", ENDED),
    ("starts 100 processes", _deed("import os, time\nfor _ in range(100):\n"
     "    if os.fork() == 0:\n        time.sleep(100)\n        os._exit(0)"), STOPPED),
    ("threads without end", "import threading, time\ndef f(x):\n    while True:\n"
     "        threading.Thread(target=time.sleep, args=(99,)).start()", ENDED),
    ("endless recursion", "def f(x): return f(x)", FAILED),
    ("endless recursion in C", "def f(x):\n    v = ()\n    for _ in range(10**6): v = (v,)\n"
     "    return repr(v)", ENDED),
    ("crashes the interpreter", "import ctypes\ndef f(x): return ctypes.string_at(0)", ERROR),
    ("1 GB of output", "import sys\ndef f(x):\n    for _ in range(1024): sys.stdout.write("
     "'a' * (1 << 20))\n    return 5", ENDED),
    ("output from a subprocess", "import os\ndef f(x):\n    return os.system('yes MARK')", ENDED),
    ("waits for input", "def f(x): return input()", FAILED),
    ("waits at exit", "import atexit, time\natexit.register(time.sleep, 100)\ndef f(x): return 5",
     FAILED),
    # -- staying behind
    ("a daemon", "import os, time\ndef f(x):\n    if os.fork() == 0:\n        os.setsid()\n"
     "        if os.fork() == 0:\n            time.sleep(100)\n        os._exit(0)\n    return 4",
     STOPPED),
    ("a process that outlives its parent", "import subprocess\ndef f(x):\n"
     "    subprocess.Popen(['sleep', 'MARK'], start_new_session=True)\n    return 4", STOPPED),
    ("files in /tmp", "def f(x):\n    open('/tmp/hostile_was_here', 'w').write('x')\n    return 4",
     STOPPED),
    ("a thread that goes on", "import threading, time\ndef f(x):\n"
     "    threading.Thread(target=time.sleep, args=(100,), daemon=False).start()\n    return 4",
     STOPPED),
    ("a timer that starts a process", "import os, signal\n"
     "signal.signal(signal.SIGALRM, lambda *a: os.system('sleep MARK'))\n"
     "signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\ndef f(x): return 4", STOPPED | ENDED),
    ("leaves the group of processes", "import os, subprocess\ndef f(x):\n"
     "    subprocess.Popen(['setsid', '--fork', 'nohup', 'sleep', 'MARK'])\n    return 4", STOPPED),
    ("is not ended with its parent", "import ctypes, os, time\ndef f(x):\n"
     "    if os.fork() == 0:\n        ctypes.CDLL(None).prctl(1, 0)\n        os.setsid()\n"
     "        time.sleep(100)\n    return 4", STOPPED),
]  # fmt: skip
ESCAPING: list[Program] = [
    # -- getting out
    ("connects to the network", _deed("import socket\ns = socket.create_connection(('1.1.1.1', 53),"
     " 0.3)"), STOPPED),
    ("connects to a service of this machine", _deed("import socket\n"
     "socket.create_connection(('127.0.0.1', PORT), 0.3)"), STOPPED),
    ("a socket of the file system", _deed("import socket\ns = socket.socket(socket.AF_UNIX)\n"
     "s.connect('/run/systemd/notify')"), STOPPED),
    ("reads the password file", _deed("open('/etc/passwd').read()"), STOPPED),
    ("reads the caller's files", _deed("open('SECRET').read()"), STOPPED),
    ("reads a file through a link", _deed("import os\nos.symlink('SECRET', '/tmp/l')\n"
     "open('/tmp/l').read()"), STOPPED),
    ("reads a file through /proc", _deed("open('/proc/1/root' + 'SECRET').read()"), STOPPED),
    ("writes to the caller's folder", _deed("open('SECRET', 'w').write('x')"), STOPPED),
    ("writes to the system", _deed("open('/usr/hostile', 'w')"), STOPPED),
    ("writes to its own interpreter", _deed("import os\nopen(os.__file__, 'a')"), STOPPED),
    ("fills the disk", _deed("f = open('/tmp/big', 'wb')\nfor _ in range(200):\n"
     "    f.write(bytes(1 << 20))"), STOPPED | NO),
    ("fills the disk with many files", _deed("for i in range(40):\n"
     "    open(f'/tmp/{i}', 'wb').write(bytes(8 << 20))"), STOPPED | NO),
    ("fills shared memory", _deed("open('/dev/shm/x', 'wb')"), STOPPED),
    ("mounts", _deed("import ctypes\nif ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, 0):"
     "\n    raise OSError"), STOPPED),
    ("makes a new user namespace", _deed("import ctypes\n"
     "if ctypes.CDLL(None).unshare(0x10000000):\n    raise OSError"), STOPPED),
    ("becomes root", _deed("import os\nos.setuid(0)"), STOPPED),
    ("raises its limits", _deed("import resource as r\n"
     "r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY, r.RLIM_INFINITY))"), STOPPED),
    ("traces the first process of its sandbox", "import ctypes\ndef f(x):\n"
     "    ctypes.CDLL(None).ptrace(16, 1, 0, 0)\n    return 5", FAILED),
    ("reads the environment", "import os\ndef f(x):\n"
     "    return 4 if set(os.environ) <= {'PWD', 'LC_CTYPE'} else 5", STOPPED),
    ("sees other processes", "import os\ndef f(x):\n"
     "    return 4 if sum(p.isdigit() for p in os.listdir('/proc')) == 2 else 5", STOPPED),
    ("inherits descriptors", "import os\ndef f(x):\n    kinds = []\n    for n in range(64):\n"
     "        try: kinds.append(os.readlink(f'/proc/self/fd/{n}'))\n        except OSError: pass\n"
     "    return 4 if all(k == '/dev/null' or k.startswith('pipe:') for k in kinds) else kinds",
     STOPPED),
    ("an abstract socket of the caller", _deed("import socket\ns = socket.socket(socket.AF_UNIX)\n"
     "s.connect('\\0ABSTRACT')"), STOPPED),
    ("a socket to the host of a virtual machine", _family(40), STOPPED),
    ("a netlink socket", _family(16), STOPPED),
    ("a packet socket", _family(17), STOPPED),
    ("a socket of the kernel's ciphers", _family(38), STOPPED),
    ("reads the descriptions of keys", _deed(_sees("/proc/keys")), STOPPED),
    ("reads who has keys", _deed(_sees("/proc/key-users")), STOPPED),
    ("reads the first process's environment", _deed(
     "s = open('/proc/1/environ').read().split(chr(0))\n"
     "if set(s) <= {'', 'PATH=/usr/bin:/bin', 'PWD=/'}: raise OSError"), STOPPED),
    ("reads the first process's memory", _deed("open('/proc/1/mem', 'rb').read(1)"), STOPPED),
    ("reads the machine's memory", _deed("open('/proc/kcore', 'rb').read(1)"), STOPPED),
    ("reads the kernel's log", _deed("open('/dev/kmsg').read(1)"), STOPPED),
    ("reads other devices", _deed("import os\nok = {'null', 'zero', 'full', 'random', 'urandom', "
     "'tty', 'console', 'ptmx', 'pts', 'shm', 'fd', 'stdin', 'stdout', 'stderr', 'core'}\n"
     "if set(os.listdir('/dev')) <= ok: raise OSError"), STOPPED),
    ("reads the devices of the machine", _deed("import os\nos.listdir('/sys/class')"), STOPPED),
    ("writes to the terminal", _deed("open('/dev/tty', 'w').write('x')"), STOPPED),
    ("sets the machine's crash handler", _deed(
     "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')"), STOPPED),
    ("sysrq", _deed("open('/proc/sysrq-trigger', 'w').write('b')"), STOPPED),
    ("makes a device", _deed("import os\nos.mknod('/tmp/d', 0o60666, os.makedev(8, 0))"), STOPPED),
    ("runs a program of root", _deed("import subprocess\nsubprocess.run(['su', '-c', 'true'], "
     "check=True, capture_output=True)"), STOPPED),
    ("gives itself capabilities", _deed("import ctypes\nlibc = ctypes.CDLL(None)\n"
     "for n in (8, 21, 12):\n    if libc.prctl(47, 2, n, 0, 0) == 0: break\n"
     "else: raise OSError"), STOPPED),
    ("allows itself new rights", _deed("import ctypes\nif ctypes.CDLL(None).prctl(38, 0, 0, 0, 0):"
     " raise OSError"), STOPPED),
    ("takes precedence", _deed("import os\nos.setpriority(os.PRIO_PROCESS, 0, -20)"), STOPPED),
    ("becomes a real-time process", _deed("import os\n"
     "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))"), STOPPED),
    ("reads a key of the caller", _call("keyctl", "10, -3, b'user', b'callers', 0"), STOPPED),
    ("revokes the caller's keyring", _call("keyctl", "3, -3"), STOPPED),
    ("leaves a key", _call("add_key", "b'user', b'note', b'x', 1, -3"), STOPPED),
    ("asks for a key", _call("request_key", "b'user', b'callers', 0, -3"), STOPPED),
    ("io_uring", _call("io_uring_setup", "4, ctypes.create_string_buffer(120)"), STOPPED),
    ("userfaultfd", _call("userfaultfd", "1"), STOPPED),
    ("memory in a nameless file", _call("memfd_create", "b'x', 0"), STOPPED),
    ("System V memory", _call("shmget", "0, ctypes.c_size_t(100 << 20), 0o1600"), STOPPED),
    ("System V messages", _call("msgget", "0, 0o1600"), STOPPED),
    ("System V semaphores", _call("semget", "0, 1, 0o1600"), STOPPED),
    ("is traced", _call("ptrace", "0, 0, 0, 0"), STOPPED),
    ("reads a process's memory", _call("process_vm_readv", "1, 0, 0, 0, 0, 0"), STOPPED),
    ("loads a program into the kernel", _call("bpf", "0, 0, 0"), STOPPED),
    ("counts events", _call("perf_event_open", "0, 0, -1, -1, 0"), STOPPED),
    ("makes a mount namespace", _call("unshare", "0x20000"), STOPPED),
    ("clones into a user namespace", _call("clone", "0x10000011, 0, 0, 0, 0"), STOPPED),
    ("clones by the newer call", _call("clone3", "0, 0"), STOPPED),
    ("mounts by the newer call", _call("fsopen", "b'tmpfs', 0"), STOPPED),
    ("changes its root", _call("chroot", "b'/tmp'"), STOPPED),
    ("opens a file by its handle", _call("open_by_handle_at", "-100, 0, 0"), STOPPED),
    ("types into the caller's terminal", _call("ioctl", "0, 0x5412, b'x'"), STOPPED),
    ("a system call of tomorrow", _call("clone3", "0, 0").replace("(435,", "(1000,"), STOPPED),
    ("a system call of x32", _call("keyctl", "0, -3, 0").replace(
     "libc.syscall(", "libc.syscall(0x40000000 + "), STOPPED),
    ("a system call of 32 bits", "import ctypes, mmap\ndef f(x):\n"
     "    m = mmap.mmap(-1, 4096, prot=7)\n"
     "    m.write(bytes.fromhex('b814000000cd80c3'))\n"  # mov eax, 20 (getpid); int 0x80; ret
     "    at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
     "    return 4 if ctypes.CFUNCTYPE(ctypes.c_int)(at)() > 0 else 5", ERROR),
]  # fmt: skip
SECTIONS = {"winning": WINNING, "lasting": LASTING, "escaping": ESCAPING}
HOSTILE = [
    (what, source, verdicts, *(test or (TEST,)))
    for section in SECTIONS.values()
    for what, source, verdicts, *test in section
]
