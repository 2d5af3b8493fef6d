"""Quantization of an input to 8 bits: the grid of QuantizeLinear, and channels with their center removed."""

import numpy as np
import pytest
from graph_kit import model_of, session
from onnx import TensorProto, helper

from penult.graph.int8.activation_scales import Choice, Seen, apply

RNG = np.random.default_rng(0)


def treated(x, weight, choice):
    """Quantize an input for which these rows were observed, in two equal halves."""
    low, high = (np.stack([edge, edge]) for edge in (x.min(axis=0), x.max(axis=0)))
    return apply(Seen(low, high, x), [weight], [None], choice, limit=127)


def steps(x, treatment):
    """Let ONNX Runtime round rows as the graph does."""
    model = model_of([helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])], {"x": x.shape}, ["q"],
                     {"scale": np.float32(treatment.scale), "zero": np.uint8(treatment.zero)})  # fmt: skip
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8
    form = x if treatment.factor is None else x * treatment.factor
    form = form if treatment.offset is None else form + treatment.offset
    return session(model).run(None, {"x": form.astype(np.float32)})[0].astype(np.float32)


@pytest.mark.parametrize("choice", [Choice(None, 0), Choice(0.5, 0), Choice(0.65, 2), Choice(0.5, 0, center=True)])
@pytest.mark.parametrize("tail", [1, 6])
def test_the_bias_corrects_the_mean_rounding_error(choice, tail):
    """The layer's mean output over the observed rows equals that of float32, also if rare values are clipped at both ends."""
    x = (RNG.standard_normal((512, 32)) * (1 + (RNG.random((512, 32)) < 1e-3) * (tail - 1))).astype(np.float32)
    weight = RNG.standard_normal((32, 16)).astype(np.float32)
    treatment = treated(x, weight, choice)
    [layer] = treatment.layers
    product = (
        (steps(x, treatment) - treatment.zero) * np.float32(treatment.scale) @ layer.weight.astype(np.float32) * layer.scale
    )
    output = product + layer.bias + x[:, treatment.split] @ layer.rest
    np.testing.assert_allclose(output.mean(axis=0), (x @ weight).mean(axis=0), atol=2e-4)
    assert ((output - x @ weight) ** 2).mean() < 0.02 * (x @ weight).var()


def test_a_centered_channel_is_symmetric():
    """A centered channel extends equally far to both sides of 0."""
    x = RNG.uniform(0, 1, (400, 16)).astype(np.float32) + np.arange(16, dtype=np.float32)
    treatment = treated(x, np.eye(16, dtype=np.float32), Choice(0.5, 0, center=True))
    form = x * treatment.factor + treatment.offset
    np.testing.assert_allclose(form.min(axis=0), -form.max(axis=0), rtol=1e-3)
    assert treatment.zero in {127, 128}
