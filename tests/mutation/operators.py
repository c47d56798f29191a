# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The generic mutants of a header: small changes of the kinds in which promises break."""

import hashlib
import re
from dataclasses import dataclass, field

import cpp_text

# How often an operator is drawn, compared with others. What nearly every test notices says little and is drawn seldom.
WEIGHTS = {
    "drop-check": 4,  # `if (...) return failure` never asks
    "swallow": 4,  # a failure is reported as success
    "drop-state": 3,  # a statement that sets state is left out
    "drop-call": 3,  # a statement that calls something is left out
    "swap": 4,  # commit and drop, failed and lost, ...
    "and-or": 3,
    "boundary": 2,  # < and <=
    "off-by-one": 2,  # + 1 and + 0
    "sign": 1,  # + and -
    "equal": 1,  # == and !=
    "flag": 2,  # true and false
    "negate": 1,
    "skip-loop": 2,
    "drop-jump": 1,  # continue, break
    "by-hand": 0,  # all of them are taken
}

_SWAPS = {}
for _one, _other in (
    ("commit", "drop"),
    ("failed", "cohort_lost"),
    ("fail", "lose"),
    ("min", "max"),
    ("recording", "failed"),
    ("current_", "next_"),
    ("source", "destination"),
    ("all_of", "any_of"),
):
    _SWAPS[_one], _SWAPS[_other] = _other, _one

_PAIRS = {
    "&&": ("and-or", "||"),
    "||": ("and-or", "&&"),
    "<": ("boundary", "<="),
    "<=": ("boundary", "<"),
    ">": ("boundary", ">="),
    ">=": ("boundary", ">"),
    "==": ("equal", "!="),
    "!=": ("equal", "=="),
    "+": ("sign", "-"),
    "-": ("sign", "+"),
    "true": ("flag", "false"),
    "false": ("flag", "true"),
}
_SPACED_ONLY = {"<", ">", "+", "-"}
_FAILURES = re.compile(r"\b(fail|lose|lost|late|refuse|missing|stale|complain|system_failure|errc|failure|error|make_error_code)\b")
_IS_ONLY_SPEED = re.compile(r"\.(reserve|shrink_to_fit)\(")
_CONTRACTS = ("BALLAST_EXPECTS", "BALLAST_EXPECTS_BELOW", "BALLAST_EXPECTS_WITHIN", "BALLAST_ASSERT")


@dataclass(eq=False)
class Mutant:
    file: str  # in the repository
    line: int
    operator: str
    form: str  # condition, value or statement: how both versions go into one program
    begin: int  # characters of the header that it replaces
    end: int
    replacement: str
    original: str
    breaks: str = ""
    tests: str = ""  # by hand: a regular expression of the tests that are to notice
    id: str = ""
    number: int = -1
    outcome: dict = field(default_factory=dict)


def number_ids(mutants):
    """An id is what was changed and into what; it outlives changes elsewhere in the file."""
    seen = {}
    for mutant in mutants:
        what = "\0".join((mutant.file, mutant.operator, " ".join(mutant.original.split()), " ".join(mutant.replacement.split())))
        count = seen[what] = seen.get(what, 0) + 1
        mutant.id = hashlib.sha256(f"{what}\0{count}".encode()).hexdigest()[:10]
    return mutants


def candidates(file, text):
    """Every generic mutant of a header."""
    source = cpp_text.Source(text)
    found = []
    for statement in cpp_text.statements_of(source):
        found += _Finder(file, source, statement).found
    return number_ids(found)


