"""What a program in the sandbox can and cannot do: every attack is a real program in a real process.

Each attack is one that does little harm should it succeed.
"""

import contextlib
import copy
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from proxykd.config.verifiers import SandboxSpec
from proxykd.data import sandbox_guest
from proxykd.data.sandbox import RunEnd, Sandbox
from proxykd.exceptions import SandboxError

pytestmark = pytest.mark.integration

SECRET = "sk-very-secret"  # not a key of anything
QUICK = SandboxSpec(wall_s=5.0, cpu_s=1, memory_mib=128, file_kib=64, folder_mib=1)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox(QUICK)
    yield box
    box.close()


def error_of(sandbox: Sandbox, program: str) -> str:
    """The last line of the traceback with which ``program`` ends."""
    run = sandbox.run(program)
    assert run.end is RunEnd.ERROR, run
    return run.stderr.strip().splitlines()[-1]


def assert_gone(pid: int) -> None:
    """A process ends soon, however busy the machine is."""
    assert pid > 1
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_program_prints_and_its_check_reads_its_names(sandbox: Sandbox) -> None:
    run = sandbox.run("print('hello')\ndef double(x): return 2 * x", "result = double(21)")
    assert (run.end, run.value, run.stdout, run.stderr) == (RunEnd.DONE, "42", "hello\n", "")


def test_a_program_is_the_main_module_and_may_leave_with_status_zero(sandbox: Sandbox) -> None:
    run = sandbox.run("import sys\nanswer = 7\nif __name__ == '__main__': sys.exit(0)", "result = answer")
    assert (run.end, run.value) == (RunEnd.DONE, "7")


@pytest.mark.parametrize("program", ["1 / 0", "def", "import sys; sys.exit(3)", "raise KeyboardInterrupt", "\ud800"])
def test_a_program_that_fails_has_no_value(sandbox: Sandbox, program: str) -> None:
    run = sandbox.run(program, "result = 1")
    assert (run.end, run.value) == (RunEnd.ERROR, "")
    assert run.stderr


@pytest.mark.parametrize(
    "exit_early", ["import os; os._exit(0)", "import sys; sys.stdout.flush(); __import__('os')._exit(0)"]
)
def test_a_program_that_leaves_before_its_check_is_not_done(sandbox: Sandbox, exit_early: str) -> None:
    assert sandbox.run(exit_early, "result = 1").end is RunEnd.ERROR


def test_the_standard_library_is_there_and_installed_packages_are_not(sandbox: Sandbox) -> None:
    names = "math, re, json, random, datetime, decimal, fractions, itertools, statistics, heapq, hashlib, typing, zlib"
    assert (
        sandbox.run(f"import {names}\nprint(math.comb(5, 2), hashlib.sha256(b'').hexdigest()[:4])").stdout
        == "10 e3b0\n"
    )
    assert "ModuleNotFoundError" in error_of(sandbox, "import numpy")
    assert "ModuleNotFoundError" in error_of(sandbox, "import proxykd")


def test_a_server_on_loopback_is_not_reached(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # it is there
        server.accept()[0].close()
        server.settimeout(0.1)
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert "PermissionError" in error_of(sandbox, program)
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import socket; socket.getaddrinfo('example.invalid', 80)",
        "import socket; socket.socket(socket.AF_UNIX)",
        "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "import socket; socket.socketpair()",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:1/')",
    ],
)
def test_there_is_no_network(sandbox: Sandbox, program: str) -> None:
    last = error_of(sandbox, program)
    assert "Permission" in last or "not permitted" in last or "gaierror" in last


