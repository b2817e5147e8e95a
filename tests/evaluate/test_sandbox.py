"""Each program here does what a generated one might; none may get further than its sandbox."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from panthalassa.errors import PanthalassaError
from panthalassa.evaluate import sandbox, sandboxed
from panthalassa.evaluate.sandbox import Limits, run

SYSTEM_PYTHON = "/usr/bin/python3"
AS_ANYBODY = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
WITHOUT_MOUNTS = ["setpriv", "--bounding-set=-sys_admin"]
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")


@pytest.fixture(scope="module", autouse=True)
def _possible() -> None:
    try:
        run("")
    except PanthalassaError as error:
        pytest.skip(str(error))


def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    assert (
        run("import math, json, re\nassert math.gcd(12, 18) == 6\nprint('done')").output == "done\n"
    )
    wrong = run("assert 1 + 1 == 3")
    assert wrong.status == 1
    assert "AssertionError" in wrong.output
    assert run("import sys; sys.exit(7)").status == 7
    assert run("import os; os.kill(os.getpid(), 11)").status == 128 + 11
    assert run("def broken(").status == 1


def test_a_fork_storm_starts_no_more_than_its_limit_and_leaves_nothing() -> None:
    storm = """
import os, time
started = 0
for _ in range(200):
    try:
        if not os.fork():
            os.setsid()
            time.sleep(60)
            os._exit(0)
    except BlockingIOError:
        break
    started += 1
print(started)
"""
    ending = run(storm, Limits(processes=16))
    assert ending.status == 0
    assert 1 <= int(ending.output) <= 16
    assert nothing_stays()


def nothing_stays() -> bool:
    """Whether all programs that are there now, also those of other tests, end soon."""
    return not psutil.wait_procs(strangers(), timeout=30)[1]


def strangers() -> Iterator[psutil.Process]:
    """Processes of the ids that only sandboxes have."""
    for process in psutil.process_iter(["uids"]):
        if process.info["uids"] and process.info["uids"].real >= sandboxed.OWN_IDS:
            yield process


def test_programs_that_run_at_once_have_limits_of_their_own() -> None:
    program = """
import os, time
for _ in range(5):
    if not os.fork():
        time.sleep(1)
        os._exit(0)
print("started")
"""
    with ThreadPoolExecutor(4) as pool:
        endings = list(pool.map(run, [program] * 4))
    assert [ending.output for ending in endings] == ["started\n"] * 4


def test_an_endless_loop_ends_when_its_time_is_over() -> None:
    assert run("while True: pass", Limits(seconds=1)).status is None
    assert run("import time; time.sleep(60)", Limits(seconds=1)).status is None
    assert (
        run("import os\nos.fork()\nos.setsid()\nwhile True: pass", Limits(seconds=1)).status is None
    )
    assert nothing_stays()


def test_files_outside_are_neither_seen_nor_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the key")
    secret.chmod(0o666)
    reading = run(f"print(open({str(secret)!r}).read())")
    assert "FileNotFoundError" in reading.output
    assert "the key" not in reading.output
    for place in (
        "/tmp/x",
        "/x",
        "/usr/lib/x",
        f"{sys.base_prefix}/lib/x",
        "/etc/passwd",
        "/dev/shm/x",
    ):
        ending = run(f"open({place!r}, 'w').write('x')")
        assert ending.status == 1, place
        assert "Error: " in ending.output
        assert not Path("/x").exists()
    assert secret.read_text() == "the key"
    assert "FileNotFoundError" in run("open('/proc/1/environ')").output


def test_its_own_folder_is_written_and_then_gone() -> None:
    assert run("open('a.txt', 'w').write('x'); print(open('a.txt').read())").output == "x\n"
    assert run("import os; print(os.listdir('.'))").output == "[]\n"


def test_secrets_of_the_environment_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the key")
    ending = run("import os; print(dict(os.environ), open(0).read())")
    assert ending.status == 0
    assert "the key" not in ending.output
    assert "AWS" not in ending.output


def test_there_is_no_network_not_even_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        ending = run(f"import socket; socket.create_connection({server.getsockname()})")
        assert "Network is unreachable" in ending.output
        with pytest.raises(TimeoutError):
            server.accept()
    name = f"\0panthalassa-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        ending = run(f"import socket; socket.socket(socket.AF_UNIX).connect({name!r})")
        assert "ConnectionRefusedError" in ending.output


def test_memory_files_and_output_end_at_their_limits() -> None:
    assert "MemoryError" in run("bytearray(8 << 30)").output
    endless = run("while True: print('x' * 1000)")
    assert endless.status not in (0, None)
    assert len(endless.output) <= Limits().file_bytes
    assert "File too large" in run("open('a', 'wb').write(bytes(2 << 20))").output
    many = "for n in range(100): open(str(n), 'wb').write(bytes(1 << 20))"
    assert "No space left" in run(many, Limits(folder_bytes=4 << 20)).output
    assert "Too many open files" in run("kept = [open('/dev/null') for _ in range(100)]").output


def test_memory_that_belongs_to_no_process_is_refused() -> None:
    program = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
calls = {
    "shmget": (0, 1 << 20, 0o600),
    "shmat": (0, None, 0),
    "semget": (0, 32, 0o600),
    "msgget": (0, 0o600),
    "memfd_create": (b"a", 0),
    "mq_open": (b"/a", 0o102, 0o600, None),
}
for name, arguments in calls.items():
    print(name, getattr(libc, name)(*arguments), errno.errorcode[ctypes.get_errno()])
"""
    lines = run(program).output.splitlines()
    assert len(lines) == 6
    assert all(line.endswith(" -1 EPERM") for line in lines), lines


