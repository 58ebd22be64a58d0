"""The pictures of the city: those that are shown are those that the gallery makes, and small."""

import re
from pathlib import Path

import cv2
import numpy as np

from data_prep.city import gallery

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_what_the_gallery_makes():
    shown = set(re.findall(r"\(images/(city-[a-z]+\.png)\)", (DOCS / "city.md").read_text()))
    assert shown == set(gallery.PICTURES)
    for name in shown:
        assert (DOCS / "images" / name).stat().st_size <= gallery.LARGEST


def test_a_picture_is_written_whole_and_small(tmp_path, monkeypatch, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    monkeypatch.setattr(gallery, "PICTURES", {"city-noise.png": lambda: noise})
    gallery.main(["--out", str(tmp_path / "new"), "--only", "city-noise.png"])
    image = cv2.imread(str(tmp_path / "new" / "city-noise.png"))
    assert image.shape == noise.shape
    assert (tmp_path / "new" / "city-noise.png").stat().st_size < noise.size / 2
    assert "500 x 400" in capsys.readouterr().out
