"""Compiling for TPUs that are not there: what fits, what does not, and what is asked wrongly."""

import json

import jax
import pytest

from placerec_jax import aot, evaluation, methods
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.training import tpu_slices
from tests.toy import run as toy_run
from tests.toy.fixtures import Setup


@pytest.fixture(scope="module")
def four_chips():
    """Of a v5e; once a process, as the compiler wants it."""
    tpu_slices.compile_without_tpu()
    try:
        return tpu_slices.tpu_slice("v5e:2x2")
    except UserError as error:
        pytest.skip(f"libtpu is absent: make env-aot ({error})")


@pytest.fixture
def setup(monkeypatch):
    monkeypatch.setattr(methods, "load", lambda name: Setup.method)
    monkeypatch.setattr(evaluation, "__path__", [*evaluation.__path__, toy_run.PLUGINS])
    setup = Setup()
    setup.config.mesh.data, setup.config.mesh.fsdp = 2, 2
    return setup


def test_steps_that_fit(setup, four_chips):
    programs = aot.compile_steps(setup.config, four_chips)
    text = aot.as_text(setup.config, four_chips, programs)
    assert [program.name for program in programs] == ["train step", "inference step"]
    assert "4 chip(s) of 16 GiB" in text.splitlines()[0]
    assert text.splitlines()[2].startswith("train step, 8 examples: FITS, peak 0.00 GiB, 0% of HBM")
    train, inference = programs
    # Two moments and the large kernel itself, split over two; all else is small.
    assert train.arguments > 3 * 512 * 64 * 4 / 2 > inference.arguments > 512 * 64 * 4 / 2
    assert train.arguments < train.peak < 2**24
    # Per chip: two examples, and a multiplication is two operations; three times as many with gradients,
    # and the update of 33,000 parameters.
    products = 2 * 2 * (8 * 8 * 8 * 27 + 512 * 64 + 64 * 2)
    assert products < inference.flops < 1.2 * products
    assert 2.5 * products < train.flops < 5 * products
    json.dumps(aot.as_json(setup.config, four_chips, programs))


def test_a_step_that_does_not_fit(setup, four_chips):
    setup.config.train.batch_size = 2**25  # activations of 2 KiB an example, of which a chip has a quarter
    (program,) = aot.compile_steps(setup.config, four_chips, ("train",))
    assert not program.fits
    assert program.peak > program.usable > 15 * tpu_slices.GIB
    assert "DOES NOT FIT, needs" in aot.as_text(setup.config, four_chips, [program])


def test_a_batch_that_the_chips_do_not_divide(setup, four_chips):
    setup.config.eval.batch_size = 6
    with pytest.raises(ConfigError, match="batch of 6 cannot be divided among 4 chips"):
        aot.compile_steps(setup.config, four_chips, ("inference",))


@pytest.mark.parametrize(
    "topology", ["v5e-16", "v5e", "v5e:4", "v5e:2x2x2", "v4:2x2", "v9:2x2", "v5e:0x2", ""]
)
def test_slices_that_are_none(topology):
    with pytest.raises(ConfigError, match=r"--topology=.*v4:2x2x2, v5e:2x2, v5p:2x2x2, v6e:2x2"):
        tpu_slices.tpu_slice(topology)


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch):
    def absent(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(tpu_slices.topologies, "get_topology_desc", absent)
    with pytest.raises(UserError, match="make env-aot"):
        tpu_slices.tpu_slice("v5e:1x1")


def test_other_failures_of_the_compiler_are_not_hidden():
    class Failing:
        def compile(self):
            raise jax.errors.JaxRuntimeError("INTERNAL: mosaic failed")

    with pytest.raises(RuntimeError, match="mosaic failed"):
        aot._compiled("train step", Failing(), 8, 1, 0.0)
