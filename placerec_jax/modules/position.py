"""Fixed encodings of positions."""

import numpy as np


def sinusoidal_encoding_2d(rows: int, columns: int, dim: int) -> np.ndarray:
    """(rows, columns, dim) float32: dim/2 channels for the row (x), then dim/2 for the column (y).

    Coordinates are counted from the centre of the grid, i - (rows - 1) / 2. Each half holds dim/4 sines, then
    dim/4 cosines, with the angular frequencies 10000^(-2k / (dim/2)), k = 0 ... dim/4 - 1; so the sines are
    antisymmetric and the cosines symmetric about the centre (MapLocNet, arXiv 2407.08561, moves the origin
    there).
    """
    if dim % 4:
        raise ValueError(
            f"sinusoidal_encoding_2d: dim must be a multiple of 4 (sine and cosine of two axes), found {dim}"
        )
    x = _encode(np.arange(rows) - (rows - 1) / 2, dim // 2)
    y = _encode(np.arange(columns) - (columns - 1) / 2, dim // 2)
    x = np.broadcast_to(x[:, None], (rows, columns, dim // 2))
    y = np.broadcast_to(y[None, :], (rows, columns, dim // 2))
    return np.concatenate([x, y], axis=-1).astype(np.float32)


def _encode(coordinates: np.ndarray, dim: int) -> np.ndarray:
    """(n,) -> (n, dim): sines, then cosines."""
    frequencies = 10000.0 ** (-2 * np.arange(dim // 2) / dim)
    angles = coordinates[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