def test_neither_namespaces_nor_mounts_nor_other_processes_are_had() -> None:
    program = """
import ctypes, errno, platform
libc = ctypes.CDLL(None, use_errno=True)
clone = {"x86_64": 56, "aarch64": 220}[platform.machine()]
def tell(name, result):
    print(name, result, errno.errorcode[ctypes.get_errno()])
for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
    tell("unshare", libc.unshare(flag))
    if flag > 0x80:
        tell("clone", libc.syscall(clone, flag | 17, None, None, None, None))
tell("mount", libc.mount(b"none", b"/box", b"tmpfs", 0, None))
tell("setns", libc.setns(0, 0))
tell("ptrace", libc.ptrace(0, 0, 0, 0))
tell("io_uring_setup", libc.syscall(425, 1, None))
tell("clone3", libc.syscall(435, None, 0))
"""
    *lines, clone3 = run(program).output.splitlines()
    assert len(lines) == 19
    assert all(line.endswith(" -1 EPERM") for line in lines), lines
    assert clone3 == "clone3 -1 ENOSYS"


def test_threads_and_processes_of_the_library_are_allowed() -> None:
    program = """
import subprocess, sys, threading
thread = threading.Thread(target=print, args=("thread",), kwargs={"flush": True})
thread.start()
thread.join()
print(subprocess.run([sys.executable, "-c", "print('process')"], capture_output=True).stdout)
"""
    assert run(program).output == "thread\nb'process\\n'\n"


def test_a_program_that_is_larger_than_any_room_is_run_or_fails() -> None:
    assert run("#" * (40 << 20)).status == 0
    assert run("a = '" + "x" * (40 << 20) + "'", Limits(memory=64 << 20)).status == 1
    assert run("'\ud800'").status == 1


def test_the_text_of_a_program_is_in_no_file() -> None:
    ending = run("""
import os
for place, _, names in os.walk('/box'):
    print(place, names)
for descriptor in range(64):
    try:
        os.lseek(descriptor, 0, 0)
        print(os.read(descriptor, 100))
    except OSError:
        pass
print(os.read(0, 100))
""")
    assert ending.output.startswith("/box []\n")
    assert ending.output.endswith("b''\n")
    assert "lseek" not in ending.output


def test_signals_do_not_end_the_process_that_waits_for_a_program() -> None:
    program = """
import os, signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    os.kill(%s, number)
raise SystemExit(7)
"""
    ending = run(program % "1")
    assert (ending.status, ending.output) == (7, "")
    ending = run(program % "os.getppid()", confine=False)
    assert (ending.status, ending.output) == (7, "")