def test_files_of_the_user_are_not_read(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    checkout = Path(sandbox_guest.__file__)
    for path in (secret, checkout, Path("/etc/passwd"), Path("/proc/self/environ"), Path("/proc/1/cmdline")):
        assert path.exists()
        for attempt in (f"print(open({str(path)!r}, 'rb').read())", f"import os; os.open({str(path)!r}, os.O_WRONLY)"):
            assert "PermissionError" in error_of(sandbox, attempt), path
    installed = Path(os.__file__).parent / "site-packages"
    for folder in (tmp_path, checkout.parent, installed, Path.home(), Path("/"), Path("/tmp"), Path("/proc")):
        assert "PermissionError" in error_of(sandbox, f"import os; os.listdir({str(folder)!r})"), folder
    assert secret.read_text() == SECRET


@pytest.mark.parametrize("where", ["..", "/tmp", "/dev/shm", "/var/tmp", "home"])
def test_nothing_is_written_outside_the_folder(sandbox: Sandbox, where: str) -> None:
    folder = Path.home() if where == "home" else Path(where)
    name = f"escaped-{os.getpid()}"
    assert "PermissionError" in error_of(sandbox, f"open({str(folder / name)!r}, 'w')")
    assert "Error" in error_of(sandbox, f"open('x', 'w').close()\nimport os; os.rename('x', {str(folder / name)!r})")
    assert not (folder / name).exists()


@pytest.mark.parametrize(
    "attempt",
    [
        "os.mkdir('folder')",
        "os.symlink('/etc/passwd', 'link')",
        "os.link('x', 'y')",
        "os.chmod('x', 0o777)",
        "os.chown('x', 1, 1)",
        "os.utime('x')",
        "os.mkfifo('pipe')",
        "os.setxattr('x', 'user.a', b'1')",
        "os.truncate('x', 0)",
        "os.chroot('.')",
        "os.readlink('/proc/self/exe')",
        "os.memfd_create('x')",
        "os.nice(-5)",
        "os.sched_setaffinity(0, {0})",
        "os.setuid(0)",
    ],
)
def test_calls_beyond_plain_files_and_computing_are_refused(sandbox: Sandbox, attempt: str) -> None:
    last = error_of(sandbox, f"import os\nopen('x', 'w').close()\n{attempt}")
    assert "PermissionError" in last or "Operation not permitted" in last, last


def test_the_folder_is_used_and_is_empty_again_for_the_next_program() -> None:
    box = Sandbox(QUICK)
    write = "import os\nprint(os.listdir('.'))\nopen('notes', 'w').write('hello')\nprint(open('notes').read())"
    for _ in range(2):
        assert box.run(write).stdout == "[]\nhello\n"
    box.close()


def test_the_environment_and_standard_input_are_empty(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYKD_TEST_KEY", SECRET)
    run = Sandbox(QUICK).run("import os, sys\nprint(dict(os.environ), repr(sys.stdin.read()), sys.argv[1:])")
    assert SECRET not in run.stdout
    assert "PROXYKD" not in run.stdout
    assert " '' " in run.stdout


def test_no_descriptor_of_ours_is_inherited(sandbox: Sandbox, tmp_path: Path) -> None:
    with (tmp_path / "open").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        program = """
import os
for fd in range(1024):
    try: print(fd, os.fstat(fd).st_mode >> 12)
    except OSError: pass
"""
        lines = Sandbox(QUICK).run(program).stdout.split("\n")[:-1]
    # Empty input, output, errors, and the file of the result: one device and three regular files.
    assert [line.split()[1] for line in lines] == ["2", "8", "8", "8"]


@pytest.mark.parametrize(
    "program",
    [
        "import os\nfor _ in range(8): os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.execv('/bin/sh', ['sh', '-c', 'true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
        "import threading; threading.Thread(target=print).start()",
    ],
)
def test_no_process_and_no_thread_is_started(sandbox: Sandbox, program: str) -> None:
    last = error_of(sandbox, program)
    assert "not permitted" in last or "can't start new thread" in last


def test_other_processes_are_not_signalled(sandbox: Sandbox) -> None:
    for target in ("os.getppid()", str(os.getpid()), "0", "-1"):
        assert "PermissionError" in error_of(sandbox, f"import os; os.kill({target}, 0)"), target
    assert sandbox.run("print(1)").stdout == "1\n"  # the same server goes on


CTYPES = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
@pytest.mark.parametrize(
    ("what", "call"),
    [
        ("socket", "call(41, 2, 1, 0)"),
        ("clone", "call(56, 17, 0, 0, 0, 0)"),
        ("vfork", "call(58)"),
        ("execve", "call(59, b'/bin/true', 0, 0)"),
        ("ptrace", "call(101, 16, libc.getppid(), 0, 0)"),
        ("mount", "call(165, b'none', b'/no/such/folder', b'tmpfs', 0, 0)"),
        ("unshare", "call(272, 0x10000000)"),
        ("process_vm_readv", "call(310, libc.getppid(), 0, 0, 0, 0, 0)"),
        ("bpf", "call(321, 0, 0, 0)"),
        ("io_uring_setup", "call(425, 8, 0)"),
        ("pidfd_open", "call(434, libc.getppid(), 0)"),
        ("clone3", "call(435, 0, 0)"),
        ("openat2", "call(437, -100, b'/etc/passwd', 0, 24)"),
        ("a new filter", "call(157, 22, 0, 0, 0, 0)"),
        ("raised limits", "call(302, 0, 9, (ctypes.c_uint64 * 2)(2**40, 2**40), 0)"),
        ("limits of others", "call(302, libc.getppid(), 0, (ctypes.c_uint64 * 2)(2**64 - 1, 2**64 - 1), 0)"),
        ("terminal input", "call(16, 1, 0x5412, b'x')"),
        ("signals by descriptor", "call(72, 1, 8, libc.getppid())"),
    ],
)
def test_no_call_past_the_library_gets_out(sandbox: Sandbox, what: str, call: str) -> None:
    assert "[Errno 1] refused" in error_of(sandbox, CTYPES + call), what


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64")
def test_the_other_numbering_of_the_same_machine_ends_the_process(sandbox: Sandbox) -> None:
    assert sandbox.run(CTYPES + "call(0x40000000 + 39)").end is RunEnd.KILLED


def test_a_program_has_no_privileges_even_where_we_are_root(sandbox: Sandbox) -> None:
    server = int(sandbox.run("import os\nprint(os.getppid())").stdout)
    status: dict[str, str] = {}  # as last seen: the program begins with our rights and gives them up
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.run, "import time\ntime.sleep(0.4)")
        while not running.done():
            for program in Path(f"/proc/{server}/task/{server}/children").read_text().split():
                with contextlib.suppress(OSError):  # it has ended
                    lines = Path(f"/proc/{program}/status").read_text().splitlines()
                    status = dict(line.split(":\t", 1) for line in lines)
            time.sleep(0.02)
        assert running.result().end is RunEnd.DONE
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Amb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"], status["Threads"]) == ("1", "2", "1")


def test_limits_stay_as_they_are(sandbox: Sandbox) -> None:
    program = """
import resource
try: resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
except (OSError, ValueError): print(resource.getrlimit(resource.RLIMIT_AS)[1] // 2**20)
"""
    assert sandbox.run(program).stdout == "128\n"


@pytest.mark.parametrize(
    "program",
    ["x = 'x' * 10**10", "x = []\nwhile True: x.append(bytes(10**6))", "import mmap; mmap.mmap(-1, 2**30)"],
)
def test_memory_is_bounded(sandbox: Sandbox, program: str) -> None:
    last = error_of(sandbox, program)
    assert "MemoryError" in last or "Cannot allocate memory" in last


def test_computing_is_bounded(sandbox: Sandbox) -> None:
    assert sandbox.run("while True: pass").end is RunEnd.TIMEOUT


def test_computing_is_bounded_where_the_signal_is_ignored() -> None:
    box = Sandbox(QUICK.model_copy(update={"wall_s": 20.0}))
    stubborn = box.run("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass")
    assert stubborn.end is RunEnd.KILLED
    assert stubborn.wall_s < 15
    box.close()


def test_sleeping_is_bounded_and_nothing_outlives_the_run() -> None:
    box = Sandbox(QUICK.model_copy(update={"wall_s": 0.3}))
    run = box.run("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    assert run.end is RunEnd.TIMEOUT
    assert run.wall_s < 3
    with pytest.raises(ProcessLookupError):
        os.kill(int(run.stdout), 0)
    box.close()


def test_output_and_files_are_bounded(sandbox: Sandbox) -> None:
    run = sandbox.run("while True: print('x' * 1000)")
    assert (run.end, len(run.stdout)) == (RunEnd.ERROR, 64 * 1024)
    assert "File too large" in error_of(
        sandbox, "open('x', 'wb').write(bytes(10**6)); open('y', 'wb').write(bytes(65537))"
    )
    many = "i = 0\nwhile True:\n    i += 1\n    open(f'{i}', 'wb').write(bytes(60_000))"
    assert sandbox.run(many).end is RunEnd.FILES
    assert "Too many open files" in error_of(sandbox, "x = [open('x', 'w') for _ in range(100)]")
    assert len(sandbox.run("", "result = 'x' * 10**7").value) == 16_384


def test_a_crash_of_the_interpreter_is_a_killed_run(sandbox: Sandbox) -> None:
    assert sandbox.run("import ctypes; ctypes.string_at(0)").end is RunEnd.KILLED
    assert sandbox.run("print(1)").stdout == "1\n"


def test_sets_have_the_same_order_in_every_run() -> None:
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f'}))"
    assert len({Sandbox(QUICK).run(program).stdout for _ in range(4)}) == 1


def test_programs_of_several_threads_run_side_by_side(sandbox: Sandbox) -> None:
    def square(number: int) -> str:
        return sandbox.run(f"answer = {number} ** 2", "result = answer").value

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, range(40))) == [str(number**2) for number in range(40)]


