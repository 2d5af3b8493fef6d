"""Benchmark reports: a table for people, JSON for programs, and a bar chart as SVG."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from html import escape

from penult.bench.measure import Result, Row

_DARK = (
    '@media (prefers-color-scheme: dark) { [fill="#fff"] { fill: #101318 } [fill="#1d2330"] { fill: #e6e9ef } '
    '[fill="#475467"] { fill: #a3adbd } [fill="#0f766e"] { fill: #2dd4bf } [fill="#98a2b3"] { fill: #667085 } '
    '[stroke="#e4e7ec"] { stroke: #2b313c } }'
)

_LEFT, _WIDTH = 230, 420  # of the axis of rates, in pixels


def table(result: Result) -> str:
    """Return a table of all systems, penult first, and the machine's maximum rate."""
    r = result
    threads, rounds = _counted(r.threads, "thread"), _counted(r.rounds, "interleaved round")
    rates = f"fp32 {r.fp32_flops / 1e9:.0f} GFLOP, int8 {r.int8_flops / 1e9:.0f} GOP per CPU second"
    head = f"{'':24}{'tokens/CPU s':>13}{'fp32 matmul':>14}{'tokens/s':>10}{'penult is':>12}{'peak MB':>9}"
    lines = [
        f"{r.model}: {_counted(r.texts, 'text')}, {r.tokens:,} tokens, {r.flops_a_token / 1e6:.1f} MFLOP per token",
        f"{threads}, {rounds}; matmul rate of this machine: {rates}\n",
        f"{head}   cosine to fp32, min / mean",
    ]
    for row in result.rows:
        if row.failure:
            lines.append(f"{row.system:24}did not run: {row.failure}")
            continue
        lines.append(
            f"{row.system:24}{row.tokens_per_cpu_second:13,.0f}{_matmul_ratio(row, result):12.2f} x"
            f"{row.tokens_per_wall_second:10,.0f}{row.penult_is:10.2f} x"
            f"{row.peak_bytes / 1e6:9,.0f}   {row.cosine[0]:.5f} / {row.cosine[1]:.5f}"
        )
    lines += [
        f"\nfp32 matmul: penult runs the model at {_matmul_ratio(result.rows[0], result):.2f} x the fp32 matmul rate.",
        "penult is: speed of penult at fp32 relative to the system, in tokens per CPU second.",
    ]
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """Return all results as one JSON object."""
    return json.dumps(asdict(result), indent=2)


def chart(result: Result) -> str:
    """Return an SVG bar chart of tokens per CPU second, one bar per system."""
    rates = {row.system: row.tokens_per_cpu_second for row in result.rows if not row.failure}
    return rate_chart(f"Tokens per CPU second, {result.model.rpartition('/')[2]}, {_counted(result.threads, 'thread')}", rates)


def rate_chart(title: str, rates: Mapping[str, float], subtitle: str = "") -> str:
    """Return an SVG bar chart of tokens per CPU second by system; it follows the light or dark mode of its reader.

    Its background is its own, so that it is readable on light and dark pages.
    """
    most = max(rates.values())
    top = 66 if subtitle else 46
    end = top + 12 + 34 * len(rates)
    height = end + 58
    bars = "".join(_bar(system, rate, most, top + 6 + 34 * number) for number, (system, rate) in enumerate(rates.items()))
    lines = f'<text x="20" y="30" font-size="16" font-weight="600" fill="#1d2330">{escape(title)}</text>'
    if subtitle:
        lines += f'<text x="20" y="50" font-size="13" fill="#475467">{escape(subtitle)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 {height}" width="760" height="{height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14"><title>{escape(title)}</title><style>{_DARK}</style>'
        f'<rect width="760" height="{height}" rx="8" fill="#fff"/>{lines}'
        f"{_axes(most, top, end)}{bars}</svg>\n"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _matmul_ratio(row: Row, result: Result) -> float:
    """Return the speed relative to the fp32 matmul rate; it may exceed 1 for int8."""
    return row.tokens_per_cpu_second * result.flops_a_token / result.fp32_flops if result.fp32_flops else 0.0


def _bar(system: str, rate: float, most: float, y: int) -> str:
    width = _WIDTH * rate / most
    color = "#0f766e" if system.startswith("penult") else "#98a2b3"
    return (
        f'<text x="{_LEFT - 10}" y="{y + 17}" text-anchor="end" fill="#1d2330">{escape(system)}</text>'
        f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="24" rx="3" fill="{color}"/>'
        f'<text x="{_LEFT + 8 + width:.1f}" y="{y + 17}" fill="#475467">{rate:,.0f}</text>'
    )


def _axes(most: float, top: int, end: int) -> str:
    """Return the axis of rates, with up to six round values and grid lines, and the titles of both axes."""
    size = 10 ** math.floor(math.log10(most))
    step = next(size * part for part in (0.2, 0.5, 1, 2) if most / (size * part) < 6)
    ticks = [step * number for number in range(int(most / step) + 1)]
    lines = "".join(
        f'<path d="M{x:.1f} {top}V{end}" stroke="#e4e7ec"/>'
        f'<text x="{x:.1f}" y="{end + 18}" text-anchor="middle" font-size="12" fill="#475467">{tick:,.0f}</text>'
        for x, tick in ((_LEFT + _WIDTH * tick / most, tick) for tick in ticks)
    )
    middle = (top + end) / 2
    return (
        f'{lines}<text x="{_LEFT + _WIDTH / 2:.0f}" y="{end + 42}" text-anchor="middle" font-size="12" fill="#475467">'
        "tokens per CPU second (more is better)</text>"
        f'<text x="18" y="{middle}" transform="rotate(-90 18 {middle})" text-anchor="middle" font-size="12" fill="#475467">'
        "system</text>"
    )
