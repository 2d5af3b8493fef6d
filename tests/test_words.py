"""The words of the prose: phrases that a reader of the field would not search for, each with what to write instead.

The test reads docstrings, comments, messages and the names of tests. Public names, flags, JSON keys and metrics stay as they are.
"""

import io
import json
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROSE = (
    "*.md",
    "docs/**/*.md",
    "integrations/*/*.md",
    "deploy/**/*.*",
    ".github/**/*.*",
    "Makefile",
    "Dockerfile",
    "compose.yaml",
)
CODE = ("src/**/*.py", "integrations/**/*.py", "tests/**/*.py", "notebooks/*.py", ".ci/*.py")
NOTEBOOKS = ("notebooks/*.ipynb",)

# A space in a phrase also matches a line break, in a comment and between adjacent strings too, and the underscore of a test's name.
GAP = r"""(?:[\s#_]|f?["'](?=\s*\n)|(?<=\n)[ ]*f?["'])+"""
NOT_A_NOUN = "longer|more|less|fewer|larger|smaller|faster|slower|later|earlier|higher|lower|better|worse|greater|different"
INSTEAD = {
    '"""(?:Give|Gives|Say|Says|Tell|Tells)': "Return, Yield, Report, Print",
    f"(?:is|are|was|were) no (?!(?:{NOT_A_NOUN})(?![a-z]))[a-z]+": "is not a ...",  # "there is no" is fine
    "(?:is|are|was|were) none of": "is not one of",
    "holds? (?:no|nothing)": "has no, does not contain",
    "knows? (?:no|nothing)": "has no, does not depend on",
    "batch(?: |-)mates?": "other texts in the batch",
    "travel(?:s|ing)? (?:together|alone)": "are in one batch",
    "unless told": "the default is",
    "(?:is|are|was|were) told": "the option is set, the message states",
    "cannot be told": "is unknown",
    "without a meaning here": "ignored: has no effect in penult",
    "that is the most": "the limit is",
    r"(?:nobody|everybody)(?![a-z0-9`'\":@/])": "no process, no client, all users",
    "(?:go|goes|going|went|gone) on (?:where|with|from|after)": "resume",
    "(?:lay|lays|laid|laying|lie|lies) (?:aside|beside)": "move away, is in the same folder",
    "(?:throw|throws|threw|thrown|throwing) away": "delete, discard",
    "(?:stand|stands|stood) (?:there|twice|above|beside|before|behind|in|as|for itself)": "is in, overrides, appears twice",
    "(?:it|they|file|files|model|folder|line|text) (?:lies|lie|lay) (?:in|at|on|there)": "is in",
    "mend(?:s|ed|ing)?": "fix",
    "drowns?": "loses resolution",
    "(?:of|from|in|with|by|about) what follows": "the next ...",
    "made up for": "compensated",
    "whole (?:graph|cache|file) (?:is|was)": "valid, complete",
    "(?:a|the|no) wish(?:es)?": "overrides, explicit arguments",
    "(?:has|have|with|of) the (?:face|office)": "interface, role",
    "(?:is|are|was|were) said": "is reported",
    "deaf(?:ness)?": "ignores SIGINT",
    "moods?": "machine noise",
    "kin": "and similar models",
    "memory that stays": "resident memory",
    "the head gone": "head removal",
    "surprise traffic": "unexpected network traffic",
    "never nowhere": "always logged",
    "anew": "again, from the start",
    "for ever": "forever, without end",
    "of matmul": "x the fp32 matmul rate",
    "(?:behavi|col|fav|neighb|hon|lab)our(?:s|ed|ing|al)?": "American spelling",
    "cent(?:re|res|red)": "American spelling",
    "(?:token|normal|quant|initial|optim|serial|recogn|minim|maxim|summar|organ)is(?:e|es|ed|er|ers|ing|ation)": "American spelling",
}


