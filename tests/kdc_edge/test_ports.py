import numpy as np
import pytest

from kdc_edge.errors import UsageError
from kdc_edge.ports import COMPONENTS, Port, bind, check, free_axes, resolve, zeros
from tests.kdc_edge.builders import SIZES

UNET = COMPONENTS["unet"].bind(SIZES)


def test_binding_leaves_only_the_batch_free():
    assert free_axes(UNET.inputs) == {"sample": {0: "batch"}, "timestep": {}, "encoder_hidden_states": {0: "batch"}}
    assert bind(Port("x", "float32", ("a", 2, "b")), {"b": 3}).shape == ("a", 2, 3)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_feed_of_zeros_fits(name):
    ports = COMPONENTS[name].bind(SIZES)
    feed = zeros(ports.inputs, {"batch": 3})
    assert check(ports.inputs, feed, name) == {"batch": 3}


def test_resolve_wants_every_size():
    with pytest.raises(UsageError, match=r"sample: no size for axis channels"):
        resolve(COMPONENTS["unet"].inputs[0], {"batch": 1, "height": 8, "width": 8})


def feed(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return zeros(UNET.inputs, {"batch": 2}) | changes


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (feed(sampel=np.zeros(1)), "unet has no input 'sampel'; .*did you mean 'sample'"),
        ({"sample": feed()["sample"]}, "unet lacks its input 'timestep'"),
        (feed(sample=np.zeros((2, 4, 8, 8))), "unet.sample is float64, must be float32"),
        (
            feed(sample=np.zeros((2, 5, 8, 8), np.float32)),
            r"unet.sample has shape \(2, 5, 8, 8\), must have \(batch, 4",
        ),
        (feed(sample=np.zeros((4, 8, 8), np.float32)), r"has shape \(4, 8, 8\)"),
        (feed(timestep=np.zeros(1, np.float32)), r"unet.timestep has shape \(1,\), must have \(\)"),
        (feed(encoder_hidden_states=np.zeros((1, 77, 8), np.float32)), r"must have \(2, 77, 8\)"),
    ],
)
def test_what_does_not_fit_is_named(arrays, message):
    with pytest.raises(UsageError, match=message):
        check(UNET.inputs, arrays, "unet")
