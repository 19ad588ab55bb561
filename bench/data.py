#!/usr/bin/env python3
"""The data path by public tools: fio's jobs of bench/fio/ and many small files, on kvcfs, tmpfs, the disk, and any other mount.

As root: bench/data.py [--path NAME=DIR]... [--only ROWS] [--quick] [--json FILE]. Mounts a kvcfs of its own in a temporary
directory and works below NAMESPACE/files/; the other places are used in turns with it, in the same run. Prints what each
reached, and kvcfs divided by the other (1.00: equal, more is better). Exits 1 if anything failed on kvcfs.
"""
import argparse
import glob
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from mounted import BenchError, Mounted, mount_tmpfs

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
JOBS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fio")
SMALL_BYTES = 4 * KIB
FILES_A_DIRECTORY = 100
ROUNDS = 3


def progress(text):
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class Place:
    """Where a suite works: a directory, and how what is in it leaves memory."""

    def __init__(self, name, directory):
        self.name = name
        self.directory = directory
        os.makedirs(directory, exist_ok=True)

    def cool(self):
        subprocess.run(["sync", "-f", self.directory], check=True)
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as caches:
            caches.write("3\n")

    def close(self):
        shutil.rmtree(self.directory, ignore_errors=True)


class KvcfsPlace(Place):
    """A mount of its own. Unmounted and mounted again, with a DRAM tier that forgot, it reads from NVMe."""

    def __init__(self, kvcfs, top, tier_bytes):
        self.make = lambda fresh: Mounted(kvcfs, top, tier_bytes, 4 * tier_bytes, fresh=fresh)
        self.mounted = self.make(True)
        self.mounted.__enter__()
        self.space = self.mounted.namespace("bench", 4 * MIB)
        super().__init__("kvcfs", os.path.join(self.space, "files", "work"))

    def cool(self):
        self.mounted.__exit__()
        dram = os.path.join(self.mounted.data, "dram")
        if os.path.ismount(dram):
            subprocess.run(["umount", dram], check=True)
        self.mounted = self.make(False)
        self.mounted.__enter__()

    def close(self):
        self.mounted.__exit__()