def test_a_sandbox_that_is_forgotten_leaves_no_process() -> None:
    box = Sandbox(QUICK)
    server = box.run("import os\nprint(os.getppid())").stdout
    assert int(server) > 1
    os.kill(int(server), 0)
    del box
    gc.collect()
    with pytest.raises(ProcessLookupError):
        os.kill(int(server), 0)


def test_a_forked_process_has_servers_of_its_own() -> None:
    ours = """
import gc, os
from proxykd.data.sandbox import Sandbox
box = Sandbox()
ask = "import os\\nprint(os.getppid())"
server = box.run(ask).stdout
if (child := os.fork()) == 0:
    mine = box.run(ask).stdout
    del box
    gc.collect()
    os._exit(7 if mine != server else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert box.run(ask).stdout == server
"""
    finished = subprocess.run([sys.executable, "-c", ours], capture_output=True, text=True, timeout=60, check=False)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_a_copy_for_another_process_has_the_same_limits(sandbox: Sandbox) -> None:
    again = copy.copy(sandbox)
    assert again is not sandbox
    assert again.limits == sandbox.limits
    assert again.run("print(1)").stdout == "1\n"


def test_a_broken_server_is_replaced() -> None:
    box = Sandbox(QUICK)
    server = int(box.run("import os\nprint(os.getppid())").stdout)
    assert server > 1
    threading.Timer(0.3, os.kill, (server, signal.SIGKILL)).start()
    broken = box.run("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(30)")
    assert broken.end is RunEnd.KILLED
    assert_gone(int(broken.stdout))
    assert box.run("print(1)").stdout == "1\n"
    box.close()


