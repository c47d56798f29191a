# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
"""As much of C++ as finding statements in clang-formatted headers takes: tokens, function bodies, statements.

It is no parser: what it does not understand it leaves alone, and what it gets wrong does not compile, which drops the
mutant."""

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<comment>//[^\n]*|/\*.*?\*/)
  | (?P<directive>^[ ]*\#(?:\\\n|[^\n])*)
  | (?P<string>(?:u8|[uUL])?"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
  | (?P<number>\d(?:[\w.']|[eE][+-])*)
  | (?P<word>[A-Za-z_]\w*)
  | (?P<punct>::|->\*?|\+\+|--|<<=|<=>|<<|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|\.\.\.|.)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int
    end: int
    spaced: bool  # white space on both sides: with clang-format's habits, a binary operator and no bracket or prefix


def joined(texts):
    """Tokens on one line. Those of `>>` are two, because templates end with them too."""
    return " ".join(texts).replace("> >", ">>")


def tokens_of(text):
    """Tokens without space, comments and preprocessor lines. `>>` comes as two tokens."""
    out = []
    for match in _TOKEN.finditer(text):
        if match.lastgroup in ("space", "comment", "directive"):
            continue
        before = text[match.start() - 1 : match.start()].isspace()
        after = text[match.end() : match.end() + 1].isspace()
        out.append(Token(match.lastgroup, match.group(), match.start(), match.end(), before and after))
    return out


_CLOSING = {"(": ")", "[": "]", "{": "}"}


class Source:
    """A header, its tokens, and for each opening bracket where it closes."""

    def __init__(self, text):
        self.text = text
        self.tokens = tokens_of(text)
        self.closing = self._match_brackets()

    def _match_brackets(self):
        closing, open_at = {}, []
        for at, token in enumerate(self.tokens):
            if token.kind != "punct":
                continue
            if token.text in _CLOSING:
                open_at.append(at)
            elif token.text in _CLOSING.values():
                closing[open_at.pop()] = at
        return closing

    def is_at(self, at, *texts):
        return at < len(self.tokens) and self.tokens[at].text in texts

    def slice(self, begin, end):
        """The text of tokens [begin, end)."""
        return self.text[self.tokens[begin].start : self.tokens[end - 1].end] if begin < end else ""


@dataclass
class Statement:
    kind: str  # if, loop, return, expression, declaration, jump
    begin: int  # tokens [begin, end), with the semicolon
    end: int
    function: "Function"
    condition: tuple = None  # tokens [begin, end) of what an if or a loop asks
    body: tuple = None  # tokens [begin, end) of what it guards
    initial: int = None  # of a declaration, where its value begins


@dataclass
class Function:
    name: str
    returns: str  # what stands before the name


def statements_of(source):
    """Every statement of every function body of a header, in order, nested ones too."""
    return _Walk(source).out


class _Walk:
    _PAREN_WORDS = ("noexcept", "requires", "explicit", "alignas", "decltype", "sizeof")

    def __init__(self, source):
        self.source = source
        self.out = []
        self.function = None
        self._scope(0, len(source.tokens))

    # ---- namespaces and classes

    def _scope(self, at, end):
        head = at
        while at < end:
            token = self.source.tokens[at]
            if token.text in ("(", "["):
                at = self.source.closing[at] + 1
            elif token.text == ";" or token.text == "}":
                at = head = at + 1
            elif token.text == ":" and at > head and self.source.is_at(at - 1, "public", "private", "protected"):
                at = head = at + 1
            elif token.text == "{":
                at = self._braces(head, at)
                head = at if not self.source.is_at(at, ";", ",", "{") else head
            else:
                at += 1

    def _braces(self, head, at):
        """At an opening brace of a scope: go into what it holds; return the token behind it."""
        words, assigned, called = self._outline(head, at)
        close = self.source.closing[at]
        if "concept" in words or "enum" in words:
            return close + 1
        if "namespace" in words or (not called and words & {"class", "struct", "union"}):
            self._scope(at + 1, close)
            return close + 1
        if assigned or not called:
            return close + 1
        body = self._body_of(head, at)
        self._function_body(head, body)
        return self.source.closing[body] + 1

    def _outline(self, head, at):
        """The words of a head outside brackets, whether it assigns, and whether it has parameters."""
        words, assigned, called = set(), False, False
        i = self._behind_template(head, at)
        while i < at:
            token = self.source.tokens[i]
            if token.text == "(":
                before = self.source.tokens[i - 1].text if i > head else ""
                called = called or before not in self._PAREN_WORDS
                i = self.source.closing[i]
            elif token.text == "[":
                i = self.source.closing[i]
            elif token.text == "=" and not self.source.is_at(i - 1, "operator"):
                assigned = True
            elif token.kind == "word":
                words.add(token.text)
            i += 1
        if words & {"class", "struct", "union"} and "operator" not in words:
            called = False
        return words, assigned, called

    def _behind_template(self, at, end):
        while at < end and self.source.tokens[at].text == "template":
            at += 1
            depth = 0
            while at < end:
                depth += {"<": 1, ">": -1}.get(self.source.tokens[at].text, 0)
                at += 1
                if depth == 0:
                    break
        return at

    def _body_of(self, head, at):
        """The brace that opens a function's body: not one of the initialisers of a constructor."""
        colon = any(
            self.source.tokens[i].text == ":" and self.source.tokens[i].spaced for i in self._outside_brackets(head, at)
        )
        while colon and (self.source.tokens[at - 1].kind == "word" or self.source.tokens[at - 1].text == ">"):
            at = self.source.closing[at] + 1
            while not self.source.is_at(at, "{"):
                at = self.source.closing[at] + 1 if self.source.is_at(at, "(") else at + 1
        return at

    def _outside_brackets(self, at, end):
        while at < end:
            yield at
            at = self.source.closing.get(at, at) + 1

    def _function_body(self, head, body):
        begin = self._behind_template(head, body)
        first = begin
        while first < body and not (
            self.source.is_at(first, "(") and self.source.tokens[first - 1].text not in self._PAREN_WORDS
        ):
            first = self.source.closing.get(first, first) + 1
        name = self.source.tokens[first - 1].text
        self.function = Function(name, self.source.slice(begin, max(begin, first - 1)))
        self._block(body)

    # ---- statements

    def _block(self, brace):
        at, end = brace + 1, self.source.closing[brace]
        while at < end:
            at = self._statement(at)
        return end + 1

    def _statement(self, at):
        """Read the statement at this token; return the token behind it."""
        tokens, closing = self.source.tokens, self.source.closing
        text = tokens[at].text
        if text == "{":
            return self._block(at)
        if text == ";":
            return at + 1
        if text in ("case", "default"):
            while not (tokens[at].text == ":"):
                at = closing.get(at, at) + 1
            return at + 1
        if text == "if":
            return self._if(at)
        if text in ("for", "while", "switch"):
            return self._guarded(at, "loop" if text != "switch" else "switch")
        if text == "do":
            behind = self._statement(at + 1)
            self._add("loop", at, closing[behind + 1] + 2, condition=(behind + 2, closing[behind + 1]))
            return closing[behind + 1] + 2
        if text in ("try", "else"):
            return self._statement(at + 1)
        if text == "catch":
            return self._statement(closing[at + 1] + 1)
        if text in ("struct", "class", "enum", "union", "using", "static_assert", "namespace", "typedef"):
            return self._end_of(at)
        return self._simple(at)

    def _if(self, at):
        constant = self.source.is_at(at + 1, "constexpr")
        paren = at + (2 if constant else 1)
        self._lambdas(paren, self.source.closing[paren])
        behind = self.source.closing[paren] + 1
        end = self._statement(behind)
        if not constant:
            condition = self._condition(paren)
            self._add("if", at, end, condition=condition, body=(behind, end))
        if self.source.is_at(end, "else"):
            end = self._statement(end + 1)
        return end

    def _guarded(self, at, kind):
        paren = at + 1
        self._lambdas(paren, self.source.closing[paren])
        behind = self.source.closing[paren] + 1
        end = self._statement(behind)
        if kind == "loop":
            self._add(kind, at, end, condition=self._condition(paren, of_for=self.source.is_at(at, "for")), body=(behind, end))
        return end

    def _condition(self, paren, of_for=False):
        """What is asked inside these parentheses, or nothing where it declares something."""
        close = self.source.closing[paren]
        cuts = [i for i in self._outside_brackets(paren + 1, close) if self.source.tokens[i].text == ";"]
        if of_for:
            return (cuts[0] + 1, cuts[1]) if len(cuts) == 2 and cuts[0] + 1 < cuts[1] else None
        begin = cuts[-1] + 1 if cuts else paren + 1
        return None if self._declares(begin, close) is not None else (begin, close)

    def _simple(self, at):
        end = self._end_of(at)
        self._lambdas(at, end)
        text = self.source.tokens[at].text
        if text in ("return", "co_return"):
            self._add("return", at, end)
        elif text in ("break", "continue"):
            self._add("jump", at, end)
        elif text in ("throw", "goto", "delete"):
            pass
        else:
            initial = self._declares(at, end)
            if initial is None:
                self._add("expression", at, end)
            elif initial >= 0:
                self._add("declaration", at, end, initial=initial)
        return end

    def _end_of(self, at):
        while not self.source.is_at(at, ";"):
            at = self.source.closing.get(at, at) + 1
        return at + 1

    def _declares(self, begin, end):
        """Where the value of a declaration begins; -1 when it has none with `=`; nothing for what is no declaration."""
        tokens = self.source.tokens
        named = False
        at = begin
        while at < end:
            text = tokens[at].text
            if at == begin and text in ("auto", "const", "static", "constexpr", "thread_local", "[") and not (
                text == "[" and not self.source.is_at(at + 1, "[")
            ):
                named = True
            if at > begin and tokens[at].kind == "word" and not tokens[at].text == "const":
                before = tokens[at - 1]
                named = named or before.kind == "word" or (before.text in ("&", "*", ">", "&&") and not before.spaced and
                                                          tokens[begin].kind == "word" and at - 1 > begin)
            if text == "=":
                return at + 1 if named and not tokens[begin].text in ("static", "constexpr") else (-1 if named else None)
            if text in ("(", "{", ";", ".", "->", "?") or (text.endswith("=") and text not in ("==", "<=", ">=", "!=")):
                return -1 if named and text in ("(", "{", ";") else None
            if text == "[":
                at = self.source.closing[at]
            at += 1
        return -1 if named else None

    def _lambdas(self, begin, end):
        """Go into the bodies of lambdas between these tokens."""
        function = self.function
        at = begin
        while at < end:
            token = self.source.tokens[at]
            before = self.source.tokens[at - 1]
            if token.text == "[" and not (before.kind == "word" and before.text != "return") and before.text not in ("]", ")"):
                body = self._lambda_body(self.source.closing[at] + 1, end)
                if body is not None:
                    self.function = Function("lambda in " + function.name, "")
                    at = self._block(body)
                    self.function = function
                    continue
            at += 1

    def _lambda_body(self, at, end):
        while at < end and self.source.tokens[at].text != "{":
            if self.source.tokens[at].text in (";", ",", ")", "]", "="):
                return None
            at = self.source.closing.get(at, at) + 1
        return at if at < end else None

    def _add(self, kind, begin, end, **rest):
        self.out.append(Statement(kind, begin, end, self.function, **rest))
