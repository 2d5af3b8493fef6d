"""Mutation testing: change one thing in one file, run that file's tests, and list the changes that no test notices.

`make mutants` runs it over all of `FILES`; FILE... runs it over some, `--only 17,40` tries single mutants again. A mutant is
one of: a comparison, a sum, a Boolean operator or a `not` negated, a number plus or minus one, a negated condition, a
result replaced by None, a removed statement. Error messages, type annotations, decorators and docstrings are not changed.

The name of a mutant is the changed line and its new form. The script prints a report and never fails: some survivors are
equivalent to the original (a node with one output has `output[0] == output[-1]`), the others show a missing test.

Everything runs in a copy of src/ and tests/, without other data: the tests of this repository must notice. Each mutant runs in
a fork of a process that has imported the slow third-party modules and no module of penult; its tests stop at their first failure. A
mutant that hangs counts as noticed.
"""

import argparse
import ast
import compileall
import copy
import importlib
import importlib.util
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS, MEMORY = 240, 12 * 2**30
FILES = {
    "core/batching.py": ["tests/test_batching.py"],
    "core/assemble.py": ["tests/graph/test_assemble.py"],
    "graph/find/attention.py": ["tests/graph/test_attention.py"],
    "graph/rewrite/dynamic_axes.py": ["tests/graph/test_dynamic_axes.py"],
    "graph/rewrite/blockwise.py": ["tests/graph/test_attention.py"],
    "graph/int8/calibrate.py": ["tests/graph/test_calibrate.py", "tests/test_quantize.py"],
    "graph/rewrite/cut.py": ["tests/graph/test_cut.py"],
    "graph/describe.py": ["tests/graph/test_describe.py"],
    "graph/find/last_layer.py": ["tests/graph/test_last_layer.py", "tests/graph/test_layers.py"],
    "graph/rewrite/external_data.py": ["tests/graph/test_external_data.py"],
    "graph/find/flow.py": ["tests/graph/test_flow.py", "tests/graph/test_residual_stream.py"],
    "graph/rewrite/nan_guards.py": ["tests/graph/test_nan_guards.py"],
    "graph/int8/int8_support.py": ["tests/test_quantize.py"],
    "graph/find/layers.py": [
        "tests/graph/test_residual_stream.py",
        "tests/graph/test_last_layer.py",
        "tests/graph/test_layers.py",
    ],
    "graph/find/linear.py": ["tests/graph/test_linear.py"],
    "graph/find/graph_index.py": ["tests/graph/test_nan_guards.py", "tests/graph/test_attention.py"],
    "bench/matmul.py": ["tests/test_matmul.py"],
    "graph/model_file.py": ["tests/graph/test_model_file.py"],
    "graph/opsets.py": ["tests/graph/test_attention.py"],
    "graph/picture.py": ["tests/graph/test_describe.py"],
    "graph/rewrite/unfuse.py": ["tests/graph/test_unfuse.py"],
    "graph/rewrite/pooling.py": ["tests/graph/test_pooling.py"],
    "graph/int8/quantize.py": ["tests/test_quantize.py"],
    "graph/int8/gptq.py": ["tests/test_quantize.py"],
    "graph/int8/activation_scales.py": ["tests/graph/test_activation_scales.py", "tests/test_quantize.py"],
    "graph/find/skeleton.py": ["tests/graph/test_skeleton.py"],
    "graph/rewrite/standalone.py": ["tests/graph/test_external_data.py"],
    "graph/find/residual_stream.py": [
        "tests/graph/test_residual_stream.py",
        "tests/graph/test_last_layer.py",
        "tests/graph/test_layers.py",
    ],
    "graph/rewrite/prune.py": ["tests/graph/test_prune.py"],
    "graph/rewrite/validate.py": ["tests/graph/test_validate.py"],
    "graph/int8/fp16.py": ["tests/graph/test_fp16.py"],
    "graph/wire_format.py": ["tests/graph/test_model_file.py"],
    "bulk/output/output_files.py": ["tests/bulk/test_embed_files.py"],
    "bulk/batch.py": ["tests/bulk/test_batch.py"],
    "bulk/commands.py": ["tests/bulk/test_commands.py"],
    "bulk/embed.py": ["tests/bulk/test_output.py", "tests/bulk/test_embed_files.py", "tests/bulk/test_going_on.py"],
    "atomic_files.py": ["tests/test_atomic_files.py"],
    "bulk/ingest.py": ["tests/bulk/test_ingest.py"],
    "bulk/input/input_files.py": [
        "tests/bulk/test_going_on.py",
        "tests/bulk/test_columns.py",
        "tests/bulk/test_embed_files.py",
    ],
    "bulk/job/manifest.py": ["tests/bulk/test_manifest.py"],
    "bulk/input/jsonl.py": ["tests/bulk/test_jsonl.py"],
    "bulk/lance_files.py": ["tests/bulk/test_embed_files.py"],
    "bulk/options.py": ["tests/bulk/test_batch.py"],
    "bulk/job/pool.py": ["tests/bulk/test_pool.py"],
    "bulk/job/progress.py": ["tests/bulk/test_progress.py"],
    "bulk/ray_engine.py": ["tests/bulk/test_ray.py"],
    "bulk/input/readers.py": ["tests/bulk/test_jsonl.py", "tests/bulk/test_columns.py", "tests/bulk/test_embed_files.py"],
    "bulk/input/rows.py": ["tests/bulk/test_rows.py"],
    "bulk/input/sources.py": ["tests/bulk/test_jsonl.py", "tests/bulk/test_columns.py", "tests/bulk/test_embed_files.py"],
    "bulk/tables.py": ["tests/bulk/test_tables.py", "tests/bulk/test_batch.py"],
    "bulk/job/reuse.py": ["tests/bulk/test_reuse.py", "tests/bulk/test_going_on.py"],
    "bulk/stores/base.py": ["tests/bulk/test_ingest.py"],
    "bulk/stores/lancedb.py": ["tests/bulk/test_ingest.py"],
    "bulk/stores/pgvector.py": ["tests/bulk/test_ingest.py"],
    "bulk/stores/qdrant.py": ["tests/bulk/test_ingest.py"],
    "bulk/job/shard.py": ["tests/bulk/test_manifest.py", "tests/bulk/test_pool.py", "tests/bulk/test_embed_files.py"],
    "bulk/job/worker.py": ["tests/bulk/test_pool.py", "tests/bulk/test_embed_files.py"],
    "bulk/output/writers.py": ["tests/bulk/test_writers.py"],
}
SLOW_IMPORTS = ["numpy", "onnx.checker", "onnx.reference", "onnxruntime", "hypothesis", "hypothesis.strategies", "pytest",
                "pyarrow.parquet", "transformers", "tokenizers", "httpx"]  # fmt: skip
