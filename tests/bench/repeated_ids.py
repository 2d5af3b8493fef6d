"""Seconds and peak memory of the check that ids are unique, which an ingest begins with.

Usage: python tests/bench/repeated_ids.py [ROWS] (50 million by default; the temporary file takes 8 bytes a row).
"""

import resource
import sys
import time

from penult.bulk.repeated_ids import find_repeated


def batches(rows: int, size: int = 65_536):
    return ([f"document-{row:012d}" for row in range(start, min(rows, start + size))] for start in range(0, rows, size))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000_000
    start = time.perf_counter()
    for _ in batches(rows):
        pass
    made, before = time.perf_counter() - start, peak()
    start = time.perf_counter()
    assert find_repeated(lambda: batches(rows)) is None
    seconds = time.perf_counter() - start - made
    print(f"{rows:,} ids: {seconds:.1f} s, {peak() - before:.0f} MB above {before:.0f} MB")
