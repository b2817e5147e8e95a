"""The inside of the sandbox: runs a program where it can reach nothing. Started by `sandbox.py` alone.

This file is run by `python -I -S`, imports nothing but the standard library, and is a single thread,
which the process that wants a program to be run is not. On standard input comes a JSON object with
`program`, `limits` and `confine`; the file descriptor of the one argument takes one with how it ended.

1. As root: new namespaces of mounts, network, processes, System V objects and names. As anybody else:
   the same in a new user namespace, where the own user is called NOBODY.
2. A root folder in memory with nothing but Python and the system's libraries, read-only, an empty
   private folder, and /dev/null. The old one is unmounted.
3. An own user id that no other process has (limits on processes count by user, and do not bind root),
   no groups, no privileges to be had, limits, and an empty environment.
4. A seccomp filter that refuses the system calls which get around those: System V objects, new
   namespaces, mounts, other processes.
5. The first process of the new namespace waits for the program: with its end the kernel ends all others.
   Without `confine` what the program leaves behind comes to this process, which ends it.

Python reads the program from a pipe, so that no file has its text when it runs.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
from errno import ENOSYS, EPERM
from typing import NoReturn

NOBODY = 65534
OWN_IDS = 1_879_048_192
"""User ids from here on are given to nobody: a sandbox adds its process id."""
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
RDONLY, NOSUID, NODEV = 1, 2, 4
"""Of mount_setattr."""
MNT_DETACH, AT_FDCWD, AT_RECURSIVE = 2, -100, 0x8000
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
NEW_NAMESPACES = 0x00020000 | 0x40000000 | 0x20000000 | 0x08000000 | 0x04000000
"""Mounts, network, process ids, System V objects, names."""
NEW_USER = 0x10000000
MOUNT_SETATTR = 442
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
FOLDER = "/box"
SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache")
SIGNALLED = 128
"""Added to the number of a signal in the exit status, as shells do."""

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""As the kernel's audit.h numbers them."""
CLONE = {"x86_64": 56, "aarch64": 220}
CLONE3 = 435
OTHER_ABI = 0x40000000
"""From here on the system calls of x32 are numbered, which name the same ones again."""
SYSTEM_V = {"x86_64": (*range(29, 32), *range(64, 72)), "aarch64": tuple(range(186, 198))}
"""Shared memory, semaphores and messages: they belong to no process, and so have no limit."""
BY_MACHINE = {
    "x86_64": (
        *(101, 250, 248, 249, 298),  # ptrace, keyctl, add_key, request_key, perf_event_open
        *(310, 311, 319, 321, 323, 240),  # process_vm_*, memfd_create, bpf, userfaultfd, mq_open
        *(165, 166, 155, 161, 272, 308),  # mount, umount2, pivot_root, chroot, unshare, setns
    ),
    "aarch64": (
        *(117, 219, 217, 218, 241),
        *(270, 271, 279, 280, 282, 180),
        *(40, 39, 41, 51, 97, 268),
    ),
}
EVERYWHERE = (
    *(425, 426, 427, 447),  # io_uring_*, memfd_secret
    *(428, 429, 430, 431, 432, 433, MOUNT_SETATTR, 467),  # the new ways to mount
)
NAMESPACES = 0x7E020000
"""All flags of clone that make one."""

libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    endings = int(sys.argv[1])
    os.set_inheritable(endings, False)
    request = json.load(sys.stdin)
    limits = request["limits"]
    os.umask(0o022)
    python = os.path.realpath(sys.executable)
    try:
        if request["confine"]:
            _confine(python, limits["folder_bytes"])
        else:
            os.chdir(request["folder"])
    except (OSError, KeyError) as error:
        _tell(endings, refused=str(error))
        return
    reading, writing = os.pipe()
    if not request["confine"]:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    first = os.fork()
    if not first:
        os.close(writing)
        os.dup2(reading, 0)
        _first_process(python, limits, endings, request["confine"])
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), open(writing, "wb") as file:
        file.write(request["program"].encode(errors="surrogatepass"))
    status = _wait(first, limits["seconds"])
    if not request["confine"]:
        _end_orphans()
    _tell(endings, status=status)


def _tell(endings: int, **ending: object) -> None:
    os.write(endings, json.dumps(ending).encode() + b"\n")