INSTEAD = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def sites(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of code with logic: no annotations, decorators, docstrings or error messages."""
    yield node
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list", "type_params"} or isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                yield from sites(child)


def changes(node: ast.AST) -> Iterator[Callable[[ast.AST], object]]:
    """Return the mutants of one node: functions that change a copy of it in place or return another node."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            other = INSTEAD[type(op)]
            yield lambda n, i=i, other=other: n.ops.__setitem__(i, other())
    elif isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in INSTEAD:
        other = INSTEAD[type(node.op)]
        yield lambda n: setattr(n, "op", other())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda n: n.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        for step in (1, -1):
            yield lambda n, step=step: setattr(n, "value", n.value + step)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Return) and not (node.value is None or ast.unparse(node.value) == "None"):
        yield lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.Expr | ast.Raise | ast.AugAssign | ast.Continue | ast.Break | ast.Delete):
        yield lambda n: ast.Pass()
    tests = [node.test] if isinstance(node, ast.If | ast.IfExp | ast.While) else []
    if tests and not isinstance(tests[0], ast.Compare | ast.UnaryOp):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))


def mutants(source: str) -> list[tuple[int, str, Callable[[], str]]]:
    """Return (line, name: "the line => its new form", function for the new source) of every mutant of a file, in order."""
    tree = ast.parse(source)
    made = []
    for owner, place in _units(tree):
        whole = ast.Module([owner.body[place]], [])
        before = ast.unparse(whole)
        for at, node in enumerate(sites(whole)):
            for change in changes(node):
                other = copy.deepcopy(whole)
                there = next(n for i, n in enumerate(sites(other)) if i == at)
                instead = change(there)
                if isinstance(instead, ast.AST):
                    other = _Replace(there, instead).visit(other)
                text = ast.unparse(ast.fix_missing_locations(other))
                if text != before:
                    made.append((node.lineno, _difference(before, text), partial(_replaced, tree, owner, place, other.body[0])))
    return made


