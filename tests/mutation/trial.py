# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Build the tests with mutants in them and run them, one mutant on at a time."""

import json
import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

_CAPACITY = 1 << 16  # of switch.hpp


class Failed(Exception):
    """Something that is wrong without any mutant."""


@dataclass
class Test:
    name: str
    room: str
    command: list
    folder: str
    environment: dict
    seconds: float = 0.0
    reached: set = field(default_factory=set)


class Tree:
    """A copy of the sources, whose headers may hold mutants, and its build."""

    # Programs that cost more than they tell.
    _LEFT_OUT = re.compile(r"runtime\.(combinations|staging_on_traces)|faults\.long|adapters\.mpi\..*_on_8_ranks")

    def __init__(self, root, folder, rooms):
        self.root, self.folder, self.rooms = root, folder, rooms
        self.sources, self.build = folder / "source", folder / "build"
        self.log = folder / "build.log"

    def write(self, changed):
        """Bring the copy up to date; `changed` maps names of files to other texts. Files that stay keep their times."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=self.root, check=True, capture_output=True, text=True,
        ).stdout
        names = {name for name in listed.split("\0") if name and (self.root / name).is_file()}
        for name in names:
            wanted = changed[name].encode() if name in changed else (self.root / name).read_bytes()
            copy = self.sources / name
            if not copy.exists() or copy.read_bytes() != wanted:
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(wanted)
        for copy in self.sources.rglob("*"):
            if copy.is_file() and str(copy.relative_to(self.sources)) not in names:
                copy.unlink()

    def configure(self):
        switch = self.sources / "tests/mutation/switch.hpp"
        self._run(
            ["cmake", "-S", self.sources, "-B", self.build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None",
             "-DCMAKE_CXX_COMPILER=clang++-19", f"-DCMAKE_CXX_FLAGS=-std=c++20 -O0 -g0 -w -ferror-limit=0 -include {switch}",
             "-DBALLAST_BUILD_BENCH=OFF", "-DBALLAST_BUILD_EXAMPLES=OFF", "-DBALLAST_ENABLE_POSIX=ON",
             "-DBALLAST_ENABLE_MPI=ON", "-DBALLAST_TESTS_QUICK=ON"]
        )

    def targets(self):
        """What to build: the test programs of the rooms, and what the adapters and the faults have of their own."""
        out = ["tests/faults/all", "tests/adapters/mpi/all"]
        for test in self._ctest():
            if self._room(test) and (self.build / "tests" / f"test.{test['name']}").parent.exists():
                if not test["name"].startswith(("faults", "adapters.mpi")):
                    out.append(f"test.{test['name']}")
        return out

    def compile(self, targets):
        """Build; return what the compilers said when it failed, else nothing."""
        done = subprocess.run(["ninja", "-C", self.build, "-k", "0", *targets], capture_output=True, text=True)
        self.log.write_text(done.stdout + done.stderr)
        return "" if done.returncode == 0 else done.stdout

    def tests(self):
        out = []
        for test in self._ctest():
            if not self._room(test) or "command" not in test:
                continue
            properties = {one["name"]: one["value"] for one in test["properties"]}
            command = list(test["command"])
            if "--no-intro" in command:
                command.append("--abort-after=1")
            environment = dict(pair.split("=", 1) for pair in properties.get("ENVIRONMENT", []))
            out.append(Test(test["name"], self._room(test), command, properties["WORKING_DIRECTORY"], environment))
        return out

    def _room(self, test):
        labels = {one["name"]: one["value"] for one in test["properties"]}.get("LABELS", [])
        rooms = [label for label in labels if label in self.rooms]
        return rooms[0] if rooms and not self._LEFT_OUT.fullmatch(test["name"]) else None

    def _ctest(self):
        return json.loads(self._run(["ctest", "--test-dir", self.build, "--show-only=json-v1"]))["tests"]

    def _run(self, command):
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
        return done.stdout


@dataclass
class Result:
    failed: bool
    timed_out: bool
    seconds: float
    output: str


# A mutant may ask for any amount of memory: no test gets more than 8 GB, no file of it, shared memory too, more than 1 GB,
# and it is the first to go when there is none left.
_FENCE = """echo 1000 >/proc/self/oom_score_adj; ulimit -c 0; ulimit -v 8388608; ulimit -f 2097152; exec "$@" """


def run(test, folder, mutant=-1, limit=600.0, reached=None):
    """Run a test with one mutant on, or none. Whatever it leaves running is ended."""
    mark = f"{os.getpid()}.{time.monotonic_ns()}."
    environment = {**os.environ, **test.environment, "BALLAST_MUTANT": str(mutant), "BALLAST_MUTATION_RUN": mark}
    if reached is not None:
        environment["BALLAST_MUTANTS_REACHED"] = str(reached)
    start = time.monotonic()
    # A file and no pipe: a child that lives on would keep a pipe open.
    with tempfile.TemporaryDirectory(dir=folder) as scratch, tempfile.TemporaryFile(dir=folder) as output:
        environment["TMPDIR"] = scratch
        process = subprocess.Popen(
            ["sh", "-c", _FENCE, "sh", *test.command], cwd=test.folder, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )
        timed_out = False
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out, code = True, 1
        _end_all(mark)
        process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    return Result(code not in (0, 77), timed_out, time.monotonic() - start, text)


def end_all_tests():
    """End whatever tests of this program run."""
    _end_all(f"{os.getpid()}.")


def _end_all(mark):
    """End every process that was started with a mark in its environment that begins so."""
    wanted = f"BALLAST_MUTATION_RUN={mark}".encode()
    # mpiexec ends its ranks when it is asked to.
    for signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        left = [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and _has(entry, wanted)]
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                pass
        time.sleep(0.2 if signum == signal.SIGTERM else 0.02)


def _has(pid, wanted):
    try:
        return wanted in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def reach(test, folder, mutants):
    """Run a test without any mutant; it has to pass. Note how long it takes and which mutants it comes by."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.truncate(_CAPACITY)
        result = run(test, folder, reached=file.name)
        marks = Path(file.name).read_bytes()
    if result.failed:
        raise Failed(f"{test.name} fails without any mutant:\n{result.output[-3000:]}")
    test.seconds = result.seconds
    test.reached = {mutant.number for mutant in mutants if marks[mutant.number]}
