"""What runs inside the sandbox: two programs of one file, handed over as text.

The *program* interpreter holds model-written code and answers calls. The *checker* interpreter, in
a sandbox of its own, holds the tests, calls the functions through a pipe, and pronounces the
verdict. Only plain data crosses the pipe, so that nothing the program defines (an `__eq__` that is
always true, a patched `check`, a hook) ever executes where the verdict is made.

A test counts only if it called the program, and only if all that the program answered has reached
it: values, or exceptions that the test itself caught. An exception that ends a loop in silence
(`StopIteration` out of `map`, `IndexError` out of `__getitem__`) has reached nobody.

Uses the standard library only: both interpreters run with `-I -S`.
"""

import builtins
import ctypes
import json
import os
import resource
import sys
import threading
from contextlib import suppress

Plain = object
LINE_LIMIT = 1 << 20  # bytes of one message of a program
# Python's own look-ups take these for "there is no more": PEP 479 for all of the first kind.
ENDS = ("StopIteration", "StopAsyncIteration")
ABSENT = (LookupError, AttributeError)


def limit(seconds: int, memory: int, processes: int, file_bytes: int) -> None:
    """Hard limits of this process and all that it starts; they can only be lowered."""
    for which, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        allowed = resource.getrlimit(which)[1]
        value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(which, (value, value))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))


