"""`penult bench` with other libraries beside it: the same texts, one run, in turn.

    python tests/bench/peers.py MODEL --peer-python PYTHON [--peers openvino,fastembed] [--rounds 5] [--json FILE] [--chart FILE]

PYTHON is the interpreter of an environment with the peers; `make bench-peers` makes one and runs this. DeepSparse needs an
environment of its own, with Python 3.11 at most.
"""

import argparse
from pathlib import Path

from penult.bench import measure, report

HERE = Path(__file__).parent
ALL = ("openvino", "openvino-bf16", "sentence-transformers", "fastembed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--peers", default=",".join(ALL), help="names of SYSTEMS in peer_worker.py, with commas")
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--pooling")
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    result = measure.measure(
        options.model,
        measure.read_texts(options.texts)[: options.limit],
        against=["onnxruntime"],
        peers=measure.Peers(options.peer_python, HERE / "peer_worker.py", tuple(options.peers.split(","))),
        pooling=options.pooling,
        max_length=options.max_length,
        threads=options.threads,
        rounds=options.rounds,
    )
    if options.json is not None:
        options.json.write_text(report.as_json(result), encoding="utf-8")
    if options.chart is not None:
        options.chart.write_text(report.chart(result), encoding="utf-8")
    print(report.table(result))


if __name__ == "__main__":
    main()
