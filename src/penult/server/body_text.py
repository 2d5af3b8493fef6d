"""The text of a request's body: byte order marks and invalid characters.

JSON can contain an unpaired surrogate, which editors and slicing in JavaScript produce from an emoji. Tokenizers cannot
read it.
"""

import json
import re
from collections.abc import Iterator

from penult.server.errors import Refusal

_UTF8, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_INVALID_BYTE = "\udc80", "\udcff"  # range to which Python's `surrogateescape` maps bytes that are not UTF-8


def without_mark(body: bytes) -> bytes:
    """Return a body without the UTF-8 byte order mark at its start.

    Raises:
        Refusal: the byte order mark is that of UTF-16.
    """
    if body.startswith(_UTF16):
        raise Refusal("invalid", "The body is UTF-16. Send it as UTF-8.")
    return body.removeprefix(_UTF8)


def broken_text(body: bytes) -> Refusal | None:
    """Return the refusal of a body with an invalid character in a text; None if it cannot be parsed for another reason."""
    try:
        body.decode()
        if not _ESCAPED_SURROGATE.search(body):
            return None
    except UnicodeDecodeError:
        pass
    try:
        values = json.loads(body.decode(errors="surrogateescape"))
    except (ValueError, RecursionError):
        return None
    for location, text in _texts(values if isinstance(values, dict) else {}):
        if surrogate := _SURROGATE.search(text):
            param, *place = location
            name = f"`{param}`" if not place else f"Text {place[-1]} of `{'.'.join([param, *place[:-1]])}`"
            problem = f"a lone surrogate U+{ord(surrogate[0]):04X}"
            if _INVALID_BYTE[0] <= surrogate[0] <= _INVALID_BYTE[1] and not _ESCAPED_SURROGATE.search(body):
                problem = "a byte that is not UTF-8"
            return Refusal(
                "invalid", f"{name} has {problem} at character {surrogate.start()}. Send valid Unicode as UTF-8.", param=param
            )
    return None


def _texts(values: dict[str, object], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every text of a JSON object, with the keys and indices of its path."""
    for key, value in values.items():
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            location = (*above, key, str(number)) if isinstance(value, list) else (*above, key)
            if isinstance(item, str):
                yield location, item
            elif isinstance(item, dict) and len(above) < 2:
                yield from _texts(item, location)
