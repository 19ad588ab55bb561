#!/usr/bin/env python3
"""Measures kvcfs beside what it is compared with, in turns, and prints one table. Started by run.sh."""
import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

from mounted import BenchError, Mounted, mount_tmpfs

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class Lab:
    """Where a run happens: directories, programs, and how much memory may be used."""

    def __init__(self, options):
        self.options = options
        self.kvcfs = os.path.join(options.build, "kvcfs")
        self.directory = tempfile.mkdtemp(prefix="kvcfs-bench.", dir=options.directory)
        self.tmpfs = os.path.join(self.directory, "tmpfs")
        self.ext4 = os.path.join(self.directory, "disk")
        for path in (self.tmpfs, self.ext4):
            os.mkdir(path)
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            available = next(int(line.split()[1]) * KIB for line in meminfo
                             if line.startswith("MemAvailable"))
        # Three copies (kvcfs, tmpfs, page cache) and their buffers beside everything else.
        self.copy_bytes = min(4 * GIB, available // 5)
        if options.quick:
            self.copy_bytes = min(self.copy_bytes, GIB)
        self.tier_bytes = self.copy_bytes * 5 // 4
        mount_tmpfs(self.tmpfs, self.tier_bytes)
        self.resident = None
        self.touched = False
        self.index_results = {}

    def close(self):
        if self.resident is not None:
            self.resident.__exit__()
        subprocess.run(["umount", self.tmpfs], check=False)
        shutil.rmtree(self.directory, ignore_errors=True)

    def program(self, name):
        return os.path.join(self.options.build, "bench", name)

    def file_bench(self, what, sets, **flags):
        command = [self.program("file_bench"), what, "--json"]
        for name, where in sets.items():
            command += ["--set", f"{name}={where}"]
        for flag, value in flags.items():
            if value is True:
                command.append(f"--{flag}")
            elif value is not None:
                command += [f"--{flag}", str(value)]
        done = subprocess.run(self.first(command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(done.stderr.strip() or f"{what} failed")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def first(self, command):
        """The command as one that runs before all else, if that was asked for."""
        return ["chrt", "--fifo", "5"] + command if self.options.real_time else command

    def mount_resident(self):
        """The mount that rows of resident files share. Its write-back waits: that has its own row."""
        if self.resident is None:
            if not self.touched:
                subprocess.run([self.program("file_bench"), "touch", "--bytes",
                                str(3 * self.copy_bytes)], check=True)
                self.touched = True
            mounted = Mounted(self.kvcfs, self._sub("resident"), self.tier_bytes,
                              4 * self.tier_bytes, ["fs.writeback_delay=10min"],
                              real_time=self.options.real_time)
            mounted.__enter__()
            self.resident = mounted
        return self.resident

    def leave_resident(self):
        if self.resident is not None:
            self.resident.__exit__()
            self.resident = None

    def _sub(self, name):
        path = os.path.join(self.directory, name)
        os.makedirs(path, exist_ok=True)
        return path

    def mount(self, name, dram, nvme, settings=(), fresh=True):
        self.leave_resident()
        return Mounted(self.kvcfs, self._sub(name), dram, nvme, settings, fresh,
                       self.options.real_time)

    def fio(self, **flags):
        """GB/s of one fio job on the data disk."""
        command = ["fio", "--output-format=json", "--name=baseline", "--direct=1"]
        command += [f"--{flag.replace('_', '-') if flag == 'time_based' else flag}={value}"
                    for flag, value in flags.items()]
        done = subprocess.run(self.first(command), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchError("fio: " + done.stderr.strip())
        job = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
        return (job["read"]["bw_bytes"] + job["write"]["bw_bytes"]) / 1e9


class Row:
    """One line of the table: what was measured, against what, and what it must reach."""

    def __init__(self, name, text, least, measure):
        self.name, self.text, self.least, self.measure = name, text, least, measure
        self.measured, self.details = None, ""

    def run(self, lab):
        try:
            self.measured, self.details = self.measure(lab)
        except (BenchError, OSError) as error:
            lines = str(error).strip().splitlines()
            self.measured, self.details = None, f"{lines[0]} {lines[-1] if lines[1:] else ''}"

    def verdict(self):
        if self.measured is None:
            return "FAILED"
        if self.least is None:
            return "report"
        return "ok" if self.measured >= self.least else "MISSED"


def compare(result):
    """(ratio against the fastest other set, text) of what file_bench printed. With one client the
    medians of single operations are compared, which other load on the machine hardly moves; with
    several, whole batches."""
    kind = "p50" if result["threads"] == 1 else "throughput"
    ratio = min(each[kind] for each in result["ratios"].values())
    parts = [f"{name} {each['p50_us']:.1f} us {each['gb_s']:.2f} GB/s"
             for name, each in result["sets"].items()]
    throughput = min(each["throughput"] for each in result["ratios"].values())
    return ratio, ", ".join(parts) + f" (batches {throughput:.2f})"


# ---- resident files

def sets_of(lab, mounted, block_bytes, kind="blocks", disk=False):
    size = f"{block_bytes // KIB}k"
    namespace = mounted.namespace("bench-" + size, block_bytes)
    sets = {"kvcfs": f"blocks:{namespace}"}
    if kind == "files":
        directory = os.path.join(namespace, "files", "bench")
        os.makedirs(directory, exist_ok=True)
        sets = {"kvcfs": f"files:{directory}"}
    sets["tmpfs"] = f"files:{lab.tmpfs}"
    if disk:
        sets["ext4"] = f"files:{lab.ext4}"
    return sets


def resident(what, block_bytes, count=64, threads=1, one_cpu=False, disk=False, kind="blocks",
             rounds=3):
    def measure(lab):
        mounted = lab.mount_resident()
        files = min(count, lab.copy_bytes // block_bytes)
        batch = 50
        if what == "write":
            # As much as no CPU cache holds, so that memory is not found warm from the batch before.
            batch = files = min(1000, 256 * MIB // block_bytes)
        elif lab.options.quick:
            files = min(files, 300)
        cpus = os.sched_getaffinity(0)
        cpu = max(cpus)
        if one_cpu:
            mounted.use_cpus({cpu}, lab.options.real_time)
        try:
            result = lab.file_bench(what, sets_of(lab, mounted, block_bytes, kind, disk),
                                    bytes=block_bytes, count=files, threads=threads,
                                    cpu=cpu if one_cpu else None, batch=batch,
                                    rounds=1 if lab.options.quick else rounds)
        finally:
            if one_cpu:
                mounted.use_cpus(cpus, lab.options.real_time)
        ratio, text = compare(result)
        return ratio, f"{files} files; {text}"
    return measure


# ---- the NVMe tier

def wait_clean(mounted):
    deadline = time.monotonic() + 300
    while mounted.stats()["dirty_bytes"] > 0:
        if time.monotonic() > deadline:
            raise BenchError("write-back does not end")
        time.sleep(0.02)


def cold_reads(lab):
    block, dram = 4 * MIB, GIB
    count = 256 if lab.options.quick else 768
    ours, theirs, from_nvme = [], [], []
    fio_file = os.path.join(lab.ext4, "fio")
    with lab.mount("cold", dram, 4 * count * block) as mounted:
        namespace = mounted.namespace("bench", block)
        lab.file_bench("fill", {"kvcfs": f"blocks:{namespace}"}, bytes=block, count=count)
    lab.fio(filename=fio_file, rw="write", bs="4m", ioengine="io_uring", iodepth=8,
            size=count * block)
    for _ in range(2 if lab.options.quick else 4):
        with lab.mount("cold", dram, 4 * count * block, fresh=False) as mounted:
            opened = 'kvcfs_fs_block_opens_total{source="nvme"}'
            before = mounted.metric(opened)
            result = lab.file_bench("open-read", {"kvcfs": f"blocks:{namespace}"}, bytes=block,
                                    count=count, batch=count, rounds=1, threads=8, existing=True)
            from_nvme.append((mounted.metric(opened) - before) / count)
        ours.append(result["sets"]["kvcfs"]["gb_s"])
        theirs.append(lab.fio(filename=fio_file, rw="randread", bs="4m", ioengine="io_uring",
                              iodepth=8, size=count * block))
    os.unlink(fio_file)
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    return ours / theirs, (f"kvcfs {ours:.2f} GB/s, fio {theirs:.2f} GB/s; {count} blocks, opens "
                           f"that waited for NVMe {statistics.median(from_nvme):.0%}")


def write_back(lab):
    block = 4 * MIB
    count = 384 if lab.options.quick else 1024
    ours, theirs = [], []
    fio_file = os.path.join(lab.ext4, "fio")
    for _ in range(2):
        with lab.mount("write-back", GIB, 4 * count * block) as mounted:
            namespace = mounted.namespace("bench", block)
            counter = "kvcfs_iouring_appended_bytes_total"
            samples = []
            filler = threading.Thread(target=lab.file_bench, args=(
                "fill", {"kvcfs": f"blocks:{namespace}"}), kwargs={"bytes": block, "count": count})
            filler.start()
            deadline = time.monotonic() + 300
            while mounted.metric(counter) < 0.95 * count * block:
                samples.append((time.monotonic(), mounted.metric(counter)))
                if time.monotonic() > deadline:
                    raise BenchError("write-back does not end")
                time.sleep(0.05)
            filler.join()
        # Sustained: without the begin, when nothing is due yet.
        samples = [s for s in samples if s[1] > 0.1 * count * block]
        ours.append((samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0]) / 1e9)
        theirs.append(lab.fio(filename=fio_file, rw="write", bs="4m", ioengine="io_uring",
                              iodepth=8, size=count * block))
        os.unlink(fio_file)
    ours, theirs = statistics.median(ours), statistics.median(theirs)
    return ours / theirs, f"kvcfs {ours:.2f} GB/s, fio {theirs:.2f} GB/s; {count} blocks of 4 MiB"


def fallback(lab):
    with lab.mount("fallback", GIB, 2 * GIB,
                   ["fs.passthrough=off", "fs.writeback_delay=10min"]) as mounted:
        result = lab.file_bench("read", sets_of(lab, mounted, 4 * MIB), bytes=4 * MIB, count=64,
                                direct=True, rounds=4)
    return compare(result)


# ---- the index, in process

def index_row(size, key, goal, text):
    """goal / measured: how often what was measured fits into what is allowed."""
    def measure(lab):
        if size not in lab.index_results:
            program = lab.program("index_bench")
            if not os.path.exists(program):
                raise BenchError("no index_bench in this build")
            command = [program, "--json"] + (["--large"] if size == "10m" else [])
            done = subprocess.run(lab.first(command), capture_output=True, text=True, check=False)
            at = done.stdout.find("\n{")
            if at < 0:
                raise BenchError("index_bench: " + done.stderr.strip())
            # What the larger run measures on its way serves the other rows too.
            for each in ("1m", size):
                lab.index_results[each] = json.loads(done.stdout[at:])
        result = lab.index_results[size]
        return goal / result[key], text.format(**result)
    return measure


def rows():
    table = [
        Row("read-1", "open block, 1 MiB reads, 1 thread / tmpfs", 0.95,
            resident("read", 4 * MIB)),
        Row("read-2", "open block, 1 MiB reads, 2 threads / tmpfs", 0.95,
            resident("read", 4 * MIB, threads=2)),
        Row("mmap", "open block, map + copy + unmap / tmpfs", 0.95, resident("mmap", 4 * MIB)),
        Row("mapped", "open block, copy from a mapping / tmpfs", 0.95, resident("mapped", 4 * MIB)),
    ]
    sizes = [("160k", 160 * KIB, 0.65), ("1m", MIB, 0.88), ("4m", 4 * MIB, 0.95)]
    for name, size, least in sizes:
        table.append(Row(f"open-{name}", f"open+read+close {name}, one CPU / faster of tmpfs, ext4",
                         least, resident("open-read", size, count=2000, one_cpu=True, disk=True)))
    for name, size, _ in sizes:
        for clients in (1, 2):
            table.append(Row(f"open-{name}-{clients}c",
                             f"open+read+close {name}, 2 CPUs, {clients} client(s)", None,
                             resident("open-read", size, count=2000, threads=clients, disk=True)))
    for kind, leasts in (("blocks", (0.40, 0.75)), ("files", (0.25, 0.40))):
        for (name, size), least in zip((("160k", 160 * KIB), ("2m", 2 * MIB)), leasts):
            table.append(Row(f"write-{kind}-{name}", f"create+write+close {name}, {kind} / tmpfs",
                             least, resident("write", size, count=1000, kind=kind)))
            table.append(Row(f"write-{kind}-{name}-1cpu",
                             f"create+write+close {name}, {kind}, one CPU / tmpfs", None,
                             resident("write", size, count=1000, kind=kind, one_cpu=True)))
    table += [
        Row("cold", "cold 4 MiB blocks, 8 readers / fio io_uring randread", 0.90, cold_reads),
        Row("write-back", "write-back, sustained / fio sequential write", 0.85, write_back),
        Row("fallback", "passthrough off, 1 MiB O_DIRECT reads / tmpfs", 0.60, fallback),
        Row("index-match", "5 us / Match of 32 keys in process, 1 M blocks", 1.0,
            index_row("1m", "match_p50_us", 5.0, "p50 {match_p50_us:.2f} us back to back, "
                      "{match_swept_p50_us:.2f} us with other memory used between")),
        Row("index-memory", "64 B / index memory a block beyond its key, 1 M blocks", 1.0,
            index_row("1m", "bytes_beyond_keys", 64.0, "{bytes_beyond_keys:.1f} B a block")),
        Row("index-restart", "5 s / restart to the first answer, 1 M blocks", 1.0,
            index_row("1m", "restart_s", 5.0, "{restart_s:.2f} s, {restart_cpu_s:.2f} s of CPU")),
        Row("index-10m", "1.5 / Match of 32 keys at 10 M against 100 k blocks", 1.0,
            index_row("10m", "match_10m_ratio", 1.5, "{match_10m_ratio:.2f} times as long, with "
                      "other memory used between; back to back {match_10m_ratio_hot:.2f}")),
    ]
    return table


def print_row(row, file=sys.stdout):
    measured = "-" if row.measured is None else f"{row.measured:.2f}"
    least = "-" if row.least is None else f"{row.least:.2f}"
    print(f"{row.name:<22} | {row.text:<58} | {measured:>8} | {least:>8} | {row.verdict():<6} | "
          f"{row.details}", file=file, flush=True)


def main():
    parser = argparse.ArgumentParser(prog="bench/run.sh", description=__doc__)
    parser.add_argument("--build", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rows", default="", help="only these, by name or beginning of it: a,b")
    parser.add_argument("--quick", action="store_true", help="fewer files and rounds")
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    parser.add_argument("--list", action="store_true", help="the names of the rows")
    parser.add_argument("--directory", default="/var/tmp",
                        help="where data is put while it runs; NVMe rows measure its disk")
    parser.add_argument("--real-time", action="store_true",
                        help="client and daemon, and what they are compared with, run before all "
                        "else (SCHED_FIFO): on a machine whose other work else decides the numbers")
    parser.add_argument("--keep-going", action="store_true",
                        help="exit 0 even where a row missed what it must reach")
    options = parser.parse_args()
    table = rows()
    if options.list:
        for row in table:
            print(f"{row.name:<22} {row.text}")
        return 0
    wanted = [name for name in options.rows.split(",") if name]
    chosen = [row for row in table if not wanted or any(row.name.startswith(w) for w in wanted)]
    if not chosen:
        parser.error("no such row; --list tells the names")
    if os.geteuid() != 0:
        parser.error("mounting needs root")
    machine = (f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, load "
               f"{os.getloadavg()[0]:.1f}")
    print(f"{datetime.datetime.now():%Y-%m-%d %H:%M}, {machine}")
    print(f"{'row':<22} | {'what / against what':<58} | measured | at least | ok?    | details")
    lab = Lab(options)
    try:
        for row in chosen:
            row.run(lab)
            print_row(row)
    finally:
        lab.close()
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump({"machine": machine, "rows": [
                {"name": row.name, "what": row.text, "measured": row.measured,
                 "at_least": row.least, "verdict": row.verdict(), "details": row.details}
                for row in chosen]}, out, indent=2)
            out.write("\n")
    missed = [row.name for row in chosen if row.verdict() in ("MISSED", "FAILED")]
    if missed:
        print("not reached: " + ", ".join(missed))
    return 1 if missed and not options.keep_going else 0


if __name__ == "__main__":
    sys.exit(main())
