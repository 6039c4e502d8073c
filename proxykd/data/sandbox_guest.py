"""The inside of the sandbox: forks a process for each program, locks it in, then runs the program there.

Started by ``proxykd.data.sandbox`` as ``python -s -S -P -B sandbox_guest.py SOCKET``, with an empty environment and
nothing of proxykd on its path, so it imports the standard library alone; forking a small process that is already warm
costs a tenth of starting Python anew. Each fork gives up, in this order, and for ever: resources (rlimits),
capabilities, new privileges, files (Landlock) and system calls (a seccomp filter that allows what a single thread
needs to compute and to use its own files, and nothing else: no socket, no process, no signal to others). If any of
these fails, the fork ends before a line of the program has run.

A job is three files that come over the socket. The first holds limits, nonce, program and check as JSON and takes the
result instead: one byte once the process is locked in, then the nonce and the value. The others take the program's
output. The answer over the socket is the exit status and why the program was stopped. Linux on x86-64 and ARM64 only.

References: Linux ``Documentation/userspace-api/landlock.rst`` and ``seccomp_filter.rst``.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import traceback
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOCKED_IN = b"L"
SETUP_FAILED = 97
LOOK_EVERY_S = 0.05

# Numbers of the system calls that are allowed whatever their arguments are: x86-64, ARM64 (None = has none).
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233),
    "dup": (32, 23), "dup2": (33, None), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None),
    "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "fsync": (74, 82),
    "fdatasync": (75, 83), "ftruncate": (77, 46), "getdents64": (217, 61), "getcwd": (79, 17), "rename": (82, None),
    "unlink": (87, None), "gettimeofday": (96, 169), "getrusage": (98, 165), "times": (100, 153),
    "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "openat": (257, 56), "newfstatat": (262, 79), "unlinkat": (263, 35), "renameat": (264, 38),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "dup3": (292, 24), "renameat2": (316, 276),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
IOCTL, FCNTL, PRLIMIT64 = (16, 29), (72, 25), (302, 261)
# What Python asks of an open file: is it a terminal, how wide, how much can be read; flags for close-on-exec.
IOCTLS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
# Duplicate, flags, locks. Not F_SETOWN and F_SETSIG, which send signals to other processes.
FCNTLS = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
ARCHITECTURES = {"x86_64": (0, 0xC000003E, 126), "aarch64": (1, 0xC00000B7, 91)}  # column, AUDIT_ARCH_*, capset

_ALLOW, _KILL, _EPERM = 0x7FFF0000, 0x80000000, 0x00050001
_LOAD, _JEQ, _JGE, _RETURN = 0x20, 0x15, 0x35, 0x06

# Landlock rights by the version of its interface in which they came: all of them are taken away.
_READ_FILE, _READ_DIR, _WRITE_FILE, _REMOVE_FILE, _MAKE_REG, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 5, 1 << 8, 1 << 14
_NUM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_READ = _READ_FILE | _READ_DIR
_OWN = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo", "/dev/urandom")

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def checked(result: int, what: str) -> int:
    """``result`` of a call into the C library; a negative one is an OSError that names ``what``."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def limit_resources(limits: dict[str, int]) -> None:
    """Set the rlimits: ``cpu_s`` seconds, ``memory_bytes`` of address space, ``file_bytes`` a file."""
    cpu_s = limits["cpu_s"]
    for name, soft, hard in (
        # The second more is for a program that takes no notice of the signal at the first.
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 32, 32),
        (resource.RLIMIT_NPROC, 1, 1),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        most = resource.getrlimit(name)[1]
        most = hard if most == resource.RLIM_INFINITY else min(hard, most)
        resource.setrlimit(name, (min(soft, most), most))