def fixed_part(phrase: str) -> str:
    """Return the longest word that every match of a phrase contains: a file without it needs no search."""
    while (shorter := re.sub(r"\([^()]*\)\??", " ", phrase)) != phrase:
        phrase = shorter
    return max(re.findall("[a-z]+", re.sub(r"\[[^]]*\]|.\?", " ", phrase.lower())) or [""], key=len)


PATTERNS = {phrase: (fixed_part(phrase), re.compile(phrase.lower().replace(" ", GAP) + "(?![a-z])")) for phrase in INSTEAD}
BEFORE = re.compile(GAP + "$")


def files(*patterns: str) -> Iterator[Path]:
    """Yield the files of the checkout that match, this one excepted."""
    for pattern in patterns:
        yield from (path for path in sorted(ROOT.glob(pattern)) if path.is_file() and path != Path(__file__))


def matches(text: str, *, code: bool) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the words and the replacement of each phrase; in code, only those of strings, comments and test names."""
    lower = text.lower()
    spans = None if code else [(0, len(text))]
    for phrase, (fixed, pattern) in PATTERNS.items():
        for match in pattern.finditer(lower) if fixed in lower else ():
            start = match.start()
            if start and lower[start - 1].isalpha() and not phrase.startswith('"'):
                continue
            if re.match(r"[\w-]*\.[a-z]+\b", lower[match.end() :]):  # the name of a file
                continue
            if BEFORE.sub("", lower[max(0, start - 80) : start]).endswith("there"):
                continue
            spans = list(prose_spans(text)) if spans is None else spans
            if any(first <= start < last for first, last in spans):
                yield text.count("\n", 0, start) + 1, " ".join(text[start : match.end()].split()), INSTEAD[phrase]


def prose_spans(code: str) -> Iterator[tuple[int, int]]:
    """Yield the first and last position of every string, comment and name of a test."""
    lines = [0]
    for line in code.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type in kinds or (token.type == tokenize.NAME and token.string.startswith("test_")):
            yield lines[token.start[0] - 1] + token.start[1], lines[token.end[0] - 1] + token.end[1]


def cells(notebook: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield the number, the text and whether it is code of each cell."""
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"], 1):
        source = "".join(cell["source"])
        yield number, re.sub(r"(?m)^[%!].*$", "", source), cell["cell_type"] == "code"


def test_prose_uses_the_words_of_the_field():
    reports = []
    for pattern, code in ((PROSE, False), (CODE, True)):
        for path in files(*pattern):
            for line, words, instead in matches(path.read_text(encoding="utf-8", errors="replace"), code=code):
                reports.append(f"{path.relative_to(ROOT)}:{line}: {words!r}, write: {instead}")
    for path in files(*NOTEBOOKS):
        for number, text, code in cells(path):
            for line, words, instead in matches(text, code=code):
                reports.append(f"{path.relative_to(ROOT)}: cell {number}, line {line}: {words!r}, write: {instead}")
    assert not reports, f"{len(reports)} phrases\n" + "\n".join(reports)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('def f():\n    """Say which."""', 2),
        ("# It runs beside its batch\n# mates.", 1),
        ('error = (\n    "this path is no "\n    f"route"\n)', 2),
        ("def test_nobody_waits(): ...", 1),
        ("a = 1\nb = f'{a} is no model'", 2),
        ('"""A file.\n\nIt goes\non where it was."""', 3),
    ],
)
def test_a_phrase_is_found_across_lines_and_in_names(text, line):
    assert [found[0] for found in matches(text, code=True)] == [line]


@pytest.mark.parametrize(
    "text",
    [
        "behaviour = told = mend  # plain\nwish = is_no_model = 1",
        '"""Return whether there is no model, where there\n    are no files."""',
        "x = 'it is no longer needed and takes no more'",
        "user = 'nobody'",
        "log = 'behaviour_log.json'",
    ],
)
def test_names_in_code_and_plain_english_are_fine(text):
    assert list(matches(text, code=True)) == []
