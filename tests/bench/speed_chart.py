"""Draw the speed chart of the README from docs/assets/speed.json.

    python tests/bench/peers.py MODEL --peer-python PYTHON --json bench.json
    python tests/bench/speed_chart.py docs/assets/speed.json docs/assets/speed.svg

speed.json is the JSON of `penult bench` or `make bench-peers`, and `measured`: the model's name, the processor, and the versions and
names of the systems.
"""

import json
import sys
from pathlib import Path
from typing import Any

from penult.bench.report import rate_chart


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    target.write_text(chart(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")


def chart(result: dict[str, Any]) -> str:
    """Return the chart of `penult bench`, fastest system first, with the names of the systems and the conditions."""
    measured = result["measured"]
    rows = sorted(result["rows"], key=lambda row: -row["tokens_per_cpu_second"])
    rates = {measured["systems"][row["system"]]: row["tokens_per_cpu_second"] for row in rows}
    subtitle = f"{measured['processor']}, {result['threads']} thread, {measured['texts']}"
    return rate_chart(f"{measured['model']}: tokens per CPU second", rates, subtitle)


if __name__ == "__main__":
    main()
