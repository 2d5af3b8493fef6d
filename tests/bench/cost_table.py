"""What a billion tokens cost, computed from measured rates.

    penult bench MODEL --json bench.json && python tests/bench/cost_table.py bench.json --dollars-a-core-hour 0.04

The rate of one core comes from the file, all else from the options below. Prices differ by place and day, so there is no
default: put in your own.
"""

import argparse
import json
from pathlib import Path

BILLION = 1e9
BYTES_A_TOKEN = 4.9  # of English prose under a WordPiece tokenizer: the demo paragraphs of notebooks/data have 4.88
DISK = 200e6  # bytes a second that one plain disk or one connection to an object store gives
CORPORA = {"a million": 1e6, "a billion": 1e9, "100 billion": 1e11, "10 trillion": 1e13}
CORES = (2, 64, 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path, help="what `penult bench --json` wrote")
    parser.add_argument("--system", default="penult", help="whose rate; penult-int8 is another")
    parser.add_argument("--dollars-a-core-hour", type=float, required=True)
    parser.add_argument("--tokens-a-row", type=int, default=200)
    parser.add_argument("--dimension", type=int, default=384)
    given = parser.parse_args()
    rows = json.loads(given.bench.read_text())["rows"]
    rate = next(row["tokens_per_cpu_second"] for row in rows if row["system"] == given.system)
    print(table(rate, given.dollars_a_core_hour, given.tokens_a_row, given.dimension))


def table(rate: float, price: float, tokens_a_row: int, dimension: int) -> str:
    """Lay out the plan for corpora of growing size, as Markdown."""
    hours = BILLION / rate / 3600
    row_bytes = dimension * 4 + tokens_a_row * BYTES_A_TOKEN
    lines = [
        (
            f"One core: {rate:,.0f} tokens a second, so a billion tokens take {hours:,.0f} core hours, {hours * price:,.2f} dollars "
            f"at {price} a core hour. A row has {tokens_a_row} tokens and {dimension} values."
        ),
        "",
        f"| tokens | rows | core hours | dollars | {' | '.join(f'{cores:,} cores' for cores in CORES)} | output | shards of 4,096 rows |",
        f"|---:|---:|---:|---:|{'---:|' * len(CORES)}---:|---:|",
    ]
    for name, tokens in CORPORA.items():
        rows, core_hours = tokens / tokens_a_row, tokens / rate / 3600
        spans = " | ".join(span(core_hours / cores) for cores in CORES)
        size = rows * row_bytes
        lines.append(
            f"| {name} | {rows:,.0f} | {core_hours:,.1f} | {core_hours * price:,.2f} | {spans} | {volume(size)} | "
            f"{-(-rows // 4096):,.0f} |"
        )
    busy = rate / tokens_a_row * row_bytes  # bytes a second that one core reads and writes
    lines += [
        "",
        (
            f"A core moves {busy / 1e3:,.0f} kB a second, so a disk of {DISK / 1e6:,.0f} MB a second is full at "
            f"{DISK / busy:,.0f} cores: from there on the bottleneck is storage, not arithmetic."
        ),
    ]
    return "\n".join(lines)


def volume(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size < 1e12 else f"{size / 1e12:,.1f} TB"


def span(hours: float) -> str:
    if hours < 1 / 60:
        return "under 1 min"
    if hours < 1:
        return f"{hours * 60:,.1f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.1f} d"


if __name__ == "__main__":
    main()
