"""The public interface: what can be imported, the cost of an import, and the import rules between modules."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import penult

ROOT = Path(__file__).parents[1]
HEAVY = {
    "onnx",
    "onnxruntime",
    "transformers",
    "tokenizers",
    "httpx",
    "httpx2",
    "fastapi",
    "torch",
    "pyarrow",
    "ray",
    "huggingface_hub",
}
# Each third-party package, and the only places that may import it.
FENCE = {
    "onnx": {"graph/", "core/assemble.py", "core/prepare.py", "core/export_worker.py", "bench/matmul.py"},
    "safetensors": {"core/config/module_weights.py"},
    "onnxruntime": {"core/engine.py", "core/export_worker.py", "bench/worker.py"},
    "tokenizers": {"core/tokenizer.py", "bench/worker.py"},
    "transformers": {"core/tokenizer.py", "core/export_worker.py"},
    "huggingface_hub": {"core/hub_client.py"},
    "httpx": {"remote.py"},
    "platformdirs": {"core/cache.py"},
    "tqdm": {"progress_bar.py", "bulk/job/progress.py"},
    "pyarrow": {"bulk/"},
    "lance": {"bulk/lance_files.py"},
    "ray": {"bulk/ray_engine.py"},
    "qdrant_client": {"bulk/stores/qdrant.py"},
    "lancedb": {"bulk/stores/lancedb.py"},
    "psycopg": {"bulk/stores/pgvector.py"},
    "pypdf": {"bulk/input/documents.py"},
    "lxml": {"bulk/input/documents.py"},
    "pydantic": {"adapters.py", "server/", "deepsparse/"},
    "fastapi": {"server/", "deepsparse/"},
    "uvicorn": {"server/"},
    "prometheus_client": {"server/"},
    "yaml": {"server/config_file.py"},
    "typer": {"cli.py", "cli_options.py", "bulk/commands.py", "server/command.py", "deepsparse/command.py"},
    "torch": {"core/export_worker.py", "core/config/module_weights.py"},
}
LEAVES = ("source", "recipe", "engine", "tokenizer", "tokenized", "batching", "model_inputs", "shutdown_guard", "threads",
          "text_cuts", "truncation", "word_places")  # fmt: skip


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_importing_penult_is_light():
    """`import penult` imports no runtime, tokenizer, HTTP client or web framework."""
    code = "import sys, penult; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "penult" in loaded
    assert not HEAVY & set(loaded)


def test_a_warm_start_imports_no_onnx(tiny):
    """A first vector with a warm cache needs neither onnx nor transformers."""
    code = f"import sys, penult; penult.Embedder.load({str(tiny)!r}).embed(['a']); print(' '.join(sys.modules))"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(2)]
    assert not {"onnx", "transformers", "httpx", "fastapi", "torch"} & set(runs[1].stdout.split())


def test_importing_a_batch_embedder_is_light():
    """`from penult.bulk import BatchEmbedder` imports no runtime, no Arrow and no Ray: they are imported in the worker."""
    code = "import sys; from penult.bulk import BatchEmbedder; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "penult.bulk.batch" in loaded
    assert not HEAVY & set(loaded)


def test_every_exported_name_exists():
    """Every name in __all__ can be imported; any other name is an AttributeError."""
    for name in penult.__all__:
        assert getattr(penult, name) is not None
    assert set(penult.__all__) == set(dir(penult))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        penult.Nothing  # noqa: B018


def test_each_third_party_package_has_its_own_modules():
    """The import fence holds, independently of the linter's configuration."""
    source = ROOT / "src" / "penult"
    for path in source.rglob("*.py"):
        place = path.relative_to(source).as_posix()
        for package in {name.partition(".")[0] for name in imports_of(path)} & set(FENCE):
            assert any(place.startswith(home) for home in FENCE[package]), f"{place} imports {package}"


def test_leaves_import_no_leaf():
    """Leaves of core/ share `types`, the readers of config/, `wire_format`, `model_inputs` and `shutdown_guard`, the tokenizer its three parts, and import no other leaf."""
    core = ROOT / "src" / "penult" / "core"
    shared = tuple(f"penult.{name}" for name in ("types", "fork", "extras", "graph.wire_format", *(f"core.{name}" for name in (
        "config", "model_inputs", "shutdown_guard", "hub", "threads", "tokenized", "mapped_files", "control_group",
        "text_cuts", "truncation", "word_places",
    ))))  # fmt: skip
    for leaf in LEAVES:
        own = {name for name in imports_of(core / f"{leaf}.py") if name.startswith("penult.")} - {"penult.core"}
        own = {name for name in own if not name.startswith(shared)}
        assert own == set(), leaf


def _hidden(path: Path) -> bool:
    """Return whether a file is in a folder outside the sources, such as a virtual environment."""
    return any(part.startswith(".") for part in path.relative_to(ROOT).parts)


def test_the_distributions_have_one_version():
    """The three distributions have the same version, and the integrations require it."""
    texts = [path.read_text() for path in sorted(ROOT.rglob("_version.py")) if not _hidden(path)]
    versions = {re.search(r'__version__ = "(.+)"', text)[1] for text in texts}
    assert len(texts) == 3
    assert versions == {penult.__version__}
    major, minor, _ = penult.__version__.split(".")
    for project in (ROOT / "integrations").glob("*/pyproject.toml"):
        assert f'"penult>={major}.{minor},<{major}.{int(minor) + 1}"' in project.read_text()


# Folders and files of src/penult by rank: a module imports no module of a higher rank. Modules that are not listed rank above core.
RANKS = {
    "_version": 0,
    "types": 0,
    "data": 0,
    "fork": 0,
    "atomic_files": 0,
    "extras": 0,
    "progress_bar": 0,
    "graph": 1,
    "core": 2,
}


def _under(module: str, place: str) -> bool:
    return module == place or module.startswith(f"{place}.")


def _module_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _running(node: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Return the imports that run, including those inside functions; those under `if TYPE_CHECKING` do not run."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [node]
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        children = list(node.orelse)
    return [found for child in children for found in _running(child)]


def _import_graph() -> dict[str, set[str]]:
    """Map each module of penult to those of penult that it imports; a name of a package is its submodule if it has one."""
    trees = {_module_of(path): ast.parse(path.read_text()) for path in (ROOT / "src" / "penult").rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, tree in trees.items():
        names = set()
        for node in _running(tree):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            else:
                assert node.level == 0, f"{module} has a relative import"
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name if name in trees else node.module for name in full}
        graph[module] = names & set(trees) - {module}
    return graph


def test_imports_follow_the_ranks():
    """No module imports one of a higher rank, the server does not import DeepSparse, and there are no import cycles."""
    graph = _import_graph()
    assert {"penult.core.prepare", "penult.core.source"} <= graph["penult.core.loading"]
    assert "penult.core.assemble" in graph["penult.core.prepare"], "an import inside a function"
    above = max(RANKS.values()) + 1
    wrong = set()
    for module, imported in graph.items():
        rank = {name: RANKS.get(name.split(".")[1], above) for name in imported | {module} if name != "penult"}
        wrong |= {(module, name) for name in imported if rank.get(name, above) > rank.get(module, above)}
        wrong |= {(module, name) for name in imported if _under(module, "penult.server") and _under(name, "penult.deepsparse")}
    assert wrong == set()
    TopologicalSorter(graph).prepare()  # a CycleError names the cycle
