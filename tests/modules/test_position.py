"""The sinusoidal encoding: its formula, its symmetries about the centre, its errors."""

import numpy as np
import pytest

from placerec_jax.modules.position import sinusoidal_encoding_2d


@pytest.mark.parametrize("shape", [(32, 32), (5, 8)])
def test_sines_are_antisymmetric_and_cosines_symmetric_about_the_centre(shape):
    dim = 16
    code = sinusoidal_encoding_2d(*shape, dim)
    assert code.shape == (*shape, dim)
    assert code.dtype == np.float32
    sine_x, cosine_x, sine_y, cosine_y = np.split(code, 4, axis=-1)
    np.testing.assert_allclose(sine_x[::-1], -sine_x, atol=1e-6)
    np.testing.assert_allclose(cosine_x[::-1], cosine_x, atol=1e-6)
    np.testing.assert_allclose(sine_y[:, ::-1], -sine_y, atol=1e-6)
    np.testing.assert_allclose(cosine_y[:, ::-1], cosine_y, atol=1e-6)
    # The first half knows the row only, the second the column only.
    assert np.ptp(code[:, :, : dim // 2], axis=1).max() == 0
    assert np.ptp(code[:, :, dim // 2 :], axis=0).max() == 0


def test_values_follow_the_formula():
    dim, rows, columns = 128, 32, 32
    code = sinusoidal_encoding_2d(rows, columns, dim)
    for row, column, k in [(0, 0, 0), (16, 3, 5), (31, 31, 31)]:
        frequency = 10000 ** (-2 * k / (dim / 2))
        expected = [
            np.sin((row - 15.5) * frequency),
            np.cos((row - 15.5) * frequency),
            np.sin((column - 15.5) * frequency),
            np.cos((column - 15.5) * frequency),
        ]
        np.testing.assert_allclose(code[row, column, k :: dim // 4], expected, atol=1e-6)


def test_every_cell_has_a_code_of_its_own():
    code = sinusoidal_encoding_2d(16, 16, 128).reshape(-1, 128)
    distance = np.linalg.norm(code[:, None] - code[None], axis=-1) + 1e9 * np.eye(len(code))
    assert distance.min() > 0.1


def test_odd_split_is_refused():
    with pytest.raises(ValueError, match="multiple of 4"):
        sinusoidal_encoding_2d(4, 4, 18)