def test_when_we_are_killed_nothing_is_left_of_the_program(tmp_path: Path) -> None:
    ours = """
from proxykd.data.sandbox import Sandbox
box = Sandbox()
print(box.run("import os\\nprint(os.getppid())").stdout.strip(), flush=True)
box.run("import time\\nopen('notes', 'w').close()\\ntime.sleep(9)")
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", ours], stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        server = int(process.stdout.readline())
        deadline = time.monotonic() + 5
        while not list(tmp_path.glob("*/notes")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert_gone(server)
    assert not list(tmp_path.iterdir())


def test_too_little_memory_to_be_held_in_is_an_error_that_says_so() -> None:
    with pytest.raises(SandboxError, match="expected the kernel to hold programs in"):
        Sandbox(SandboxSpec.model_construct(**{**QUICK.model_dump(), "memory_mib": 1}))


def test_without_landlock_nothing_is_run(tmp_path: Path) -> None:
    # A filter that refuses the three calls of Landlock, as an old kernel does, then the library on top of it.
    ours = f"""
import sys
from proxykd.data import sandbox_guest as guest
from proxykd.data.sandbox import Sandbox
from proxykd.exceptions import SandboxError
steps = [(0x20, 0, 0, 0)]
for number in (444, 445, 446):
    steps += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050026)]
guest.libc.prctl(38, 1, 0, 0, 0)
guest.install_filter(guest.encode_filter([*steps, (0x06, 0, 0, 0x7FFF0000)]))
try:
    Sandbox().run("open({str(tmp_path / "ran")!r}, 'w')")
except SandboxError as error:
    print(error)
"""
    finished = subprocess.run([sys.executable, "-c", ours], capture_output=True, text=True, timeout=60, check=True)
    assert "programs cannot be held in on this machine: [Errno 38] Landlock" in finished.stdout
    assert not (tmp_path / "ran").exists()


def test_the_filter_fits_both_machines() -> None:
    for machine in sandbox_guest.ARCHITECTURES:
        steps = sandbox_guest.build_filter(machine)
        assert len(steps) < 4096  # the kernel's limit
        for index, (code, true, false, _) in enumerate(steps):
            assert 0 <= max(true, false) < 256
            assert code == 0x06 or index + 1 + max(true, false) < len(steps)
        assert steps[-1][0] == 0x06
        assert len(sandbox_guest.encode_filter(steps)) == 8 * len(steps)
