"""Use the installed wheels, and nothing of the checkout but tests/models.py. release_check.py runs it in each environment.

python release_smoke.py use TESTS VENV     prints a digest of the vectors
python release_smoke.py extra NAME
"""

import hashlib
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

# What each extra makes importable.
MODULES = {
    "parquet": ["pyarrow", "penult.bulk.commands"],
    "lance": ["penult.bulk.lance_files"],
    "ray": ["penult.bulk.ray_engine"],
    "qdrant": ["penult.bulk.stores.qdrant"],
    "lancedb": ["penult.bulk.stores.lancedb"],
    "pgvector": ["penult.bulk.stores.pgvector"],
    "documents": ["pypdf", "lxml", "penult.bulk.input.documents"],
    "sentencepiece": ["sentencepiece"],
}
TEXTS = ["the cat sat on the mat", "a dog eats fish", "moon"]


def use(tests: Path, venv: Path) -> None:
    """Embed with the library, the adapters and the command; everything must come from the environment."""
    sys.path.append(str(tests))
    from models import tiny_model

    import langchain_penult
    import llama_index.embeddings.penult as llama_penult
    import penult
    import penult.deepsparse.command
    import penult.server.app

    for module in (penult, langchain_penult, llama_penult):
        assert Path(module.__file__).is_relative_to(venv), f"{module.__name__} is not the installed one: {module.__file__}"
    with tempfile.TemporaryDirectory() as name:
        model = tiny_model(Path(name))
        embedder = penult.Embedder.load(str(model))
        vectors = embedder.embed(TEXTS)
        assert vectors.shape == (len(TEXTS), embedder.dimension), vectors.shape
        documents = langchain_penult.PenultEmbeddings(model=str(model)).embed_documents(TEXTS)
        assert abs(vectors - documents).max() < 1e-6
        nodes = llama_penult.PenultEmbedding(model_name=str(model)).get_text_embedding_batch(TEXTS)
        assert abs(vectors - nodes).max() < 1e-6
        for command in (["--help"], ["--version"], ["inspect", str(model)], ["serve", "--help"], ["embed", "--help"]):
            subprocess.run([venv / "bin" / "penult", *command], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([venv / "bin" / "penult.server", "--help"], check=True, stdout=subprocess.DEVNULL)
    print(hashlib.sha256(vectors.tobytes()).hexdigest()[:12])


def main() -> None:
    """Run one of the two checks."""
    if sys.argv[1] == "use":
        use(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        for module in MODULES[sys.argv[2]]:
            importlib.import_module(module)


if __name__ == "__main__":
    main()
