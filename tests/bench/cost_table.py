"""What a billion tokens cost, computed from measured rates.

    penult bench MODEL --json bench.json && python tests/bench/cost_table.py bench.json --dollars-a-core-hour 0.04

The rate of one core comes from the file, all else from the options below. Prices differ by place and day, so there is no
default: put in your own.
"""

import argparse
import json
from pathlib import Path

from penult.bulk.input.readers import rows_of_a_shard

BILLION = 1e9
BYTES_A_TOKEN = 4.9  # of English prose under a WordPiece tokenizer: the demo paragraphs of notebooks/data have 4.88
DISK = 200e6  # bytes a second that one plain disk or one connection to an object store gives
MERGE = 160e6  # bytes a second that the one process writes which merges shards into Parquet, measured beside the rate below
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
    print(table(round(rate), given.dollars_a_core_hour, given.tokens_a_row, given.dimension))


def table(rate: int, price: float, tokens_a_row: int, dimension: int) -> str:
    """Lay out the plan for corpora of growing size, as Markdown."""
    hours = BILLION / rate / 3600
    row_bytes = dimension * 4 + tokens_a_row * BYTES_A_TOKEN
    shard = rows_of_a_shard(tokens_a_row * BYTES_A_TOKEN, int(CORPORA["a billion"] / tokens_a_row))
    lines = [
        (
            f"One core: {rate:,.0f} tokens a second, so a billion tokens take {hours:,.0f} core hours, {hours * price:,.2f} dollars "
            f"at {price} a core hour. A row has {tokens_a_row} tokens and {dimension} values."
        ),
        "",
        f"| tokens | rows | core hours | dollars | {' | '.join(f'{cores:,} cores' for cores in CORES)} | output | shards of {shard:,} rows |",
        f"|---:|---:|---:|---:|{'---:|' * len(CORES)}---:|---:|",
    ]
    for name, tokens in CORPORA.items():
        rows, core_hours = tokens / tokens_a_row, tokens / rate / 3600
        spans = " | ".join(span(core_hours / cores) for cores in CORES)
        size = rows * row_bytes
        lines.append(
            f"| {name} | {rows:,.0f} | {figure(core_hours)} | {figure(core_hours * price)} | {spans} | {volume(size)} | "
            f"{-(-rows // shard):,.0f} |"
        )
    busy = rate / tokens_a_row * row_bytes  # bytes a second that one core reads and writes
    lines += [
        "",
        (
            f"A shard is {shard * row_bytes / 1e6:,.1f} MB and {shard * tokens_a_row / rate:,.0f} s of a core; a crash costs "
            f"about 5 s of it. A core moves {busy / 1e3:,.0f} kB a second. Arithmetic is the bottleneck up to {MERGE / busy:,.0f} cores; "
            f"from there on the merge, which one process does at {MERGE / 1e6:,.0f} MB a second, takes longer than the "
            f"embedding: give each part of the corpus a job and an output of its own. At {DISK / busy:,.0f} cores a disk of "
            f"{DISK / 1e6:,.0f} MB a second is full: give each machine one."
        ),
    ]
    return "\n".join(lines)


def volume(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:,.0f} GB" if size < 1e12 else f"{size / 1e12:,.1f} TB"


def figure(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def span(hours: float) -> str:
    if hours < 1 / 60:
        return "under 1 min"
    if hours < 1:
        return f"{hours * 60:,.1f} min"
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.0f} d"


if __name__ == "__main__":
    main()
