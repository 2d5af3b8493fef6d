"""The documentation pages, and the code blocks on them."""

import re
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in a language, without their indentation."""
    matches = re.findall(rf"^( *)```{language}\n(.*?)\n *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in matches]
