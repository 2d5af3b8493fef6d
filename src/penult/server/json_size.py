"""How many values a JSON document has, counted without parsing it.

A parser makes an object of each value while it holds the interpreter's lock: 32 MB of `[1,1,...]` take a second and a gigabyte,
in which no other request is answered. Counting takes a twentieth of that, and no memory to speak of.
"""


def has_more_values(document: bytes, limit: int) -> bool:
    """Return whether a JSON document has more than `limit` strings, or more than `limit` commas outside of strings.

    What is not valid JSON is counted as far as a parser would read it, or further.
    """
    if b"\\" in document:  # backslashes are in pairs, or escape a sign; without them each quote begins or ends a string
        document = document.replace(b"\\\\", b"").replace(b'\\"', b"")
    if document.count(b'"') > 2 * limit:
        return True
    commas, start = 0, 0
    while start >= 0:
        quote = document.find(b'"', start)
        commas += document.count(b",", start, len(document) if quote < 0 else quote)
        if quote < 0 or commas > limit:
            break
        end = document.find(b'"', quote + 1)
        start = end + 1 if end >= 0 else -1
    return commas > limit