def disk_name(directory):
    done = subprocess.run(["findmnt", "-n", "-o", "FSTYPE", "-T", directory], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "disk"


def job_text(path, quick):
    """A job file as it is, or a short form of it."""
    with open(path, encoding="ascii") as file:
        text = file.read()
    if quick:
        text = re.sub(r"(?m)^runtime=\d+", "runtime=1", text)
        text = re.sub(r"(?m)^filesize=64m", "filesize=4m", text)
        text = re.sub(r"(?m)^nrfiles=\d+", "nrfiles=8" if "filesize=160k" in text else "nrfiles=4", text)
        size = "1280k" if "filesize=160k" in text else "16m"
        text = re.sub(r"(?m)^size=.*", f"size={size}", text)
    return text


def run_fio(job, text, directory):
    """MB/s by (job name, read or write)."""
    with tempfile.NamedTemporaryFile("w", suffix=".fio") as file:
        file.write(text)
        file.flush()
        done = subprocess.run(["fio", "--output-format=json", file.name], capture_output=True, text=True,
                              env={**os.environ, "DIR": directory}, cwd=tempfile.gettempdir(), check=False)
    if done.returncode != 0:
        raise BenchError(f"fio {job} in {directory}: {(done.stderr or done.stdout).strip()[-400:]}")
    # Notes may stand before the object.
    report = json.loads(done.stdout[done.stdout.index("{"):])
    speeds = {}
    for one in report["jobs"]:
        for way in ("read", "write"):
            if one[way]["total_ios"] > 0 and one["jobname"] != "prepare":
                speeds[(one["jobname"], way)] = one[way]["bw_bytes"] / 1e6
    return speeds


def small_files(directory, count, generator):
    """Operations a second by name, each on all files once."""
    folders = [f"{directory}/d{i}" for i in range(max(1, count // FILES_A_DIRECTORY))]
    for folder in folders:
        os.mkdir(folder)
    names = [f"{folders[i % len(folders)]}/f{i}" for i in range(count)]
    content = os.urandom(SMALL_BYTES)
    rates = {}

    def timed(what, operation, items):
        items = list(items)
        begin = time.monotonic()
        for item in items:
            operation(item)
        rates[what] = len(items) / (time.monotonic() - begin)

    def create(name):
        file = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        os.write(file, content)
        os.close(file)

    def read(name):
        file = os.open(name, os.O_RDONLY)
        if os.read(file, SMALL_BYTES) != content:
            raise BenchError(f"{name} does not have what was written")
        os.close(file)

    def shuffled():
        order = names[:]
        generator.shuffle(order)
        return order

    timed("create", create, names)
    timed("stat", os.stat, shuffled())
    timed("open-read", read, shuffled())
    begin, found = time.monotonic(), 0
    for folder in folders:
        found += sum(1 for _ in os.scandir(folder))
    rates["list"] = found / (time.monotonic() - begin)
    if found != count:
        raise BenchError(f"{directory}: {found} of {count} files are listed")
    timed("rename", lambda name: os.rename(name, name + "r"), shuffled())
    timed("unlink", lambda name: os.unlink(name + "r"), shuffled())
    for folder in folders:
        os.rmdir(folder)
    return rates


class Suite:
    def __init__(self, places, options):
        self.places = places
        self.options = options
        self.rows = {}  # (suite, row, unit) -> {place: [values]}
        self.failed = []

    def wanted(self, name):
        return not self.options.only or any(name.startswith(one) for one in self.options.only.split(","))

    def note(self, suite, row, unit, place, value):
        self.rows.setdefault((suite, row, unit), {}).setdefault(place.name, []).append(value)

    def attempt(self, what, place, work):
        progress(f"{what} on {place.name}")
        try:
            return work()
        except (BenchError, OSError) as error:
            self.failed.append({"row": what, "place": place.name, "why": str(error)})
            return None

    def fio(self):
        for path in sorted(glob.glob(f"{JOBS}/*.fio")):
            job = os.path.splitext(os.path.basename(path))[0]
            if not self.wanted(job):
                continue
            text = job_text(path, self.options.quick)
            for place in self.places:
                def run(place=place):
                    if job != "read-cold":
                        return run_fio(job, text, place.directory)
                    if place.name == "tmpfs":
                        return {}  # it has nothing but memory
                    run_fio(job, text, place.directory)
                    place.cool()
                    return run_fio(job, text, place.directory)
                for (name, way), speed in (self.attempt(job, place, run) or {}).items():
                    self.note(job, f"{name} {way}", "MB/s", place, speed)
                for left in glob.glob(f"{place.directory}/*"):
                    if os.path.isfile(left):
                        os.unlink(left)

    def small(self):
        if not self.wanted("small-files-4k"):
            return
        count = 1000 if self.options.quick else self.options.files
        for number in range(1 if self.options.quick else ROUNDS):
            for place in self.places:
                directory = f"{place.directory}/small{number}"
                os.mkdir(directory)
                rates = self.attempt("small-files-4k", place,
                                     lambda d=directory: small_files(d, count, random.Random(number)))
                for what, rate in (rates or {}).items():
                    self.note("small-files-4k", what, "ops/s", place, rate)
                shutil.rmtree(directory, ignore_errors=True)

    def results(self):
        out = []
        for (suite, row, unit), by_place in self.rows.items():
            values = {name: statistics.median(all_of) for name, all_of in by_place.items()}
            own = values.get("kvcfs")
            ratios = {name: own / value for name, value in values.items()
                      if name != "kvcfs" and own is not None and value > 0}
            out.append({"suite": suite, "row": row, "unit": unit, "values": values, "ratios": ratios})
        return out


def named_directory(text):
    name, _, directory = text.partition("=")
    if not name or not os.path.isdir(directory):
        raise argparse.ArgumentTypeError(f"{text}: wants NAME=DIR, a directory that is there")
    return name, directory


def parse_options():
    parser = argparse.ArgumentParser(prog="bench/data.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=os.path.join(os.path.dirname(JOBS), "..", "build"),
                        help="where kvcfs was built (default: build)")
    parser.add_argument("--path", action="append", default=[], metavar="NAME=DIR", type=named_directory,
                        help="another mount to compare with; may be repeated")
    parser.add_argument("--only", help="suites, by name or beginning of it: read-resident,small-files-4k")
    parser.add_argument("--files", type=int, default=20000, help="how many small files (default 20000)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: shows that all of it works, measures nothing")
    parser.add_argument("--json", help="also write the rows there")
    parser.add_argument("--directory", default=tempfile.gettempdir(),
                        help="where data is put while it runs: its disk is what kvcfs is compared with")
    options = parser.parse_args()
    suites = [os.path.splitext(os.path.basename(job))[0] for job in glob.glob(f"{JOBS}/*.fio")] + ["small-files-4k"]
    for one in options.only.split(",") if options.only else []:
        if not any(suite.startswith(one) for suite in suites):
            parser.error(f"--only {one}: the suites are {', '.join(sorted(suites))}")
    if shutil.which("fio") is None:
        parser.error("there is no fio here: tools/deps/install.sh")
    return options


def main():
    options = parse_options()
    top = tempfile.mkdtemp(prefix="kvcfs-data.", dir=options.directory)
    memory = os.path.join(top, "tmpfs")
    os.mkdir(memory)
    tier = GIB // 2 if options.quick else 5 * GIB
    mount_tmpfs(memory, tier)
    places = []
    try:
        places.append(KvcfsPlace(os.path.join(options.build, "kvcfs"), os.path.join(top, "kvcfs"), tier))
        places.append(Place("tmpfs", os.path.join(memory, "work")))
        places.append(Place(disk_name(top), os.path.join(top, "disk")))
        for name, directory in options.path:
            places.append(Place(name, tempfile.mkdtemp(prefix="kvcfs-data.", dir=directory)))
        suite = Suite(places, options)
        suite.fio()
        suite.small()
    except BenchError as error:
        sys.exit(f"data.py: {error}")
    finally:
        for place in places:
            place.close()
        subprocess.run(["umount", memory], check=False)
        shutil.rmtree(top, ignore_errors=True)
    progress("")
    rows = suite.results()
    others = [place.name for place in places[1:]]
    print(" | ".join(["suite", "row", "unit", "kvcfs"] + [f"{name} | kvcfs/{name}" for name in others]))
    for row in rows:
        cells = [f"{row['suite']:15}", f"{row['row']:22}", row["unit"], f"{row['values'].get('kvcfs', 0):10.0f}"]
        for name in others:
            has = name in row["ratios"]
            cells.append(f"{row['values'][name]:10.0f} | {row['ratios'][name]:5.2f}" if has else f"{'-':>10} | {'-':>5}")
        print(" | ".join(cells))
    for failure in suite.failed:
        print(f"FAILED {failure['row']} on {failure['place']}: {failure['why']}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"machine": f"{platform.release()}, {os.cpu_count()} CPUs", "places": ["kvcfs"] + others,
                       "rows": rows, "failed": suite.failed}, file, indent=1)
    sys.exit(1 if any(one["place"] == "kvcfs" for one in suite.failed) or not rows else 0)


if __name__ == "__main__":
    main()