def confine(keyctl: int, program: bytes) -> None:
    """A session keyring of its own, then the system call filter; OSError if it is refused."""
    libc = ctypes.CDLL(None, use_errno=True)
    if keyctl:  # may be refused (no keys here): then the filter denies all that reaches them
        libc.syscall(ctypes.c_long(keyctl), ctypes.c_long(1), None)  # KEYCTL_JOIN_SESSION_KEYRING
    if not program:
        return
    rules = ctypes.byref(_Filter(len(program) // 8, program))
    # PR_SET_NO_NEW_PRIVS, without which a filter needs root; PR_SET_SECCOMP, SECCOMP_MODE_FILTER.
    words = [ctypes.c_ulong(word) for word in (38, 1, 0, 0, 0, 22, 2)]
    if libc.prctl(*words[:5]) or libc.prctl(*words[5:], rules):
        raise OSError(ctypes.get_errno(), "no system call filter")


def encode(value: Plain) -> Plain:
    """Plain data as JSON with tags; TypeError for anything that is not plain data."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):  # as hexadecimal: decimal conversion has a length limit
        return {"int": hex(value)} if abs(value) > 1 << 53 else int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    if isinstance(value, list):
        return [encode(v) for v in value]
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    raise TypeError(f"{type(value).__name__} is not plain data and cannot leave the sandbox")


def decode(value: Plain) -> Plain:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(v) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "int":
        return int(content, 16)
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in content}
    make = {"tuple": tuple, "set": set, "frozenset": frozenset}[kind]
    return make(decode(v) for v in content)


class Channel:
    """JSON lines over two file descriptors."""

    def __init__(self, read: int, write: int) -> None:
        self.reader, self.writer = os.fdopen(read, "rb"), os.fdopen(write, "wb")

    def send(self, message: Plain) -> None:
        """Writes one line."""
        self.writer.write(json.dumps(message).encode() + b"\n")
        self.writer.flush()

    def receive(self, limit: int = -1) -> dict:  # type: ignore[type-arg]
        """Reads one line; EOFError if it is missing, unfinished or longer than `limit` bytes."""
        line = self.reader.readline(limit)
        if not line.endswith(b"\n"):
            raise EOFError
        return json.loads(line)  # type: ignore[no-any-return]


def serve(channel: Channel) -> None:
    """The program's side: executes the source, then answers calls until the pipe closes."""
    namespace: dict[str, object] = {"__name__": "program"}
    while True:
        try:
            message = channel.receive()
        except EOFError:
            return
        reply: dict[str, object]
        try:
            if "source" in message:
                exec(compile(message["source"], "program", "exec"), namespace)
                reply = {"value": None}
            else:
                reply = answer(namespace, message)
        except BaseException as error:
            reply = {"error": type(error).__name__, "message": str(error)[:500]}
        channel.send(reply)


def answer(namespace: dict[str, object], message: dict) -> dict[str, object]:  # type: ignore
    """One call. A missing function and a value that is no data are faults, not exceptions."""
    function = namespace.get(message["name"])
    if not callable(function):
        return {"fault": f"the program defines no function {message['name']}"}
    value = function(*decode(message["arguments"]), **decode(message["named"]))  # type: ignore
    try:
        reply: dict[str, object] = {"value": encode(value)}
        long = len(json.dumps(reply)) >= LINE_LIMIT
        return {"fault": f"the result is longer than {LINE_LIMIT} bytes"} if long else reply
    except MemoryError:
        raise
    except BaseException as error:
        return {"fault": f"the result cannot leave the sandbox: {type(error).__name__}"}


class NoAnswer(BaseException):
    """A call without a value or an exception of the program. A test that catches it fails too."""


class Caller:
    """The checker's side of the program.

    Attributes:
        gone: why the program cannot be asked any more.
        memory: whether it raised MemoryError.
        calls, fault, raised: of the present test.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel, self.gone, self.memory = channel, "", False
        self.lock = threading.Lock()  # tests may have threads
        self.begin()

    def begin(self) -> None:
        """A new test."""
        self.calls, self.fault = 0, ""
        self.raised: list[tuple[Exception, bool]] = []

    def ask(self, message: Plain) -> Plain:
        """The program's reply as a value, or its exception."""
        with self.lock:
            try:
                self.channel.send(message)
                reply = self.channel.receive(LINE_LIMIT)
                if "value" in reply:
                    return decode(reply["value"])
                name, text = str(reply.get("error")), str(reply.get("message"))
                fault = str(reply["fault"])[:200] if "error" not in reply else ""
            except Exception as error:
                self.gone = "the program's process ended"
                raise NoAnswer(self.gone) from error
        if fault:
            self.fault = self.fault or fault
            raise NoAnswer(fault)
        self.memory = self.memory or name == "MemoryError"
        kind = getattr(builtins, name, None)
        raised: Exception = RuntimeError(f"{name}: {text}")
        if isinstance(kind, type) and issubclass(kind, Exception) and name not in ENDS:
            with suppress(TypeError):  # UnicodeDecodeError and the like want more arguments
                raised = kind(text)
        if isinstance(raised, ABSENT):
            self.raised.append((raised, awaited()))
        raise raised

    def function(self, name: str):  # type: ignore[no-untyped-def]
        """A stand-in for the program's function `name`."""

        def call(*arguments: Plain, **named: Plain) -> Plain:
            message = {"name": name, "arguments": encode(arguments), "named": encode(named)}
            self.calls += 1
            return self.ask(message)

        return call

    def complaint(self) -> str:
        """What of the program's answers has not reached the present test."""
        lost = [error for error, awaited in self.raised if not received(error, awaited)]
        return self.gone or self.fault or (lost and describe(lost[0])) or ""


def received(error: Exception, awaited: bool) -> bool:
    """Whether Python code caught an exception that was raised in a stand-in.

    A traceback begins with the last frame that the exception reached. Where iteration or attribute
    look-up ended it, there is no handler around the line where it left that frame. An exception
    without a traceback never met a handler (in Python 3.11 only handlers attach it), or one took it
    off, as unittest does: then it counts whether there was a handler when it was raised.
    """
    trace = error.__traceback__
    if trace is None:
        return awaited
    if trace.tb_frame.f_globals.get("__name__") in ("collections.abc", "_collections_abc"):
        return False  # iteration, spelled in Python
    return handles(trace.tb_frame, trace.tb_lasti)


def handles(frame, at: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether the frame's code has a handler around an instruction."""
    return any(start <= at < end for start, end in guarded(frame.f_code.co_exceptiontable))


def awaited() -> bool:
    """Whether a frame of the tests that are calling has a handler around what it does now."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not check.__code__:
        if frame.f_globals is not globals() and handles(frame, frame.f_lasti):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def guarded(table: bytes) -> list[tuple[int, int]]:
    """The ranges of instructions that have a handler, in bytes.

    Source: Objects/exception_handling_notes.txt of CPython, 3.11 and later: start, length, target
    and depth of each entry, in chunks of six bits, of which bit 6 says that another one follows.
    """
    numbers, value = [], 0
    for byte in table:
        value = value << 6 | byte & 63
        if not byte & 64:
            numbers.append(2 * value)
            value = 0
    entries = zip(numbers[::4], numbers[1::4], strict=True)
    return [(start, start + size) for start, size in entries]


def check(job: dict, caller: Caller) -> dict:  # type: ignore[type-arg]
    """Runs the tests one after the other, each in a namespace of its own."""
    count = len(job["tests"])
    passed: list[bool] = []
    results: list[Plain] = []
    why = ""
    try:  # while nothing of the program has run: what fails here is the fault of the tests
        setup = compile(job["setup"], "setup", "exec")
        tests = [compile(test, "test", "exec") for test in job["tests"]]
        first: dict[str, object] = {"__name__": "tests"}
        exec(setup, first)
    except BaseException as error:
        return {"status": "invalid", "passed": [False] * count, "why": describe(error)}
    try:
        caller.ask({"source": job["source"]})
    except BaseException as error:
        status = "oom" if caller.memory else "error"
        return {"status": status, "passed": [False] * count, "why": describe(error)}
    for number, test in enumerate(tests):
        namespace = {"__name__": "tests"} if number else first
        caller.begin()
        result, said = None, ""
        try:
            if number:
                exec(setup, namespace)
            namespace.update({name: caller.function(name) for name in job["names"]})
            exec(test, namespace)
            result = encode(namespace.get("result"))
        except BaseException as error:
            said = describe(error)
        if not caller.calls:
            why = f"test {number + 1} ends without a call of the program"
            why += f" ({said})" if said else ""
            return {"status": "invalid", "passed": [False] * count, "why": why}
        said = said or caller.complaint()
        passed.append(not said)
        results.append(result if not said else None)
        why = why or said
    if caller.gone:
        status, why = "error", caller.gone
    elif all(passed):
        status = "passed"
    else:
        status = "oom" if caller.memory else "failed"
    return {"status": status, "passed": passed, "why": why, "results": results}


def describe(error: BaseException) -> str:
    """One short line."""
    return str(error) if isinstance(error, NoAnswer) else f"{type(error).__name__}: {error}"[:300]


def private(fd: int) -> int:
    """Moves a descriptor out of the way of 0, 1 and 2."""
    kept = os.dup(fd)
    os.set_inheritable(kept, False)
    return kept


def main(role: str, read: int, write: int, limits: list[int], keyctl: int, rules: str) -> None:
    """Entry point; `read` and `write` lead to the other interpreter."""
    order, verdict = private(0), private(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    channel = Channel(read, write)
    os.set_inheritable(read, False)
    os.set_inheritable(write, False)
    limit(*limits)
    confine(keyctl, bytes.fromhex(rules))
    if role == "program":  # has nothing but the pipe
        os.close(order)
        os.close(verdict)
        channel.send("ready")
        serve(channel)
    else:
        # Said before any code has run: without it, the sandbox and not the program has failed.
        channel.receive(LINE_LIMIT)
        os.write(verdict, b"ready\n")
        with os.fdopen(order) as file:
            job = json.load(file)
        found = json.dumps(check(job, Caller(channel)))
        os.write(verdict, f"{job['nonce']} {found}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    read, write, *numbers = (int(v) for v in sys.argv[2:9])
    main(sys.argv[1], read, write, numbers[:4], numbers[4], sys.argv[9])
