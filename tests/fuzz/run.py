"""Run the fuzzers in this folder: `make fuzz`, or `python tests/fuzz/run.py --seconds 150 graph answers`.

Each harness is a module with `SEEDS`, inputs to start from, and `one(data)`, which raises where penult does not hold what it
promises. What was found is kept in .fuzz/ and printed; make it a test beside those of the code it broke. `--replay FILE`
calls a harness once, without atheris, to look at the error. Knows atheris; the harnesses do not.
"""

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HARNESSES = ("plan", "answers", "config", "tokenizer", "graph", "bodies")
FOUND = HERE.parents[1] / ".fuzz"
SLOWEST_SECONDS, MOST_MEGABYTES = 20, 3000


def fuzz(name: str, seconds: int) -> None:
    """Run one harness in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["penult"]):
        harness = importlib.import_module(name)
    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(harness.SEEDS):
            (Path(corpus) / str(i)).write_bytes(seed)
        limits = [f"-timeout={SLOWEST_SECONDS}", f"-rss_limit_mb={MOST_MEGABYTES}", f"-max_total_time={seconds}"]
        atheris.Setup(
            [sys.argv[0], *limits, "-max_len=20000", f"-artifact_prefix={FOUND}/{name}-", "-print_final_stats=1", corpus],
            harness.one,
        )
        atheris.Fuzz()


def main() -> None:
    """Run each harness in a separate process; exit with 1 if one found an error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("harnesses", nargs="*", metavar="HARNESS", help=f"of: {', '.join(HARNESSES)} (all)")
    parser.add_argument("--seconds", type=int, default=150, help="of each harness (150)")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=Path, metavar="FILE", help="an input that was found")
    args = parser.parse_args()
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    if args.replay:
        importlib.import_module(args.harnesses[0]).one(args.replay.read_bytes())
        return
    if args.here:
        fuzz(args.harnesses[0], args.seconds)
    FOUND.mkdir(exist_ok=True)
    failed = []
    for name in args.harnesses or HARNESSES:
        command = [sys.executable, __file__, "--here", name, "--seconds", str(args.seconds)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        runs = [line for line in done.stderr.splitlines() if "number_of_executed_units" in line]
        print(f"{name}: {runs[0].split()[-1] if runs else '?'} inputs", "held" if not done.returncode else "", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stdout[-3000:], done.stderr[-3000:], flush=True)
    sys.exit(f"found something: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
