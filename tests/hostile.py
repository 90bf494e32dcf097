"""Programs that try to get a passing verdict, to get out, to stay, or to hang the judge.

Each is `(what it tries, source, the verdicts it may get)`. The test is `assert f(2) == 4`, or, for
the ones that do their deed and then answer rightly, the deed itself is what must have failed: such
a program returns 4 only if it was stopped.
"""

from __future__ import annotations

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


HOSTILE: list[tuple[str, str, set[str]]] = [
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
    # -- time and memory
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
     "    if os.fork() == 0:\n        time.sleep(9)\n        os._exit(0)"), STOPPED),
    ("threads without end", "import threading, time\ndef f(x):\n    while True:\n"
     "        threading.Thread(target=time.sleep, args=(99,)).start()", ENDED),
    ("endless recursion", "def f(x): return f(x)", FAILED),
    ("endless recursion in C", "def f(x):\n    v = ()\n    for _ in range(10**6): v = (v,)\n"
     "    return repr(v)", NO),
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
]  # fmt: skip
