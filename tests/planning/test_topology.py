"""Names of devices to what they can do, and what is said of names that are none."""

import importlib.util

import pytest

from t5x_lite.devices import KINDS
from t5x_lite.errors import UserError
from t5x_lite.planning import topology
from t5x_lite.planning.topology import parse, slice_shape

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "'v5p' is no topology; write one like v5p:4x4x4"),
        ("v5q:4x4", "no device 'v5q'; nearest: 'v5p'"),
        ("v5p:4x4", r"a slice of v5p is \? x \? x \? chips, like v5p:2x2x4"),
        ("v5e:2x2x2", r"a slice of v5e is \? x \? chips, like v5e:2x4"),
        ("h100:2x4", "h100 takes a number of devices, like h100:8"),
        ("2*cpu:8", "cpu takes a number of devices, like cpu:8"),
        ("cpu:0", "every number must be at least 1"),
        ("", "is no topology"),
    ],
)
def test_what_is_no_topology(name, message):
    with pytest.raises(UserError, match=message):
        parse(name)


def test_a_missing_compiler_is_said_before_anything_else(monkeypatch):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, which is not installed: pip install 't5x_lite\[tpu\]'"):
        parse("v5e:4x4")


@needs_libtpu
def test_sizes_and_slices():
    assert parse("v5p:4x4x4").size == 64
    assert parse("2*v5e:16x16").size == 512
    assert parse("h100:8").size == parse("cpu:8").size == 8
    assert not parse("h100:8").compiles


@needs_libtpu
def test_the_compiler_gives_the_devices_of_a_slice():
    devices = parse("v5e:2x4").devices()
    assert len(devices) == 8
    assert len(parse("2*v5e:2x4").devices()) == 16
    assert parse("2*v5e:2x4").name == "2*v5e:2x4"
    assert {device.platform for device in devices} == {"tpu"}


@needs_libtpu
def test_a_slice_that_no_one_sells_is_one_line():
    with pytest.raises(UserError, match="v5e:3x5"):
        parse("v5e:3x5").devices()


@needs_libtpu
def test_rates_follow_the_torus():
    """Of v5p 4x4x4 every dimension is a ring: one of them, both ways, then two, then all three."""
    link = KINDS["v5p"].link
    pod = parse("v5p:4x4x4")
    assert [pod.rate(range(devices)) / link for devices in (4, 16, 64)] == [2, 4, 6]
    assert parse("v5e:4x4").rate(range(4)) == KINDS["v5e"].link  # no ring: one way only
    assert parse("v5e:16x16").rate(range(256)) == 4 * KINDS["v5e"].link


@needs_libtpu
def test_slices_are_joined_by_the_network_alone():
    two, v5e = parse("2*v5e:16x16"), KINDS["v5e"]
    assert two.rate(range(512)) == two.rate((0, 256)) == v5e.network
    assert two.rate(range(256, 512)) == 4 * v5e.link


def test_rates_of_gpus():
    h100 = KINDS["h100"]
    assert parse("h100:8").rate(range(8)) == parse("h100:64").rate((8, 15)) == h100.link
    assert parse("h100:64").rate(range(64)) == parse("h100:64").rate((0, 8, 16)) == h100.network


@pytest.mark.parametrize(("kind", "chips", "shape"), [("v5p", 64, "4x4x4"), ("v5p", 8, "2x2x2"), ("v5e", 32, "4x8")])
def test_slices_are_as_cubic_as_it_goes(kind, chips, shape):
    assert slice_shape(KINDS[kind], chips) == shape