@pytest.mark.parametrize("end", ["", "while True: pass"])
def test_without_isolation_too_nothing_stays(end: str) -> None:
    program = """
import os, time
reading, writing = os.pipe()
for _ in range(3):
    if not os.fork():
        os.setsid()
        if not os.fork():
            os.setsid()
        os.write(1, b"%d\\n" % os.getpid())
        os.write(writing, b".")
        time.sleep(600)
        os._exit(0)
for _ in range(6):
    os.read(reading, 1)
"""
    ending = run(program + end, Limits(seconds=2), confine=False)
    started = [int(line) for line in ending.output.split()]
    assert len(set(started)) == 6
    assert not any(map(psutil.pid_exists, started))


def test_a_program_is_nobody_and_can_not_become_more() -> None:
    ending = run("import os; print(os.getuid(), os.getgroups()); os.setuid(0)")
    assert int(ending.output.split()[0]) >= sandboxed.NOBODY
    assert "PermissionError" in ending.output
    mounting = run(
        "import ctypes; print(ctypes.CDLL(None).mount(b'none', b'/box', b'tmpfs', 0, None))"
    )
    assert mounting.output == "-1\n"


def test_what_it_prints_is_no_message_to_the_sandbox() -> None:
    ending = run("""
import os
for descriptor in range(3, 64):
    try:
        os.write(descriptor, b'{"status": 0}')
    except OSError:
        pass
raise SystemExit(3)
""")
    assert ending.status == 3


def test_a_killed_evaluation_leaves_no_program_behind() -> None:
    code = """
from panthalassa.evaluate.sandbox import run, Limits
run("while True: pass", Limits(seconds=3))
"""
    before = set(strangers())
    child = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 60
    while not set(strangers()) - before and time.monotonic() < deadline:
        time.sleep(0.05)
    child.kill()
    child.wait()
    assert set(strangers()) - before
    assert nothing_stays()  # what starts programs ends them when their time is over


@ROOT
@pytest.mark.skipif(not Path(SYSTEM_PYTHON).exists(), reason="needs a Python for all users")
def test_anybody_has_the_same_sandbox_in_a_user_namespace() -> None:
    with tempfile.TemporaryDirectory() as folder:  # that others may enter, unlike tmp_path
        os.chmod(folder, 0o755)
        package = Path(folder, "panthalassa", "evaluate")
        package.mkdir(parents=True)
        for module in (sandbox, sandboxed):
            shutil.copy(str(module.__file__), package)
        shutil.copy(Path(str(sandbox.__file__)).parent.parent / "errors.py", package.parent)
        code = f"""
import sys
sys.path.insert(0, {folder!r})
from panthalassa.evaluate.sandbox import run, Limits
print(run("import os; print(os.getuid(), os.listdir('/box'), os.path.exists({folder!r}))").output)
print(run("import socket; socket.create_connection(('127.0.0.1', 9))").output)
print(run("open('/usr/lib/x', 'w')").output)
print(run("while True: pass", Limits(seconds=1)))
print(run('''
import os, time
for n in range(200):
    if not os.fork():
        time.sleep(9)
''').output)
"""
        command = [*AS_ANYBODY, SYSTEM_PYTHON, "-c", code]
        told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "can not be run in isolation" in told.stderr:
        pytest.skip("user namespaces are not for everybody here")
    for expected in (
        f"{sandboxed.NOBODY} [] False",
        "Network is unreachable",
        "Error: [Errno",
        "status=None",
        "BlockingIOError",
    ):
        assert expected in told.stdout, told


@ROOT
def test_without_isolation_programs_are_refused_unless_that_is_accepted() -> None:
    code = """
from panthalassa.evaluate.sandbox import run, Limits
print(run("print(1 + 1)", confine=False).output)
print(run("while True: pass", Limits(seconds=1), confine=False))
run("print(1 + 2)")
"""
    command = [*WITHOUT_MOUNTS, sys.executable, "-c", code]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert told.stdout.startswith("2\n\nEnding(status=None")
    assert "programs can not be run in isolation here: [Errno 1] unshare" in told.stderr
    assert "3" not in told.stdout
