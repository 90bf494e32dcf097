"""What runs inside the sandbox: two programs of one file, handed over as text.

The *program* interpreter holds model-written code and answers calls. The *checker* interpreter, in
a sandbox of its own, holds the tests, calls the functions through a pipe, and pronounces the
verdict. Only plain data crosses the pipe, so that nothing the program defines (an `__eq__` that is
always true, a patched `check`, a hook) ever executes where the verdict is made.

Uses the standard library only: both interpreters run with `-I -S`.
"""

import builtins
import json
import os
import resource
import sys
from contextlib import suppress

Plain = object
LINE_LIMIT = 1 << 20  # bytes of one message of a program


def limit(seconds: int, memory: int, processes: int, file_bytes: int) -> None:
    """Hard limits of this process and all that it starts; they can only be lowered."""
    for which, value in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        allowed = resource.getrlimit(which)[1]
        value = value if allowed == resource.RLIM_INFINITY else min(value, allowed)
        resource.setrlimit(which, (value, value))


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

    def receive(self) -> dict:  # type: ignore[type-arg]
        """Reads one line; EOFError if it is missing, unfinished or too long."""
        line = self.reader.readline(LINE_LIMIT)
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
                function = namespace[message["name"]]
                arguments = decode(message["arguments"])
                named = decode(message["named"])
                reply = {"value": encode(function(*arguments, **named))}  # type: ignore
        except BaseException as error:
            reply = {"error": type(error).__name__, "message": str(error)[:500]}
        channel.send(reply)


class Gone(BaseException):
    """The program's process ended, or does not speak the protocol."""


class Caller:
    """The checker's side of the program."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.gone, self.memory = channel, False, False

    def ask(self, message: Plain) -> Plain:
        """The program's reply as a value, or its exception."""
        try:
            self.channel.send(message)
            reply = self.channel.receive()
            if "error" not in reply:
                return decode(reply["value"])
            name, text = str(reply["error"]), str(reply["message"])
        except Exception as error:
            self.gone = True
            raise Gone from error
        self.memory = self.memory or name == "MemoryError"
        kind = getattr(builtins, name, None)
        raised: Exception = RuntimeError(f"{name}: {text}")
        if isinstance(kind, type) and issubclass(kind, Exception):
            with suppress(TypeError):  # UnicodeDecodeError and the like want more arguments
                raised = kind(text)
        raise raised

    def function(self, name: str):  # type: ignore[no-untyped-def]
        """A stand-in for the program's function `name`."""

        def call(*arguments: Plain, **named: Plain) -> Plain:
            return self.ask({"name": name, "arguments": encode(arguments), "named": encode(named)})

        return call


def check(job: dict, caller: Caller) -> dict:  # type: ignore[type-arg]
    """Runs the tests one after the other, each in a namespace of its own."""
    passed: list[bool] = []
    results: list[Plain] = []
    why = ""
    try:
        caller.ask({"source": job["source"]})
    except BaseException as error:
        status = "oom" if caller.memory else "error"
        return {"status": status, "passed": [False] * len(job["tests"]), "why": describe(error)}
    for test in job["tests"]:
        namespace: dict[str, object] = {"__name__": "tests"}
        try:
            exec(compile(job["setup"], "setup", "exec"), namespace)
            namespace.update({name: caller.function(name) for name in job["names"]})
            exec(compile(test, "test", "exec"), namespace)
            good, result = True, encode(namespace.get("result"))
        except BaseException as error:
            good, result, why = False, None, why or describe(error)
        passed.append(good and not caller.gone)
        results.append(result)
    if caller.gone:
        status, why = "error", "the program's process ended"
    elif all(passed):
        status = "passed"
    else:
        status = "oom" if caller.memory else "failed"
    return {"status": status, "passed": passed, "why": why, "results": results}


def describe(error: BaseException) -> str:
    """One short line."""
    if isinstance(error, Gone):
        return "the program's process ended"
    return f"{type(error).__name__}: {error}"[:300]


def private(fd: int) -> int:
    """Moves a descriptor out of the way of 0, 1 and 2."""
    kept = os.dup(fd)
    os.set_inheritable(kept, False)
    return kept


def main(role: str, read: int, write: int, limits: list[int]) -> None:
    """Entry point; `read` and `write` lead to the other interpreter."""
    order, verdict = private(0), private(1)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    channel = Channel(read, write)
    os.set_inheritable(read, False)
    os.set_inheritable(write, False)
    limit(*limits)
    if role == "program":  # has nothing but the pipe
        os.close(order)
        os.close(verdict)
        channel.send("ready")
        serve(channel)
    else:
        # Said before any code has run: without it, the sandbox and not the program has failed.
        channel.receive()
        os.write(verdict, b"ready\n")
        with os.fdopen(order) as file:
            job = json.load(file)
        found = json.dumps(check(job, Caller(channel)))
        os.write(verdict, f"{job['nonce']} {found}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), [int(v) for v in sys.argv[4:]])
