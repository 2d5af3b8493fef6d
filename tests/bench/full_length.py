"""int8 without any padding: texts of exactly 128 tokens, compared with DeepSparse's dense int8 and ONNX Runtime's own.

    python tests/bench/full_length.py MODEL --texts FILE --deepsparse PYTHON [--texts-count 64] [--rounds 7]

PYTHON is an interpreter that has deepsparse 1.8.0 (Python 3.8 to 3.11). Each system has its own process and one thread, and
they run alternately. penult tokenizes, pools and normalizes; the other two are given ids in batches of 32 and stop at the hidden states.
DeepSparse is given the layout that it has kernels for: static scales, QuantizeLinear, MatMulInteger, Add, Cast, Mul.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LENGTH, ROWS = 128, 32


def write_dense_int8(graph, target, ids):
    """Write the graph with its linear layers as DeepSparse's own exporter wrote them, ranges taken from a batch of ids."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    from penult.graph.find.graph_index import GraphIndex
    from penult.graph.find.linear import find_linears
    from penult.graph.rewrite.prune import drop_unread

    model = onnx.load(graph)
    linears = find_linears(GraphIndex(model), model.graph.output[0].name)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = sorted({linear.input for linear in linears})
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    seen = dict(zip(inputs, session.run(inputs, feed(ids, [node.name for node in session.get_inputs()])), strict=True))
    nodes, made = list(model.graph.node), {}
    del model.graph.node[:]

    def constant(name, array):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(kind, reads, output, **said):
        model.graph.node.append(helper.make_node(kind, reads, [output], name=output, **said))
        return output

    first = {linear.nodes[0]: linear for linear in linears}
    replaced = {node for linear in linears for node in linear.nodes}
    for i, node in enumerate(nodes):
        if i not in replaced:
            model.graph.node.append(node)
        if i not in first:
            continue
        x, weight = first[i].input, first[i].weight
        if x not in made:
            low, high = min(0.0, float(seen[x].min())), max(0.0, float(seen[x].max()))
            scale = np.float32((high - low) / 255)
            grid = [constant(f"{x}/scale", scale), constant(f"{x}/zero", np.uint8(round(-low / scale)))]
            made[x] = scale, grid[1], add("QuantizeLinear", [x, *grid], f"{x}/int8")
        scale, zero, steps = made[x]
        step = np.float32(np.abs(weight).max() / 127)
        bias = np.zeros(weight.shape[1]) if first[i].bias is None else first[i].bias
        whole = [constant(f"{i}/w", np.rint(weight / step).astype(np.int8)), zero, constant(f"{i}/wz", np.int8(0))]
        product = add("MatMulInteger", [steps, *whole], f"{i}/product")
        total = add("Add", [product, constant(f"{i}/b", np.rint(bias / (scale * step)).astype(np.int32))], f"{i}/sum")
        add(
            "Mul", [add("Cast", [total], f"{i}/float", to=TensorProto.FLOAT), constant(f"{i}/s", scale * step)], first[i].output
        )
    for tensor in model.graph.input:
        for axis, size in zip(tensor.type.tensor_type.shape.dim, (ROWS, LENGTH), strict=True):
            axis.dim_value = size
    del model.graph.value_info[:]
    drop_unread(model.graph)
    onnx.save(model, target)


def feed(ids, names):
    """Return the inputs of a BERT-like graph for rows without padding."""
    kinds = {"attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return {name: kinds.get(name, ids) for name in names}


def work(system, graph, data):
    """Open one system, then run all batches for every line of input, and answer with the CPU seconds."""
    held = np.load(data)
    if system == "penult":
        from penult import Embedder

        texts = list(held["texts"])
        embedder = Embedder.load(graph, precision="int8", threads=1, max_length=LENGTH, truncate="right")
        run = lambda: embedder.embed(texts)  # noqa: E731
    else:
        batches = np.split(held["ids"], len(held["ids"]) // ROWS)
        if system == "deepsparse":
            from deepsparse import compile_model

            engine = compile_model(graph, batch_size=ROWS, num_cores=1)
            feeds = [list(feed(ids, engine.input_names).values()) for ids in batches]
            run = lambda: [engine.run(one) for one in feeds]  # noqa: E731
        else:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
            feeds = [feed(ids, [node.name for node in session.get_inputs()]) for ids in batches]
            run = lambda: [session.run(None, one) for one in feeds]  # noqa: E731
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.process_time()
        run()
        print(time.process_time() - start, flush=True)


class Worker:
    """A system in a separate process."""

    def __init__(self, python, *given):
        command = [python, __file__, "--work", *map(str, given)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while self._line() != "ready":  # DeepSparse introduces itself first
            pass

    def seconds(self):
        print(file=self._process.stdin, flush=True)
        return float(self._line())

    def _line(self):
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a system died")
        return line.strip()


def main():
    if sys.argv[1] == "--work":
        return work(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", required=True, type=Path, help="JSON lines with `text`")
    parser.add_argument("--texts-count", type=int, default=64)
    parser.add_argument("--deepsparse", required=True, help="an interpreter that has deepsparse")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    from onnxruntime.quantization import quantize_dynamic
    from tokenizers import Tokenizer

    from penult.bench.measure import read_texts
    from penult.core import source

    found = source.resolve(given.model)
    tokenizer = Tokenizer.from_file(str(found.folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTH)
    encoded = ((text, tokenizer.encode(text).ids) for text in read_texts(given.texts))
    long = [(text, ids) for text, ids in encoded if len(ids) == LENGTH][: given.texts_count // ROWS * ROWS]
    ids = np.array([row for _, row in long])
    with tempfile.TemporaryDirectory() as folder:
        data, dense, dynamic = (Path(folder) / name for name in ("data.npz", "dense.onnx", "dynamic.onnx"))
        np.savez(data, ids=ids, texts=np.array([text for text, _ in long]))
        write_dense_int8(found.model, dense, ids[:ROWS])
        quantize_dynamic(found.model, dynamic, per_channel=True)
        systems = {
            "penult int8": Worker(sys.executable, "penult", given.model, data),
            "deepsparse dense int8": Worker(given.deepsparse, "deepsparse", dense, data),
            "onnxruntime dynamic int8": Worker(sys.executable, "onnxruntime", dynamic, data),
        }
        taken = {name: [] for name in systems}
        for _ in range(given.rounds):
            for name, worker in systems.items():
                taken[name].append(worker.seconds())
    print(f"{len(ids)} texts of {LENGTH} tokens, one thread, {given.rounds} rounds in turn")
    for name, seconds in taken.items():
        ratio = statistics.median(other / own for other, own in zip(seconds, taken["penult int8"], strict=True))
        print(f"{name:25} {ids.size / statistics.median(seconds):7,.0f} tokens a CPU second, penult int8 is {ratio:.2f} x")
    return None


if __name__ == "__main__":
    main()
