"""`describe` against the published size of MapLocNet, and as a command."""

import json

import numpy as np
import pytest

from configs import maplocnet, saliency_i2ploc
from placerec_jax.describe import as_json, as_table, describe

# Parameters (millions) and MACs (10^9) that the layers of the two-stage network come to when counted by hand.
COMPONENTS = {
    "image_trunk": (3.60, 1.96),
    "image_neck": (1.62, 1.71),
    "bev_encoder": (2.97, 5.00),
    "bev_decoder": (1.01, 11.05),
    "map_trunk": (7.64, 18.23),
    "map_decoder": (1.11, 11.09),
    "localize_coarse": (2.62, 3.44),
    "localize_fine": (2.21, 3.03),
}


@pytest.fixture(scope="module")
def published_size():
    return describe(maplocnet.get_config("nuscenes"))


def test_totals_are_those_of_the_paper(published_size):
    # Table I: 22.9 M parameters and 56.15 "GFLOPs", which are multiply-accumulates.
    total = published_size.total()
    assert total.parameters == pytest.approx(22.77e6, rel=0.005)
    assert total.cost.macs == pytest.approx(55.5e9, rel=0.02)
    assert total.parameters == pytest.approx(22.9e6, rel=0.02)
    assert total.cost.macs == pytest.approx(56.15e9, rel=0.02)
    assert published_size.unknown == ()


def test_one_camera_is_that_of_the_paper():
    total = describe(maplocnet.get_config("nuscenes_front")).total()
    assert total.cost.macs == pytest.approx(52.15e9, rel=0.02)


@pytest.mark.parametrize("name", COMPONENTS)
def test_component(published_size, name):
    found = {component.name: component for component in published_size.components}[name]
    parameters, macs = COMPONENTS[name]
    assert found.parameters / 1e6 == pytest.approx(parameters, abs=0.006)
    assert found.cost.macs / 1e9 == pytest.approx(macs, abs=0.006)


def test_parameters_are_all_in_named_components(published_size):
    names = {component.name for component in published_size.components if component.parameters}
    assert names == set(COMPONENTS)


def test_batch_multiplies_the_work_not_the_parameters():
    config = maplocnet.get_config("tiny")
    one, three = describe(config, batch=1).total(), describe(config, batch=3).total()
    assert three.parameters == one.parameters
    assert three.cost.macs == 3 * one.cost.macs
    assert three.cost.activation_bytes == 3 * one.cost.activation_bytes
    with pytest.raises(ValueError, match="expected at least one example"):
        describe(config, batch=0)


def test_table_and_json_say_the_same(published_size):
    table, values = as_table(published_size), as_json(published_size)
    assert json.loads(json.dumps(values)) == values
    for row in values["components"]:
        line = next(line for line in table.splitlines() if line.startswith(f"{row['name']} "))
        assert f"{row['parameters']:,}" in line
        assert f"{row['macs'] / 1e9:.3f}" in line
    assert values["total"]["macs"] == sum(row["macs"] for row in values["components"])
    trunk = next(row for row in values["components"] if row["name"] == "image_trunk")
    assert trunk["output"]["reduction_5"] == [6, 4, 11, 320]
    assert trunk["parameter_bytes"] == 4 * trunk["parameters"]
    assert "reduction_5 6x4x11x320" in table


def test_named_outputs_keep_their_names_and_what_is_none_is_left_out():
    components = {c.name: c for c in describe(saliency_i2ploc.get_config("tiny")).components}
    found = {name: set(components[name].output) for name in ("image_encoder", "point_transformer")}
    assert "mask" not in found["image_encoder"]  # no patch of an image is padding
    assert found["point_transformer"] == found["image_encoder"] | {"mask"}


def test_command_reads_no_data(run_command, tmp_path):
    arguments = ("-m", "placerec_jax.describe", "--config=configs/maplocnet.py:tiny")
    found = json.loads(run_command(*arguments, f"--config.data.root={tmp_path / 'absent'}", "--json").stdout)
    expected = as_json(describe(maplocnet.get_config("tiny")))
    assert found == expected
    listing = run_command(*arguments, "--parameters").stdout
    assert "localize_fine/head/offset/kernel" in listing
    assert np.char.count(listing, "image_trunk/stem/conv/kernel") == 1
