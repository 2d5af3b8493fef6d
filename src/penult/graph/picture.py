"""Render a description as one self-contained HTML file: the layers, the cut, and the removed part."""

from collections.abc import Collection
from html import escape

from penult.graph.describe import Description, End

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6474; --line: #c3cad6; --box: #f6f7f9;
        --keep: #0f766e; --keep-bg: #e6f4f1; --gone: #b42318; --gone-bg: #fdf1f0; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a3adbd; --line: #454d5c; --box: #1b1f27;
        --keep: #5eead4; --keep-bg: #12332f; --gone: #fda29b; --gone-bg: #3a1d1b; --paper: #101318; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2.5rem auto; max-width: 46rem;
       padding: 0 1rem; }
h1 { font-size: 1.35rem; letter-spacing: -.01em; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p { margin: .25rem 0 .75rem; color: var(--soft); }
.legend { display: flex; flex-wrap: wrap; gap: .35rem 1.25rem; font-size: .85rem; margin-bottom: 1.25rem; }
.legend span::before { content: ""; display: inline-block; width: 1.1rem; height: .7rem; margin-right: .45rem;
                       border-radius: 3px; border: 1px solid var(--line); background: var(--box); }
.legend .chosen::before { background: var(--keep-bg); border: 2px solid var(--keep); }
.legend .gone::before { background: var(--gone-bg); border: 1px dashed var(--gone); }
ol { list-style: none; margin: 0; padding: 0; }
li { border: 1px solid var(--line); border-radius: 8px; padding: .55rem .9rem; margin: 0 0 .5rem; }
li.keep { background: var(--box); }
li.chosen { background: var(--keep-bg); border: 2px solid var(--keep); }
li.gone { background: var(--gone-bg); border: 1px dashed var(--gone); color: var(--gone); }
li.end { text-align: center; color: var(--soft); }
li.cut { border: 0; border-top: 2px dashed var(--gone); border-radius: 0; color: var(--gone); text-align: right;
         padding: .1rem 0; margin: .9rem 0; font-weight: 600; }
b { font-weight: 600; } .width { float: right; color: var(--soft); margin-left: 1rem; }
code { font: 12.5px/1.4 ui-monospace, monospace; overflow-wrap: anywhere; } small { display: block; color: var(--soft); }
s { color: var(--gone); }
"""
_LEGEND = (
    '<p class="legend"><span class="keep">kept layer</span><span class="chosen">layer that is pooled</span>'
    '<span class="gone">removed</span> Data flows from the bottom to the top.</p>'
)


def draw(description: Description, title: str) -> str:
    """Return an HTML page; data flows upwards, from the inputs at the bottom to the head at the top."""
    d = description
    rows = [_end(d.outputs, "outputs", gone=() if not d.removed.nodes else [end.name for end in d.outputs]), _removed(d)]
    rows += [_layer(d, index) for index in range(len(d.layers) - 1, d.cut.index, -1)]
    rows.append(f'<li class="cut">cut here: layer {d.cut.index} gives the token embeddings{_fallen(d)}</li>')
    rows += [_layer(d, index) for index in range(d.cut.index, -1, -1)]
    rows.append(_end(d.inputs, "inputs", gone=[end.name for end in d.inputs if end.name not in d.kept_inputs]))
    opsets = ", ".join(f"{domain} {version}" for domain, version in d.opset.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{escape(title)}</h1>"
        f"<p>{len(d.layers) - 1} layers, {d.whole.parameters:,} parameters ({d.precision}, {megabytes(d.whole.bytes)}), "
        f"opset {escape(opsets)}</p>{_LEGEND}<ol>{''.join(rows)}</ol></html>\n"
    )


def megabytes(count: int) -> str:
    """Format a number of bytes in MB (10^6), or in kB (10^3) below 0.1 MB."""
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count / 1e3:,.1f} kB"


def _layer(d: Description, index: int) -> str:
    state = d.layers[index]
    kind = "gone" if index > d.cut.index else "keep chosen" if index == d.cut.index else "keep"
    name = "Embedding output" if index == 0 else f"Layer {index}"
    width = "" if state.hidden_size is None else f'<span class="width">hidden size {state.hidden_size}</span>'
    return f'<li class="{kind}">{width}<b>{name}</b> <code>{escape(state.tensor)}</code><small>{escape(state.why)}</small></li>'


def _removed(d: Description) -> str:
    if not d.removed.nodes and not d.removed.bytes:
        return '<li class="end">nothing to remove: the graph ends at this hidden state</li>'
    return '<li class="gone"><b>Head</b></li>'


def _fallen(d: Description) -> str:
    """Return the size of what is above the cut, head and layers together."""
    if not d.removed.nodes and not d.removed.bytes:
        return ""
    size = f"{d.removed.nodes:,} nodes, {d.removed.parameters:,} parameters, {megabytes(d.removed.bytes)}"
    return f"<small>removed: {size}</small>"


def _end(ends: tuple[End, ...], what: str, gone: Collection[str]) -> str:
    """Return the list of inputs or outputs, with those that the cut graph lacks struck through."""
    listed = [f"{end.name} {end.dtype}({', '.join(map(str, end.shape))})" for end in ends]
    marked = [f"<s>{escape(one)}</s>" if end.name in gone else escape(one) for one, end in zip(listed, ends, strict=True)]
    return f'<li class="end">{what}: <code>{", ".join(marked)}</code></li>'
