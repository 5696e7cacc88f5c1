"""Give up, for ever, what decoding a video needs not: files, sockets, programs, privileges.

Landlock (Linux 5.13 and newer) lets the process read its libraries and what is open already, and
nothing else; from ABI 4 on it also forbids TCP. A seccomp filter forbids to make sockets and to
start programs, whatever the kernel's Landlock can do. Sources: linux/landlock.h, linux/seccomp.h,
linux/bpf_common.h, Documentation/userspace-api/landlock.rst. Other systems have limits only.
"""

import ctypes
import os
import platform
import struct
import sys
import sysconfig
from pathlib import Path

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
RULESET_VERSION, RULE_PATH_BENEATH = 1, 1
READ_FILE, READ_DIR = 1 << 2, 1 << 3
# How many rights over files each ABI knows: 1 to 13, 2 adds REFER, 3 TRUNCATE, 5 IOCTL_DEV.
FILE_RIGHTS = (0, 13, 14, 15, 15, 16)
TCP_RIGHTS, SCOPES = 0b11, 0b11  # bind and connect: ABI 4; abstract sockets and signals: ABI 6
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/local/lib", "/etc/ld.so.cache")
# socket, socketpair, execve, execveat, ptrace, io_uring_setup (which opens sockets, too).
CALLS = {
    "x86_64": (0xC000003E, (41, 53, 59, 322, 101, 425)),
    "aarch64": (0xC00000B7, (198, 199, 221, 281, 117, 425)),
}
LOAD, JUMP_IF_EQUAL, JUMP_IF_ABOVE, RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
ALLOW, FAIL, EPERM = 0x7FFF0000, 0x00050000, 1
X32_CALLS = 0x40000000  # of x86-64: the same calls under other numbers

_libc = ctypes.CDLL(None, use_errno=True)


def confine() -> str:
    """Restrict this process and all that it starts; says in words which protection is in force."""
    if sys.platform != "linux":
        return "limits of time, file size and open files"
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.capset(struct.pack("=Ii", CAPABILITY_VERSION_3, 0), bytes(24))  # none, even for root
    abi = _restrict_files()
    has_filter = _restrict_calls()
    protections = [f"Landlock (ABI {abi})"] * (abi > 0) + ["seccomp"] * has_filter
    return " and ".join([*protections, "limits of memory, time, file size and open files"])


def landlock_abi() -> int:
    """The version of Landlock that this kernel has; 0 where it has none."""
    abi: int = _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), RULESET_VERSION)
    return max(abi, 0)


def _restrict_files() -> int:
    """Leave reading below the libraries' folders only; returns Landlock's ABI, 0 without effect."""
    abi = landlock_abi()
    if abi == 0:
        return 0
    rights = (1 << FILE_RIGHTS[min(abi, len(FILE_RIGHTS) - 1)]) - 1
    fields = [rights, TCP_RIGHTS if abi >= 4 else 0, SCOPES if abi >= 6 else 0]
    size = 8 * (1 + (abi >= 4) + (abi >= 6))
    attributes = struct.pack("=3Q", *fields)
    ruleset = _libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return 0
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    paths |= {str(Path(__file__).parents[1]), *LIBRARIES}
    for path in filter(os.path.exists, sorted(paths)):
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = READ_FILE | READ_DIR if Path(path).is_dir() else READ_FILE
        rule = struct.pack("=Qi", allowed, parent)
        _libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, 0)
        os.close(parent)
    failed = _libc.syscall(RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return 0 if failed else abi


def _restrict_calls() -> bool:
    """Let the calls of CALLS fail with EPERM; False where the kernel or machine has no filter."""
    if platform.machine() not in CALLS:
        return False
    architecture, calls = CALLS[platform.machine()]
    last = len(calls) + 5  # the place of the instruction that refuses; jumps count from the next
    program = [
        (LOAD, 0, 0, 4),  # seccomp_data.arch
        (JUMP_IF_EQUAL, 0, last - 2, architecture),
        (LOAD, 0, 0, 0),  # seccomp_data.nr
        (JUMP_IF_ABOVE, last - 4, 0, X32_CALLS),
        *((JUMP_IF_EQUAL, last - place - 5, 0, call) for place, call in enumerate(calls)),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, FAIL | EPERM),
    ]
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    return not _libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)