def _first_process(python: str, limits: dict[str, int], endings: int, filtered: bool) -> NoReturn:
    """Ends with the program's exit status; when it ends, or is killed, its namespace is empty.

    The program may send it signals, which wait for ever.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.setsid()
    program = os.fork()
    if not program:
        _become_program(python, limits, endings, filtered)
    ended, status = 0, 0
    while ended != program:  # children that lost their parents end here, too
        ended, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else SIGNALLED - code)


def _become_program(python: str, limits: dict[str, int], endings: int, filtered: bool) -> NoReturn:
    for name, value in (
        (resource.RLIMIT_CPU, limits["seconds"] + 1),
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_NPROC, limits["processes"] + 2),  # the first process, and who started it
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        resource.setrlimit(name, (value, value))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        if filtered:
            _forbid(platform.machine())
        os.execve(python, [python, "-I", "-S", "-B", "-X", "utf8", "-"], {})
    except OSError as error:
        _tell(endings, refused=f"{python}: {error}")
        os._exit(1)


def _forbid(machine: str) -> None:
    """From here on the kernel refuses the system calls listed above, and new namespaces.

    The filter is in classic BPF (seccomp(2)): operation, what to skip when true and when false, operand.
    """
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allowed, refused, unknown, killed = 0x7FFF0000, 0x50000 | EPERM, 0x50000 | ENOSYS, 0x80000000
    code = [(load, 0, 0, 4), (equal, 1, 0, ARCHITECTURE[machine]), (end, 0, 0, killed)]
    code += [(load, 0, 0, 0), (at_least, 0, 1, OTHER_ABI), (end, 0, 0, refused)]
    code += [(equal, 0, 1, CLONE3), (end, 0, 0, unknown)]  # its flags are not seen; clone is taken
    for number in (*SYSTEM_V[machine], *BY_MACHINE[machine], *EVERYWHERE):
        code += [(equal, 0, 1, number), (end, 0, 0, refused)]
    code += [(equal, 0, 3, CLONE[machine]), (load, 0, 0, 16)]
    code += [(any_bit, 0, 1, NAMESPACES), (end, 0, 0, refused), (end, 0, 0, allowed)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = struct.pack("HP", len(code), ctypes.addressof(filters))
    _check(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0), "seccomp")


def _wait(process: int, seconds: int) -> int | None:
    """The exit status of the first process, or None when the time was over and it was killed."""
    ended, _, _ = select.select([os.pidfd_open(process)], [], [], seconds)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def _end_orphans() -> None:
    """End what the program left behind, also in sessions of its own, and whatever that starts."""
    with contextlib.suppress(ChildProcessError):
        while True:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                for child in file.read().split():
                    os.kill(int(child), signal.SIGKILL)
            os.wait()


def _confine(python: str, folder_bytes: int) -> None:
    root, user, group = os.geteuid() == 0, os.geteuid(), os.getegid()
    _check(libc.unshare(NEW_NAMESPACES if root else NEW_NAMESPACES | NEW_USER), "unshare")
    if not root:
        for name, content in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {user} 1"),
            ("gid_map", f"{NOBODY} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(content)
    _change_root(python, folder_bytes)
    if root:
        os.setgroups([])
        try:
            _become(OWN_IDS + os.getpid())
        except OSError:  # in a container that has few ids
            _become(NOBODY)


def _become(user: int) -> None:
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _change_root(python: str, folder_bytes: int) -> None:
    prefix, new = os.path.realpath(sys.base_prefix), "/tmp"  # covered in this namespace alone
    if f"{prefix}/".startswith("/tmp/"):
        raise OSError(f"Python is in {prefix}, and the sandbox needs one outside of /tmp")
    _mount("none", "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", new, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=1k,mode=755")
    for place in (*SYSTEM, prefix if prefix != "/usr" else python):
        _show(place, new, RDONLY | NOSUID | NODEV)
    _show("/dev/null", new, NOSUID)
    os.mkdir(f"{new}{FOLDER}")
    folder = f"size={folder_bytes},nr_inodes=4k,mode=777"
    _mount("tmpfs", f"{new}{FOLDER}", "tmpfs", MS_NOSUID | MS_NODEV, folder)
    _set_flags(new, RDONLY, 0)
    os.chdir(new)
    _check(libc.syscall(PIVOT_ROOT[platform.machine()], b".", b"."), "pivot_root")
    _check(libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir(FOLDER)


def _show(place: str, root: str, flags: int) -> None:
    """Have a folder, file or link of the system also below `root`, where it is there."""
    target = f"{root}{place}"
    if not os.path.exists(place):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(place):
        os.symlink(os.readlink(place), target)
        return
    if os.path.isdir(place):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT, 0o644))
    _mount(place, target, None, MS_BIND | MS_REC)
    _set_flags(target, flags, AT_RECURSIVE)


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    words = (source.encode(), target.encode(), kind.encode() if kind else None)
    _check(libc.mount(*words, ctypes.c_ulong(flags), data.encode()), f"mount {target}")


def _set_flags(target: str, flags: int, depth: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(flags)  # to set, to clear, propagation, user namespace
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = libc.syscall(MOUNT_SETATTR, AT_FDCWD, target.encode(), depth, attributes, size)
    _check(result, f"mount_setattr {target}")


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
