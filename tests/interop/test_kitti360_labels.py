"""The city's semantic classes against the table that KITTI-360's own scripts ship."""

import json
import subprocess

import pytest

from data_prep.city.classes import COLOURS, Label, name_of

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PROBE = (
    "import json; from kitti360scripts.helpers.labels import labels; "
    "print(json.dumps({label.id: [label.name, label.color] for label in labels}))"
)


def test_ids_names_and_colours_are_those_of_kitti360(interop_python):
    answer = subprocess.run(
        [interop_python, "-c", PROBE], check=True, capture_output=True, text=True, timeout=300
    )
    table = {
        int(number): (name, tuple(colour)) for number, (name, colour) in json.loads(answer.stdout).items()
    }
    for label in Label:
        assert table[int(label)] == (name_of(label), COLOURS[label])
