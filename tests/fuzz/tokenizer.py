"""tokenizer.json: a tokenizer whose ids respect the limit, or one error that names the folder."""

import json
import tempfile
from pathlib import Path

from draw import Draw, altered
from models import tokenizer, write_json

from penult.core.tokenizer import Tokenizer

FOLDER = Path(tempfile.mkdtemp())
WHOLE = json.loads(tokenizer().to_str())
SEEDS = [b"\x00" + bytes(range(60)), b"\x01" + json.dumps(WHOLE).encode()[:3000], b"\x01{}", b"\x00" * 30]
write_json(FOLDER / "tokenizer_config.json", {"pad_token": "[PAD]", "cls_token": "[CLS]"})


def one(data: bytes) -> None:
    """Tokenize with changed values in the tiny model's file, or with the bytes themselves."""
    draw = Draw(data)
    content = draw.take(20_000) if draw.whole(1) else json.dumps(altered(draw, WHOLE)).encode()
    (FOLDER / "tokenizer.json").write_bytes(content)
    try:
        made = Tokenizer(FOLDER, max_length=12)
        encoded = made.tokenize(["the cat sat", "", "\u00e9\u4e2d " * 40], "query: ")
    except ValueError as error:
        assert str(FOLDER) in str(error) or "max_length is 12" in str(error)
        return
    assert all(len(ids) <= 12 for ids in encoded.ids)
    assert all(dropped >= 0 for dropped in encoded.dropped)
    padded = made.pad(encoded, [0, 1, 2], 12)
    assert padded.ids.shape == (3, 12)
