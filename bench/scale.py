#!/usr/bin/env python3
"""Directories of a million entries through a mount: fill them, list them, watch the daemon's memory.

As root: bench/scale.py [--count N] [--build build]. Mounts a kvcfs of its own in a temporary directory. Exits 1 if a
listing misses an entry or brings one twice, if seekdir(3) does not come back to its place, or if the daemon's memory
grows with the length of a listing.
"""
import argparse
import ctypes
import hashlib
import os
import sys
import tempfile
import time

from mounted import Mounted

LISTING_MAY_TAKE_KIB = 32 * 1024  # of the daemon's memory, whatever the length
GIB = 1 << 30


class Dirent(ctypes.Structure):
    _fields_ = [("ino", ctypes.c_uint64), ("offset", ctypes.c_int64), ("length", ctypes.c_ushort),
                ("kind", ctypes.c_ubyte), ("name", ctypes.c_char * 256)]


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = ctypes.c_void_p
LIBC.readdir.restype = ctypes.POINTER(Dirent)
LIBC.readdir.argtypes = LIBC.closedir.argtypes = LIBC.telldir.argtypes = [ctypes.c_void_p]
LIBC.telldir.restype = ctypes.c_long
LIBC.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def memory_kib(pid):
    total = 0
    for process in [pid] + children(pid):
        with open(f"/proc/{process}/status", encoding="ascii") as file:
            total += sum(int(line.split()[1]) for line in file if line.startswith("RssAnon:"))
    return total


def list_directory(path):
    """Names, and whether seekdir in the middle led back to the same entry."""
    directory = LIBC.opendir(path.encode())
    if not directory:
        raise OSError(ctypes.get_errno(), path)
    names, at, expected = [], None, None
    while True:
        entry = LIBC.readdir(directory)
        if not entry:
            break
        name = entry.contents.name
        if at is not None and expected is None:
            expected = name
        if name not in (b".", b".."):
            names.append(name)
        if len(names) == 100000 and at is None:
            at = LIBC.telldir(directory)
    came_back = True
    if expected is not None:
        LIBC.seekdir(directory, at)
        came_back = LIBC.readdir(directory).contents.name == expected
    LIBC.closedir(directory)
    return names, came_back


def make(path, names, content):
    begin = time.monotonic()
    for number, name in enumerate(names):
        file = os.open(f"{path}/{name}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        if content:
            os.write(file, content)
        os.close(file)
        if number % 100000 == 99999 and sys.stderr.isatty():
            print(f"\r{path}: {number + 1}", end="", file=sys.stderr)
    return time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(prog="bench/scale.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000000)
    parser.add_argument("--build", default="build")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory(prefix="kvcfs-scale-") as directory, \
            Mounted(f"{options.build}/kvcfs", directory, 2 * GIB, 8 * GIB) as mounted:
        space = f"{mounted.path}/scale"
        os.mkdir(space)
        os.setxattr(space, "user.kvc.block_bytes", b"4096")
        os.mkdir(f"{space}/files/many")
        keys = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(options.count)]
        filled = {"chains": make(f"{space}/root", keys, b"x"),
                  "files": make(f"{space}/files/many", [f"f{i}" for i in range(options.count)], b"")}
        for what, seconds in filled.items():
            print(f"{what}: {options.count} made in {seconds:.0f} s")
        for what, path in (("chains", space), ("by-key", f"{space}/by-key"),
                           ("files", f"{space}/files/many")):
            list_directory(path)  # what the first one allocates stays allocated
            before, begin = memory_kib(mounted.process.pid), time.monotonic()
            names, came_back = list_directory(path)
            seconds, grown = time.monotonic() - begin, memory_kib(mounted.process.pid) - before
            found = len(set(names))
            print(f"{what}: {found} listed in {seconds:.2f} s; the daemon's memory: {before} KiB, "
                  f"{grown:+} KiB by the listing")
            if found < options.count or len(names) != found:
                failed.append(f"{what}: {len(names)} entries, {found} different")
            if not came_back:
                failed.append(f"{what}: seekdir leads elsewhere")
            if grown > LISTING_MAY_TAKE_KIB:
                failed.append(f"{what}: listing takes memory")
    for text in failed:
        print("FAILED", text)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