def drop_privileges(capset: int) -> None:
    """No capability, no way to gain one by executing a file; end when the process that waits for us ends."""
    checked(libc.prctl(1, 9, 0, 0, 0), "PR_SET_PDEATHSIG")
    checked(libc.prctl(4, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    checked(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    checked(libc.syscall(capset, header, nothing), "capset")


def allow_files(readable: list[str], own: str) -> int:
    """A Landlock ruleset: the interpreter's own files can be read, one folder used, and nothing else opened.

    Args:
        readable: Files and folders, those below them included; missing ones are passed over.
        own: The folder of the program.

    Returns:
        Descriptor of the ruleset, for ``take_away_files``.
    """
    version = checked(libc.syscall(444, None, 0, 1), "Landlock")
    rights = (1 << _NUM_RIGHTS.get(version, 16)) - 1
    # Version 4 can take away TCP, version 6 abstract Unix sockets and signals; the filter below denies them anyway.
    attributes = (ctypes.c_uint64 * 3)(rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = checked(libc.syscall(444, attributes, size, 0), "landlock_create_ruleset")
    for path in readable:
        _allow(ruleset, path, _READ)
    _allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)
    _allow(ruleset, own, (_OWN | _TRUNCATE) & rights)
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # what is not there need not be allowed
    if not os.path.isdir(path):
        rights &= ~(_READ_DIR | _REMOVE_FILE | _MAKE_REG)
    rule = ctypes.create_string_buffer(rights.to_bytes(8, sys.byteorder) + fd.to_bytes(4, sys.byteorder), 12)
    checked(libc.syscall(445, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
    os.close(fd)


def readable_paths() -> list[str]:
    """What an interpreter may read: its standard library, without what was installed beside it, and C libraries."""
    paths = [*_LIBRARIES]
    for folder in sys.path:
        if os.path.isdir(folder):
            paths += [entry.path for entry in os.scandir(folder) if not entry.name.endswith("-packages")]
        else:
            paths.append(folder)
    return paths


def build_filter(machine: str) -> list[tuple[int, int, int, int]]:
    """The seccomp filter as (code, jump if true, jump if false, operand) of classic BPF; what it does not name fails.

    Args:
        machine: "x86_64" or "aarch64".
    """
    column, architecture, _ = ARCHITECTURES[machine]
    steps = [(_LOAD, 0, 0, 4), (_JEQ, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    # The x32 calls of x86-64 have numbers of their own.
    steps += [(_JGE, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for numbers in ALLOWED.values():
        if (number := numbers[column]) is not None:
            steps += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for call, commands in ((IOCTL, IOCTLS), (FCNTL, FCNTLS)):
        steps += [(_JEQ, 0, 2 + 2 * len(commands), call[column]), (_LOAD, 0, 0, 24)]
        for command in commands:
            steps += [(_JEQ, 0, 1, command), (_RETURN, 0, 0, _ALLOW)]
        steps += [(_RETURN, 0, 0, _EPERM)]
    # Limits may be read and not set: both halves of the pointer to new ones are zero.
    steps += [(_JEQ, 0, 5, PRLIMIT64[column]), (_LOAD, 0, 0, 32), (_JEQ, 0, 3, 0), (_LOAD, 0, 0, 36)]
    steps += [(_JEQ, 0, 1, 0), (_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    return steps


def encode_filter(steps: list[tuple[int, int, int, int]]) -> bytes:
    """The filter as the kernel reads it: eight bytes a step."""
    return b"".join(
        code.to_bytes(2, sys.byteorder) + bytes((true, false)) + operand.to_bytes(4, sys.byteorder)
        for code, true, false, operand in steps
    )


def install_filter(program: bytes) -> None:
    """Hand the filter to the kernel; it holds until the process ends."""
    instructions = ctypes.create_string_buffer(program, len(program))
    header = (ctypes.c_uint64 * 2)(len(program) // 8, ctypes.addressof(instructions))
    checked(libc.prctl(22, 2, ctypes.byref(header), 0, 0), "PR_SET_SECCOMP")


class TextLoader(SourceFileLoader):
    """Loads a module from a text instead of a file."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name, f"<{name}>")
        self._text = text.encode("utf-8", "surrogatepass")

    def get_data(self, path: str) -> bytes:
        """The text."""
        return self._text

    def path_stats(self, path: str) -> dict[str, float]:
        """There is no file, hence no cache."""
        raise OSError("a text has no file")


def load(name: str, text: str, names: dict[str, object]) -> dict[str, object]:
    """Run ``text`` as a program among ``names`` and return its names; ``sys.exit(0)`` is an ordinary end."""
    loader = TextLoader(name, text)
    module = ModuleType("__main__")
    module.__dict__.update(names, __name__="__main__", __spec__=ModuleSpec("__main__", loader))
    sys.modules["__main__"] = module
    try:
        loader.name = "__main__"
        loader.exec_module(module)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            raise RuntimeError(f"the program left with status {stop.code}") from None
    return module.__dict__


class Lock:
    """What a fork gives up, prepared once for all forks of a server.

    Raises:
        OSError: if this machine lacks a part of it.
    """

    def __init__(self) -> None:
        machine = os.uname().machine
        if machine not in ARCHITECTURES:
            raise OSError(f"expected one of {sorted(ARCHITECTURES)}, found {machine}")
        self._capset = ARCHITECTURES[machine][2]
        self._filter = encode_filter(build_filter(machine))
        self._ruleset = allow_files(readable_paths(), os.getcwd())

    def close(self, limits: dict[str, int]) -> None:
        """Give up everything, for this process and for ever.

        Raises:
            OSError, ValueError: if something cannot be given up.
        """
        limit_resources(limits)
        drop_privileges(self._capset)
        checked(libc.syscall(446, self._ruleset, 0), "landlock_restrict_self")
        os.close(self._ruleset)
        install_filter(self._filter)


def take_job(files: list[int]) -> "tuple[dict[str, Any], int]":
    """Put the job's files in their places: the job, and the descriptor of the emptied file that takes the result."""
    job_file, stdout, stderr = files
    os.setsid()
    for source, target in ((os.open("/dev/null", os.O_RDONLY), 0), (stdout, 1), (stderr, 2)):
        os.dup2(source, target)
        os.close(source)
    job = json.loads(os.pread(job_file, os.fstat(job_file).st_size, 0))
    os.ftruncate(job_file, 0)
    return job, job_file


def run_job(files: list[int], lock: Lock) -> None:
    """Lock in, run the program, then the check among its names, write what the check calls ``result``, and end."""
    status = SETUP_FAILED
    try:
        job, result = take_job(files)
        lock.close(job["limits"])
        os.pwrite(result, LOCKED_IN, 0)
        status = 1
        names = load("program", job["program"], {})
        value = str(load("check", job["check"], names).get("result", "")) if job["check"] else ""
        sys.stdout.flush()
        answer = job["nonce"] + value[: job["limits"]["value_chars"]]
        os.pwrite(result, answer.encode("utf-8", "replace"), len(LOCKED_IN))
        status = 0
    except BaseException:
        traceback.print_exc(limit=-4)
    finally:
        os._exit(status)


def folder_bytes() -> int:
    """Bytes that the files of the working folder take on the disk; there are no folders in it."""
    total = 0
    for entry in os.scandir("."):
        try:
            total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:
            continue
    return total


def watch(pid: int, client: socket.socket, limits: "dict[str, Any]") -> "tuple[int, str]":
    """Wait for the end of a program, or end it: its exit status, and why it was stopped ("" if it was not)."""
    deadline, stopped = time.monotonic() + limits["wall_s"], ""
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(client, select.POLLIN)  # nothing is due on it but its end
    while not (ready := poll.poll(1000 * LOOK_EVERY_S)):
        if time.monotonic() > deadline:
            stopped = "timeout"
        elif folder_bytes() > limits["folder_bytes"]:
            stopped = "files"
        if stopped:
            break
    if pidfd not in [fd for fd, _ in ready]:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), stopped


def serve(client: socket.socket) -> None:
    """Run one job after another until the other end of the socket closes."""
    lock = Lock()
    client.sendall(b"ready\n")
    while True:
        message, files, _, _ = socket.recv_fds(client, 4096, 3)
        if not message:
            return
        if (pid := os.fork()) == 0:
            client.close()
            run_job(files, lock)
        for file in files:
            os.close(file)
        status, stopped = watch(pid, client, json.loads(message))
        client.sendall(f"{status} {stopped}\n".encode())


if __name__ == "__main__":
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except (OSError, ValueError) as problem:
        print(problem, file=sys.stderr, flush=True)
        sys.exit(SETUP_FAILED)
