# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""Headers that hold all of their mutants at once, each behind a question which one is on."""

import bisect


class Schema:
    """A header with its mutants in it. Regions that cross others are left out; `left_out` holds their mutants."""

    def __init__(self, text, mutants):
        self.text = text
        self.left_out = []
        self.spans = []  # (begin, end, mutant), characters of the result
        self._regions = {}
        for mutant in mutants:
            self._regions.setdefault((mutant.begin, mutant.end), []).append(mutant)
        self._pieces, self._length = [], 0
        order = self._nested(sorted(self._regions, key=lambda region: (region[0], -region[1])))
        self._put_range(0, len(text), order)
        self.result = "".join(self._pieces)
        self._lines = [0]
        for at, character in enumerate(self.result):
            if character == "\n":
                self._lines.append(at + 1)

    def mutants_at(self, line, column):
        """The mutants in which a compiler found something wrong at this place; lines and columns count from 1."""
        at = self._lines[line - 1] + column - 1
        inside = [span for span in self.spans if span[0] <= at < span[1]]
        if inside:
            return [min(inside, key=lambda span: span[1] - span[0])[2]]
        end = self._lines[line] if line < len(self._lines) else len(self.result)
        return [span[2] for span in self.spans if span[0] < end and span[1] > self._lines[line - 1]]

    def _nested(self, order):
        """Leave out the regions that cross an earlier one."""
        kept, open_ends = [], []
        for begin, end in order:
            while open_ends and open_ends[-1] <= begin:
                open_ends.pop()
            if open_ends and end > open_ends[-1]:
                self.left_out += self._regions[begin, end]
                continue
            open_ends.append(end)
            kept.append((begin, end))
        return kept

    def _put(self, text):
        self._pieces.append(text)
        self._length += len(text)

    def _put_mutant(self, mutant, before, after):
        begin = self._length
        self._put(f"{before}{mutant.replacement}{after}")
        self.spans.append((begin, self._length, mutant))

    def _put_range(self, begin, end, regions):
        """The text of [begin, end) with the regions inside."""
        at = begin
        while regions:
            region, regions = regions[0], regions[1:]
            inside = bisect.bisect_left(regions, (region[1], -1))
            self._put(self.text[at : region[0]])
            self._put_region(region, regions[:inside])
            regions = regions[inside:]
            at = region[1]
        self._put(self.text[at:end])

    def _put_region(self, region, inner):
        mutants = self._regions[region]
        if mutants[0].form == "statement":
            self._put("{ ")
            for mutant in mutants:
                self._put_mutant(mutant, f"if (::ballast_mutation::on({mutant.number})) {{ ", " } else ")
            self._put("{ ")
            self._put_range(*region, inner)
            self._put(" } }")
            return
        cast = "static_cast<bool>" if any(mutant.form == "condition" for mutant in mutants) else ""
        self._put("(")
        for mutant in mutants:
            self._put_mutant(mutant, f"::ballast_mutation::on({mutant.number}) ? {cast}(", ") : ")
        self._put(f"{cast}(")
        self._put_range(*region, inner)
        self._put("))")
