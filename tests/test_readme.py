"""The examples of README.md run as they stand, on a tiny model in place of the one that would be fetched."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_examples_run(tiny, capsys):
    """The Python blocks of README.md, one after the other, as a reader would paste them."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 4
    code = "\n".join(blocks).replace("sentence-transformers/all-MiniLM-L6-v2", tiny.as_posix())
    exec(compile(code, "README.md", "exec"), {})
    assert "1_Pooling/config.json" in capsys.readouterr().out
