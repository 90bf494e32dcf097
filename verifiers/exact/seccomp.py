"""The system calls that model-written code does without, as a filter for Linux's seccomp.

A deny list: everything that reaches beyond the namespaces (keys of the caller, sockets of virtual
machines), that looks into other processes, that the memory limits do not count (System V and memfd
memory), or that is a large part of the kernel which no tested program needs (io_uring, bpf, perf,
mounts, namespaces). Numbers newer than this list do not exist for the program (ENOSYS), so a future
kernel opens nothing. Another instruction set (32-bit calls of a 64-bit machine) ends the process.

Assembled here, as classic BPF, because then no library is needed where the code runs.

Reference: seccomp(2); the default profile of Docker denies much the same.
"""

from __future__ import annotations

import platform
import struct
from dataclasses import dataclass
from functools import lru_cache

EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in `struct seccomp_data`
_LAST = 450  # the newest call that this list has judged

# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES = 0x7E020000
_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; the network namespace is empty
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX write into the caller's terminal

# Name: number on x86_64, number on aarch64 (0: does not exist there).
DENIED: dict[str, tuple[int, int]] = {
    # keys: the keyrings know no namespace
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "move_pages": (279, 239), "migrate_pages": (256, 238),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "remap_file_pages": (216, 234),
    "mbind": (237, 235), "set_mempolicy": (238, 237), "get_mempolicy": (239, 236),
    "set_mempolicy_home_node": (450, 450),
    # large parts of the kernel
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "userfaultfd": (323, 282), "bpf": (321, 280), "perf_event_open": (298, 241),
    "vmsplice": (278, 75), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "personality": (135, 92),
    "modify_ldt": (154, 0), "iopl": (172, 0), "ioperm": (173, 0), "uselib": (134, 0),
    "ustat": (136, 0), "sysfs": (139, 0), "_sysctl": (156, 0),
    # file systems and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58),
}  # fmt: skip
# Judged by an argument, or denied so that the C library takes an older call that can be judged.
JUDGED: dict[str, tuple[int, int]] = {
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199),
    "ioctl": (16, 29),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_...


@dataclass(frozen=True)
class Filter:
    """What an interpreter needs to give up system calls.

    Attributes:
        program: classic BPF, 8 bytes an instruction.
        keyctl: the number of that call here, by which it first takes a session keyring of its own.
    """

    program: bytes
    keyctl: int


@lru_cache(maxsize=1)
def system_call_filter(machine: str | None = None) -> Filter | None:
    """The filter for this machine; None if its numbers are not known here."""
    known = _MACHINES.get(machine or platform.machine())
    if known is None or struct.calcsize("P") != 8:
        return None
    column, audit = known
    numbers = {name: both[column] for name, both in (DENIED | JUDGED).items()}
    program = [
        (_LOAD, 0, 0, _MACHINE),
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        # Above the last one lie also the calls of x32.
        (_GREATER, 0, 1, _LAST),
        (_RETURN, 0, 0, _ERRNO | ENOSYS),
    ]
    for number in sorted(numbers[name] for name in DENIED if numbers[name]):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | EPERM)]
    program += [(_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | ENOSYS)]
    program += _unless(numbers["clone"], 0, [(_ANY_BIT, _NEW_NAMESPACES, True)], EPERM)
    for name in ("socket", "socketpair"):
        family = [(_EQUAL, number, False) for number in _FAMILIES]
        program += _unless(numbers[name], 0, family, EAFNOSUPPORT)
    program += _unless(numbers["ioctl"], 1, [(_EQUAL, n, True) for n in _TERMINAL], EPERM)
    program += [(_RETURN, 0, 0, _ALLOW)]
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    return Filter(packed, numbers["keyctl"])


def _unless(
    number: int, argument: int, tests: list[tuple[int, int, bool]], errno: int
) -> list[tuple[int, int, int, int]]:
    """Judges a call by the low word of an argument.

    Each test is (comparison, constant, whether it denies). All of a call's tests deny, and what
    passes them is allowed; or all of them allow, and what passes them is denied.
    """
    denies = tests[0][2]
    first, second = (_ALLOW, _ERRNO | errno) if denies else (_ERRNO | errno, _ALLOW)
    block = [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument)]
    for i, (comparison, constant, _) in enumerate(tests):
        block.append((comparison, len(tests) - i, 0, constant))
    block += [(_RETURN, 0, 0, first), (_RETURN, 0, 0, second)]
    return [(_EQUAL, 0, len(block), number), *block]
