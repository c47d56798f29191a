#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Break the library on purpose, and see whether a test notices.

All mutants of a run are compiled into the tests at once, each behind a question which one is on (switch.hpp). A run
without any tells which tests come by which mutant; then each mutant is turned on in those tests, cheapest first, until
one fails. Small changes of many kinds are drawn from the headers of the rooms (operators.py); those written by hand,
each of which breaks a promise (mutants.toml), are all tried."""

import argparse
import concurrent.futures
import difflib
import json
import os
import random
import re
import signal
import sys
import threading
import time
from pathlib import Path

import by_hand
import operators
import schema
import trial

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ROOMS = {
    "runtime": "include/ballast/runtime",
    "migration": "include/ballast/migration",
    "transport": "include/ballast/transport",
    "load": "include/ballast/load",
    "posix": "adapters/posix/include",
    "mpi": "adapters/mpi/include",
}
GOAL = 90  # percent


def say(text):
    print(f"\033[1m== {text}\033[0m", file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(prog="./dev mutate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="of the draw (1)")
    parser.add_argument("--sample", type=int, default=200, help="how many mutants to draw; those by hand come on top (200)")
    parser.add_argument("--room", choices=ROOMS, action="append", help="only mutants of this room; may be given again")
    parser.add_argument("--only", metavar="FILE", help="only mutants of headers whose name ends so")
    parser.add_argument("--id", action="append", help="only this mutant, drawn or not; may be given again")
    parser.add_argument("--without", metavar="REGEX", help="leave out tests whose names match, such as those that take long")
    parser.add_argument("--minutes", type=float, help="start no mutant after so long")
    parser.add_argument("--check", action="store_true", help="only see whether what is written by hand still fits")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="tests at a time")
    return parser.parse_args()


def headers(options):
    rooms = options.room or ROOMS
    found = {}
    for room in rooms:
        for path in sorted((ROOT / ROOMS[room]).rglob("*.hpp")):
            name = str(path.relative_to(ROOT))
            if not options.only or name.endswith(options.only):
                found[name] = path.read_text()
    return found


def room_of(mutant):
    return next(room for room, folder in ROOMS.items() if mutant.file.startswith(folder + "/"))


def draw(generic, count, seed):
    """A weighted draw without repetition, at most two mutants of the same piece of a header."""
    source = random.Random(seed)
    order = sorted(generic, key=lambda mutant: source.random() ** (1 / operators.WEIGHTS[mutant.operator]), reverse=True)
    taken, pieces = [], {}
    for mutant in order:
        piece = (mutant.file, mutant.begin)
        if len(taken) < count and pieces.get(piece, 0) < 2:
            pieces[piece] = pieces.get(piece, 0) + 1
            taken.append(mutant)
    return taken


class Session:
    def __init__(self, options):
        self.options = options
        self.texts = headers(options)
        self.generic = [m for name, text in self.texts.items() for m in operators.candidates(name, text)]
        self.by_hand = by_hand.read_mutants(HERE / "mutants.toml", ROOT, self.texts)
        self.reasons = by_hand.read_survivors(HERE / "survivors.txt")
        folder = ROOT / "build/mutate"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.tree = trial.Tree(ROOT, folder, ROOMS.keys() | {"faults"})
        self.broken_file = folder / "does_not_compile.txt"
        self.broken = set(self.broken_file.read_text().split()) if self.broken_file.exists() else set()
        self.tests = []
        self.is_over = False
        self.start = time.monotonic()

    def stop(self, *_):
        self.is_over = True
        trial.end_all_tests()
        os._exit(130)

    # ---- which mutants

    def choose(self):
        if self.options.id:
            chosen = [m for m in self.by_hand + self.generic if m.id in self.options.id]
        else:
            drawn = draw([m for m in self.generic if m.id not in self.broken], self.options.sample, self.options.seed)
            chosen = self.by_hand + drawn
        if not chosen:
            raise trial.Failed("no mutant is left to try")
        for number, mutant in enumerate(chosen):
            mutant.number = number
        return chosen

    # ---- building

    def build(self, mutants):
        """Build the tests with the mutants in them; return those that compile."""
        while True:
            schemas = self._write(mutants)
            mutants = [m for m in mutants if not any(m in one.left_out for one in schemas.values())]
            self.tree.configure()
            said = self.tree.compile(self.tree.targets())
            if not said:
                return mutants
            wrong = self._blamed(said, schemas)
            if not wrong:
                raise trial.Failed(f"the tests do not build; see {self.tree.log}\n{said[-3000:]}")
            say(f"{len(wrong)} mutants do not compile")
            self._drop(wrong)
            mutants = [m for m in mutants if m not in wrong]

    def _write(self, mutants):
        schemas = {}
        for name, text in self.texts.items():
            mine = [m for m in mutants if m.file == name]
            if mine:
                schemas[name] = schema.Schema(text, mine)
        self.tree.write({name: one.result for name, one in schemas.items()})
        return schemas

    def _blamed(self, said, schemas):
        wrong = set()
        for match in re.finditer(r"^(\S+?):(\d+):(\d+): (?:fatal )?error:", said, re.MULTILINE):
            path = Path(match[1])
            name = str(path.relative_to(self.tree.sources)) if path.is_relative_to(self.tree.sources) else ""
            if name in schemas:
                wrong.update(schemas[name].mutants_at(int(match[2]), int(match[3])))
        return wrong

    def _drop(self, wrong):
        if made := [m for m in wrong if m.operator == "by-hand"]:
            raise trial.Failed("written by hand, and does not compile:\n" + "\n".join(map(self.shown, made)))
        self.broken |= {m.id for m in wrong}
        self.broken_file.write_text("\n".join(sorted(self.broken)) + "\n")

    # ---- trying

    def measure(self, mutants):
        without = self.options.without
        self.tests = [t for t in self.tree.tests() if not (without and re.search(without, t.name))]
        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            list(pool.map(lambda test: trial.reach(test, self.folder, mutants), self.tests))

    def try_all(self, mutants):
        lock, count = threading.Lock(), 0

        def work(mutant):
            nonlocal count
            if self.is_over or self.options.minutes and time.monotonic() - self.start > self.options.minutes * 60:
                return
            mutant.outcome = self.try_one(mutant)
            with lock:
                count += 1
                what = mutant.outcome
                by = f"killed by {what['by']}" if what["killed"] else "SURVIVED" if what["tried"] else "NOT REACHED"
                print(f"[{count}/{len(mutants)}] {mutant.id} {mutant.operator} {mutant.file}:{mutant.line} {by} "
                      f"({what['seconds']:.1f} s)", flush=True)

        with concurrent.futures.ThreadPoolExecutor(self.options.jobs) as pool:
            list(pool.map(work, mutants))

    def try_one(self, mutant):
        start = time.monotonic()
        tried = []
        for test in self.order_for(mutant):
            tried.append(test.name)
            result = self.run(test, mutant)
            if result.failed:
                by = test.name + (" (time is up)" if result.timed_out else "")
                return {"killed": True, "by": by, "tried": tried, "seconds": time.monotonic() - start}
        return {"killed": False, "by": None, "tried": tried, "seconds": time.monotonic() - start}

    def run(self, test, mutant):
        """A test that waits may fail because the machine is busy: it has to fail twice."""
        limit = 20 + 5 * test.seconds
        result = trial.run(test, self.folder, mutant.number, limit)
        if result.failed and not result.timed_out and test.seconds > 0.5:
            result = trial.run(test, self.folder, mutant.number, limit)
        return result

    def order_for(self, mutant):
        """The tests that come by a mutant: the cheapest first, those of its own room before others of like cost."""
        room = room_of(mutant)
        # Ranks under MPI take long, and say of other rooms what cheaper tests say.
        reaching = [t for t in self.tests if mutant.number in t.reached and (t.room != "mpi" or room == "mpi")]

        def cost(test):
            hinted = mutant.tests and re.search(mutant.tests, test.name)
            return test.seconds * (0.3 if test.room == room else 1) * (0.01 if hinted else 1)

        return sorted(reaching, key=cost)

    # ---- telling

    def shown(self, mutant):
        before = self.texts[mutant.file]
        # The replacement came on one line, without the comments.
        after = before[: mutant.begin] + mutant.replacement + before[mutant.end :]
        lines = difflib.unified_diff(before.splitlines(), after.splitlines(), mutant.file, mutant.file, lineterm="", n=1)
        promise = f"   breaks: {mutant.breaks}\n" if mutant.breaks else ""
        return f"{mutant.id} {mutant.operator} {mutant.file}:{mutant.line}\n{promise}" + "\n".join(
            "   " + line for line in list(lines)[2:]
        )

    def report(self, mutants):
        done = [m for m in mutants if m.outcome]
        survivors = [m for m in done if not m.outcome["killed"]]
        excused = [m for m in survivors if m.id in self.reasons]
        counted = [m for m in survivors if m.id not in self.reasons]
        for mutant in counted:
            print(f"\nSURVIVED {self.shown(mutant)}")
            print(f"   tried: {', '.join(mutant.outcome['tried']) or 'nothing comes by it'}")
        print("\n| room | mutants | killed | survived with a reason | survived |\n|---|---|---|---|---|")
        for room in [*ROOMS, "all"]:
            mine = [m for m in done if room in ("all", room_of(m))]
            with_reason, without = (len([m for m in some if m in mine]) for some in (excused, counted))
            print(f"| {room} | {len(mine)} | {len(mine) - with_reason - without} | {with_reason} | {without} |")
        self._tell_tests(done)
        self._tell_rest(mutants, done)
        weighed = len(done) - len(excused)
        killed = len(done) - len(survivors)
        percent = 100 * killed / weighed if weighed else 100.0
        print(f"\n{killed} of {weighed} mutants killed: {percent:.1f} %, {GOAL} % wanted; "
              f"seed {self.options.seed}, {(time.monotonic() - self.start) / 60:.1f} minutes")
        self._write_json(done)
        return percent >= GOAL

    def _tell_tests(self, done):
        print("\n| test | seconds | mutants it comes by | killed |\n|---|---|---|---|")
        for test in self.tests:
            kills = sum(m.outcome["killed"] and m.outcome["tried"][-1] == test.name for m in done)
            print(f"| {test.name} | {test.seconds:.1f} | {len(test.reached)} | {kills} |")

    def _tell_rest(self, mutants, done):
        if len(done) < len(mutants):
            print(f"\n{len(mutants) - len(done)} mutants were not tried: time is up")
        if not (self.options.room or self.options.only):
            gone = self.reasons.keys() - {m.id for m in self.by_hand + self.generic}
            if gone:
                print(f"\nsurvivors.txt gives reasons for mutants that are no more: {' '.join(sorted(gone))}")

    def _write_json(self, done):
        entries = [
            {"id": m.id, "file": m.file, "line": m.line, "operator": m.operator, "breaks": m.breaks,
             "original": m.original, "replacement": m.replacement, "reason": self.reasons.get(m.id), **m.outcome}
            for m in done
        ]
        tests = [{"name": t.name, "seconds": round(t.seconds, 2), "reached": len(t.reached)} for t in self.tests]
        text = json.dumps({"seed": self.options.seed, "tests": tests, "mutants": entries}, indent=1)
        (self.folder / "report.json").write_text(text + "\n")


def main():
    options = arguments()
    session = Session(options)
    if options.check:
        return True
    signal.signal(signal.SIGINT, session.stop)
    signal.signal(signal.SIGTERM, session.stop)
    mutants = session.choose()
    say(f"Building the tests with {len(mutants)} mutants of {len(session.generic) + len(session.by_hand)} in them")
    mutants = session.build(mutants)
    say("Running the tests without any")
    session.measure(mutants)
    say(f"Trying {len(mutants)} mutants")
    session.try_all(mutants)
    return session.report(mutants)


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except (trial.Failed, by_hand.Stale) as why:
        sys.exit(f"./dev mutate: {why}")