def _units(tree: ast.Module) -> Iterator[tuple[ast.Module | ast.ClassDef, int]]:
    """Return the statements of a file and of its classes, as an owner and the position in its body."""
    for place, statement in enumerate(tree.body):
        if isinstance(statement, ast.ClassDef):
            yield from ((statement, i) for i in range(len(statement.body)))
        else:
            yield tree, place


def _replaced(tree: ast.Module, owner: ast.Module | ast.ClassDef, place: int, statement: ast.stmt) -> str:
    """Write a file with one statement replaced."""
    usual, owner.body[place] = owner.body[place], statement
    text = ast.unparse(tree)
    owner.body[place] = usual
    return text


def _difference(before: str, after: str) -> str:
    """Name a mutant by the first different line."""
    old, new = next((a, b) for a, b in zip_longest(before.splitlines(), after.splitlines(), fillvalue="") if a != b)
    return f"{old.strip()} => {new.strip()}"


class _Replace(ast.NodeTransformer):
    """Replaces one node by another."""

    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


def passes(source: Path, tests: list[str], log: Path, seconds: float = SECONDS) -> bool:
    """Run tests on a copy of src/ in a fork; False if one fails or they exceed the time limit."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))  # a loop that a mutant made endless may collect as it goes
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, str(source))
        os.environ["PYTHONPATH"] = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
        code = 1
        try:
            import pytest

            code = pytest.main(["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "pytest_asyncio.plugin", *tests])
        finally:
            os._exit(code)  # on every error: an exception that left this function would clean up the copy of all others
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return status == 0
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what its tests left running


def survivors(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """Return the mutants of one file that no test noticed."""
    path = folder / "src" / "penult" / name
    whole = path.read_text()
    tests = [test for test in FILES[name] if (ROOT / test).exists()]
    everyone = list(enumerate(mutants(whole)))
    chosen = [m for m in everyone if not args.only or m[0] in args.only]
    if not args.only and 0 < args.sample < len(chosen):
        chosen = sorted(random.Random(args.seed).sample(chosen, args.sample))
    Path(importlib.util.cache_from_source(str(path))).unlink(missing_ok=True)
    began = time.monotonic()
    if not passes(folder / "src", tests, folder / "log"):
        raise SystemExit(f"The tests of {name} fail without a mutant:\n{(folder / 'log').read_text()}")
    usual = time.monotonic() - began
    print(f"{name}: {len(chosen)} of {len(everyone)} mutants; {usual:.1f} s without one", flush=True)
    survived = []
    for number, (line, what, source) in chosen:
        path.write_text(source())
        if passes(folder / "src", tests, folder / "log", 20 + 8 * usual):
            survived.append(f"  {name}:{line} #{number}  {what}")
            print(survived[-1], flush=True)
    path.write_text(whole)
    summary = f"{name}: {len(chosen) - len(survived)} of {len(chosen)} mutants noticed"
    print(f"{summary}, {time.monotonic() - began:.0f} s", flush=True)
    return survived


def main() -> None:
    """Run the mutants of the named files, or of all, and print a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help=f"of: {', '.join(FILES)} (all)")
    parser.add_argument("--sample", type=int, default=60, help="the most mutants of a file, chosen by the seed (60); 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=lambda text: {int(number) for number in text.split(",")}, help="mutants by their number")
    args = parser.parse_args()
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    for module in SLOW_IMPORTS:
        importlib.import_module(module)
    from hypothesis import settings

    settings.register_profile("mutants", database=None, derandomize=True)
    settings.load_profile("mutants")
    with tempfile.TemporaryDirectory() as folder:
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / "penult" / part)
        shutil.copy(ROOT / "pyproject.toml", Path(folder) / "penult")
        os.chdir(Path(folder) / "penult")
        compileall.compile_dir("src", quiet=1)
        survived = [mutant for name in args.files or FILES for mutant in survivors(name, args, Path.cwd())]
    print(f"{len(survived)} mutants survive")


if __name__ == "__main__":
    main()
