# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""The mutants that somebody wrote, each to break one promise (mutants.toml), and the survivors that have a reason."""

import re
import tomllib

import cpp_text
import operators


class Stale(Exception):
    """Something written by hand that the headers have left behind."""


def read_mutants(path, root, files):
    """The mutants of mutants.toml in these files. Space and comments in `from` do not count."""
    with open(path, "rb") as file:
        entries = tomllib.load(file).get("mutant", [])
    known = {"file", "breaks", "from", "to", "tests", "occurrence"}
    found, wrong = [], []
    for entry in entries:
        if not {"file", "breaks", "from", "to"} <= entry.keys() <= known:
            wrong.append(f"a mutant needs file, breaks, from and to, and may have tests and occurrence: {entry}")
        elif not (root / entry["file"]).exists():
            wrong.append(f"{entry['file']}: there is no such file; it is to break '{entry['breaks']}'")
        elif entry["file"] in files:
            try:
                found.append(_placed(entry, (root / entry["file"]).read_text()))
            except Stale as why:
                wrong.append(str(why))
    if wrong:
        raise Stale("\n".join(wrong))
    return operators.number_ids(found)


def _placed(entry, text):
    source = cpp_text.Source(text)
    wanted = [token.text for token in cpp_text.tokens_of(entry["from"])]
    tokens = [token.text for token in source.tokens]
    places = [at for at in range(len(tokens) - len(wanted) + 1) if tokens[at : at + len(wanted)] == wanted]
    number = entry.get("occurrence", 1)
    if not places or (len(places) > 1 and "occurrence" not in entry) or number > len(places):
        raise Stale(
            f"{entry['file']}: found {len(places)} times (say which with occurrence): '{' '.join(entry['from'].split())}'; "
            f"it is to break '{entry['breaks']}'"
        )
    begin = places[number - 1]
    end = begin + len(wanted)
    start = source.tokens[begin].start
    return operators.Mutant(
        file=entry["file"],
        line=text.count("\n", 0, start) + 1,
        operator="by-hand",
        form=_form(source, begin, end),
        begin=start,
        end=source.tokens[end - 1].end,
        replacement=cpp_text.joined(token.text for token in cpp_text.tokens_of(entry["to"])),
        original=source.slice(begin, end),
        breaks=entry["breaks"],
        tests=entry.get("tests", ""),
    )


def _form(source, begin, end):
    """Whole statements are replaced as such; anything else has to be an expression."""
    is_value = source.is_at(begin - 1, "(", ",", "=", "return") or source.is_at(end, ")", ",", ";")
    if source.tokens[end - 1].text == ";" or (source.tokens[end - 1].text == "}" and not is_value):
        return "statement"
    is_whole_condition = source.is_at(begin - 1, "(", ";") and source.is_at(end, ")")
    return "condition" if is_whole_condition and source.is_at(begin - 2, "if", "while") else "value"


def read_survivors(path):
    """id -> reason, from lines `id reason`."""
    out = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            if not (match := re.fullmatch(r"([0-9a-f]{10}) (\S.*)", line)):
                raise Stale(f"{path.name}: no id with a reason: '{line}'")
            out[match[1]] = match[2]
    return out
