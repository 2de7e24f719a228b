"""Faults for tests: interrupted processes, flipped bits, and small or read-only disks in a private mount namespace."""

import ctypes
import json
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import mergekern

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 1, 0x20, 0x4000, 0x40000

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["tests.support.warm", "tests.support.faults"])


def run(function, *arguments):
    """Run a function in another process, and return its result, or the name and message of its error."""
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        process.join()


def _send(sender, function, arguments):
    try:
        sender.send(function(*arguments))
    except Exception as error:
        sender.send([type(error).__name__, str(error)])


def on_small_disk(folder, size, kept, function, *arguments):
    """Run a function while a folder is a disk of `size` bytes, then copy the disk to `kept`."""
    folder.mkdir(exist_ok=True)
    try:
        _mount_privately("none", folder, "tmpfs", 0, f"size={size}")
    except PermissionError:
        # Where mounting is forbidden, the size of each file is limited instead.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 8, resource.RLIM_INFINITY))
    try:
        return function(*arguments)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        shutil.copytree(folder, kept)


def on_read_only(folder, function, *arguments):
    """Run a function while nothing can be written to a folder."""
    try:
        with tempfile.TemporaryDirectory() as aside:
            shutil.copytree(folder, aside, dirs_exist_ok=True)
            _mount_privately("none", folder, "tmpfs", 0, None)
            shutil.copytree(aside, folder, dirs_exist_ok=True)
        _mount("none", folder, "tmpfs", MS_REMOUNT | MS_RDONLY, None)
    except PermissionError:
        os.chmod(folder, 0o555)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    return function(*arguments)


def _mount_privately(source, target, kind, flags, options):
    user, group = os.getuid(), os.getgid()
    _call("unshare", CLONE_NEWNS if user == 0 else CLONE_NEWUSER | CLONE_NEWNS)
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    _mount(source, target, kind, flags, options)


def _mount(source, target, kind, flags, options):
    source, target, kind, options = (
        None if part is None else os.fsencode(part) for part in (source, target, kind, options)
    )
    _call("mount", source, target, kind, ctypes.c_ulong(flags), options)


def _call(name, *arguments):
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        raise PermissionError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def snapshot(folder):
    """Return the bytes of every file in a folder, by path, except the lock's files."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".lock")
    }


def flip(path, bit):
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def owner(folder):
    """Return the record of the process that holds the lock of a folder."""
    return json.loads((folder / ".lock-owner").read_text())


def files_of(folder):
    return sorted(path for path in folder.glob("*/*.safetensors"))


def measure(zoo, folder, **options):
    mergekern.measure(zoo, statistics=folder, **options)


def stopped(zoo, folder, how):
    """Measure up to the second tensor, where the process sends itself the signal `how`."""

    def progress(step):
        if step.tensors_done == 2:
            os.kill(os.getpid(), how)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    mergekern.measure(zoo, statistics=folder, progress=progress, options=mergekern.MeasureOptions(max_memory=20_000))
