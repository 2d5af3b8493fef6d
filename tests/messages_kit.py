"""The messages of the troubleshooting page: a test in tests/messages triggers each ```text block.

In docs/troubleshooting.md, every entry of a section is a heading of the third level and a ```text block that holds the message word for
word. Paths and versions, which differ between machines, are written as names in capitals: `check` gets their values.
"""

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"


def entries(section: str) -> dict[str, str]:
    """Return the entries of a section: the heading of each, and its message."""
    text = PAGE.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## {section}\n")
    assert found, f"docs/troubleshooting.md has no section {section!r}"
    body = rest.partition("\n## ")[0]
    return dict(re.findall(r"^### (.+?)\n.*?^```text\n(.*?)\n```", body, re.DOTALL | re.MULTILINE))


def check(section: str, heading: str, message: str, **names: object) -> None:
    """Compare a message with the page, after replacing each value in `names` by its name: `FOLDER=tmp_path`."""
    for name, value in sorted(names.items(), key=lambda item: -len(str(item[1]))):
        message = message.replace(str(value), name)
    assert message == entries(section)[heading]


def check_complete(section: str, cases: object) -> None:
    """Compare the headings of a section with the names of the test cases that trigger them: both are the same."""
    assert set(entries(section)) == set(cases)
