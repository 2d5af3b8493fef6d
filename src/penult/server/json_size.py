"""Count the values of a JSON document without parsing it.

A parser creates an object per value while it holds the GIL: 32 MB of `[1,1,...]` take a second and a gigabyte, and no other
request is answered meanwhile. Counting takes a twentieth of the time and almost no memory.
"""


def has_more_values(document: bytes, limit: int) -> bool:
    """Return whether a JSON document has more than `limit` strings, or more than `limit` commas outside of strings.

    Invalid JSON is counted at least as far as a parser would read it.
    """
    if b"\\" in document:  # without escaped backslashes and quotes, each quote begins or ends a string
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
