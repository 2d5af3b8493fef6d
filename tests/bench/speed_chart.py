"""Draw the speed chart of the README from docs/assets/speed.json.

    python tests/bench/peers.py MODEL --peer-python PYTHON --json bench.json
    python tests/bench/speed_chart.py docs/assets/speed.json docs/assets/speed.svg

speed.json is the JSON of `penult bench` or `make bench-peers`, and `measured`: the model's name, the processor, and the versions and
names of the systems. The chart has its own white background, so that it is readable on light and dark pages.
"""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

WIDTH, LEFT, RIGHT = 760, 226, 700  # of the picture, and of the axis
ROW, TOP = 32, 76
STEP = 5000  # tokens per CPU second between two ticks


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    target.write_text(chart(json.loads(source.read_text(encoding="utf-8"))), encoding="utf-8")


def chart(result: dict[str, Any]) -> str:
    """Return an SVG bar chart, fastest system first."""
    measured = result["measured"]
    rows = sorted(result["rows"], key=lambda row: -row["tokens_per_cpu_second"])
    most = (int(rows[0]["tokens_per_cpu_second"]) // STEP + 1) * STEP
    bottom = TOP + ROW * len(rows)
    scale = (RIGHT - LEFT) / most
    parts = [
        _text(20, 30, f"{measured['model']}: tokens per CPU second", size=17, weight=600),
        _text(20, 52, f"{measured['processor']}, {result['threads']} thread, {measured['texts']}", fill="#475467"),
    ]
    for tick in range(0, most + 1, STEP):
        x = LEFT + tick * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom}" stroke="#e4e7ec"/>')
        parts.append(_text(x, bottom + 18, f"{tick:,}", anchor="middle", fill="#475467"))
    for number, row in enumerate(rows):
        y, rate = TOP + ROW * number, row["tokens_per_cpu_second"]
        color = "#0f766e" if row["system"].startswith("penult") else "#98a2b3"
        parts.append(_text(LEFT - 10, y + 17, measured["systems"][row["system"]], anchor="end"))
        parts.append(f'<rect x="{LEFT}" y="{y}" width="{rate * scale:.1f}" height="24" rx="3" fill="{color}"/>')
        parts.append(_text(LEFT + rate * scale + 6, y + 17, f"{rate:,.0f}", fill="#475467"))
    parts.append(_text((LEFT + RIGHT) / 2, bottom + 40, "tokens per CPU second (higher is faster)", anchor="middle"))
    parts.append(
        f'<text x="16" y="{(TOP + bottom) / 2}" transform="rotate(-90 16 {(TOP + bottom) / 2})" text-anchor="middle" '
        f'fill="#1d2330">system</text>'
    )
    height = bottom + 56
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13"><title>Tokens per CPU second by system</title>'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#1d2330", size: int = 13, weight: int = 400
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" fill="{fill}" font-size="{size}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


if __name__ == "__main__":
    main()
