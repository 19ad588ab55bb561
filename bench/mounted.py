"""A kvcfs of its own, in a temporary directory, for as long as a `with` lasts."""
import json
import os
import signal
import subprocess
import time

READY_SECONDS = 60
TOUCH_SECONDS = 180


class BenchError(Exception):
    """Something that a row needs did not work; the row says so and the others go on."""


def mount_tmpfs(path, size):
    """A tmpfs as the DRAM tier's own is, to compare with."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},huge=within_size,mode=0700", "none", path],
                   check=True)


class Mounted:
    """`kvcfs mount` in the foreground on DIRECTORY/mnt, data in DIRECTORY/data."""

    def __init__(self, kvcfs, directory, dram, nvme, settings=(), fresh=True, real_time=False):
        self.kvcfs = kvcfs
        self.path = os.path.join(directory, "mnt")
        self.data = os.path.join(directory, "data")
        self.log = os.path.join(directory, "log")
        self.arguments = ["--dram", str(dram), "--nvme", str(nvme)]
        for setting in settings:
            self.arguments += ["--set", setting]
        self.touching = not any(s.startswith("fs.touch_dram=false") for s in settings)
        self.real_time = real_time
        self.process = None
        if fresh:
            subprocess.run(["rm", "-rf", self.data], check=True)
        for path in (self.path, self.data):
            os.makedirs(path, exist_ok=True)

    def __enter__(self):
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [self.kvcfs, "mount", self.path, "--data", self.data] + self.arguments,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait(self._answers, READY_SECONDS, "the mount does not answer")
            if self.touching:
                # Until then a first use of memory costs more than what is measured.
                self._wait(lambda: "memory touched" in self._log_text(), TOUCH_SECONDS,
                           "the DRAM tier's memory is not touched")
            if self.real_time:
                self.use_cpus(os.sched_getaffinity(0), True)
        except BenchError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        process = self.process
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            subprocess.run(["umount", "--lazy", self.path], check=False)
        self.process = None

    def _log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as log:
            return log.read()

    def _answers(self):
        try:
            with open(os.path.join(self.path, ".kvcfs/version"), encoding="utf-8") as version:
                return version.read() != ""
        except OSError:
            return False

    def _wait(self, is_so, seconds, complaint):
        deadline = time.monotonic() + seconds
        while not is_so():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchError(complaint + ":\n" + self._log_text()[-2000:])
            time.sleep(0.05)

    def stats(self):
        with open(os.path.join(self.path, ".kvcfs/stats.json"), encoding="utf-8") as stats:
            return json.load(stats)

    def metric(self, line_begin):
        """The sum of all metrics whose line begins so."""
        with open(os.path.join(self.path, ".kvcfs/metrics"), encoding="utf-8") as metrics:
            return sum(float(line.rsplit(" ", 1)[1]) for line in metrics
                       if line.startswith(line_begin))

    def namespace(self, name, block_bytes):
        path = os.path.join(self.path, name)
        os.makedirs(path, exist_ok=True)
        os.setxattr(path, "user.kvc.block_bytes", str(block_bytes).encode())
        return path

    def use_cpus(self, cpus, real_time):
        """All threads of the daemon on these CPUs; those they start inherit it. Who only keeps CPUs
        awake stays of the lowest class: turning at another one it would be what is measured."""
        policy, priority = (os.SCHED_FIFO, 5) if real_time else (os.SCHED_OTHER, 0)
        for thread in os.listdir(f"/proc/{self.stats()['pid']}/task"):
            try:
                os.sched_setaffinity(int(thread), cpus)
                if os.sched_getscheduler(int(thread)) != os.SCHED_IDLE:
                    os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
            except ProcessLookupError:
                pass