class _Finder:
    def __init__(self, file, source, statement):
        self.file, self.source, self.statement = file, source, statement
        self.found = []
        if source.tokens[statement.begin].text not in _CONTRACTS:
            getattr(self, "_" + statement.kind)()

    def _add(self, operator, form, begin, end, replacement):
        start = self.source.tokens[begin].start
        self.found.append(
            Mutant(
                file=self.file,
                line=self.source.text.count("\n", 0, start) + 1,
                operator=operator,
                form=form,
                begin=start,
                end=self.source.tokens[end - 1].end,
                replacement=replacement,
                original=self.source.slice(begin, end),
            )
        )

    # ---- by kind of statement

    def _if(self):
        if self.statement.condition is None:
            return
        begin, end = self.statement.condition
        if self._returns_failure(*self.statement.body):
            self._add("drop-check", "condition", begin, end, "false")
        self._add("negate", "condition", begin, end, f"!({self._joined(begin, end)})")
        self._tokens("condition", begin, end)

    def _loop(self):
        if self.statement.condition is not None:
            self._tokens("condition", *self.statement.condition, leave=("equal", "flag"))
        if self.source.is_at(self.statement.begin, "for") and not self._returns(*self.statement.body):
            self._add("skip-loop", "statement", self.statement.begin, self.statement.end, "")

    def _return(self):
        begin, end = self.statement.begin, self.statement.end
        value = self.source.slice(begin + 1, end - 1)
        returns_status = re.search(r"\bstatus\b", self.statement.function.returns)
        if value and value != "{}" and (returns_status or re.match(r"(?:\w+::)*(fail|lose|refuse)\b", value)):
            self._add("swallow", "statement", begin, end, "return {};")
        self._tokens("statement", begin, end)

    def _expression(self):
        begin, end = self.statement.begin, self.statement.end
        text = self.source.slice(begin, end)
        if text.startswith(("std::ignore", "static_cast<void>(")) or _IS_ONLY_SPEED.search(text):
            return
        state = any(t.text in ("++", "--") or (t.text.endswith("=") and t.text not in ("==", "<=", ">=", "!="))
                    for t in self._outside(begin, end))
        self._add("drop-state" if state else "drop-call", "statement", begin, end, "")
        self._tokens("statement", begin, end)

    def _declaration(self):
        self._tokens("value", self.statement.initial, self.statement.end - 1)

    def _jump(self):
        self._add("drop-jump", "statement", self.statement.begin, self.statement.end, "")

    # ---- small things

    def _tokens(self, form, begin, end, leave=()):
        """Mutants that change one token, outside messages and the bodies of lambdas."""
        if begin >= end or (form != "condition" and any(t.kind == "string" for t in self.source.tokens[begin:end])):
            return
        for at in self._outside_braces(begin, end):
            token = self.source.tokens[at]
            for operator, text in self._changes(at, begin, end):
                if operator not in leave:
                    changed = self._joined(begin, at, end, text)
                    self._add(operator, form, begin, end, changed)

    def _changes(self, at, begin, end):
        token = self.source.tokens[at]
        if token.text in _PAIRS and (token.spaced or token.text not in _SPACED_ONLY):
            yield _PAIRS[token.text]
        if token.text in ("+", "-") and token.spaced and at + 1 < end and self.source.tokens[at + 1].text == "1":
            yield "off-by-one", f"{token.text} 0 *"
        if token.text in _SWAPS and not self._is_declared_name(at):
            yield "swap", _SWAPS[token.text]
        if token.text == "!" and at > begin:
            yield "negate", ""

    def _is_declared_name(self, at):
        return self.source.is_at(at - 1, "struct", "class")

    def _outside_braces(self, begin, end):
        at = begin
        while at < end:
            if self.source.is_at(at, "{") and self.source.is_at(at - 1, ")", "]", "mutable", "noexcept"):
                at = self.source.closing[at]
            yield at
            at += 1

    def _outside(self, begin, end):
        at = begin
        while at < end:
            yield self.source.tokens[at]
            at = self.source.closing.get(at, at) + 1

    def _joined(self, begin, *rest):
        """Tokens on one line, without comments; with (at, end, text), the token at `at` replaced by a text."""
        at, end, text = rest if len(rest) == 3 else (None, rest[0], "")
        texts = (text if i == at else self.source.tokens[i].text for i in range(begin, end))
        return cpp_text.joined(texts)

    def _returns(self, begin, end):
        return any(self.source.is_at(at, "return") for at in range(begin, end))

    def _returns_failure(self, begin, end):
        """Whether the last thing that a body does is to return what is no plain success."""
        if self.source.is_at(end - 1, "}"):
            end -= 1
        returns = [at for at in range(begin, end) if self.source.is_at(at, "return")]
        if not returns:
            return False
        value = self.source.slice(returns[-1] + 1, end - 1)
        status = re.search(r"\bstatus\b", self.statement.function.returns) and value not in ("", "{}")
        return bool(status or _FAILURES.search(value) or value == "false")
