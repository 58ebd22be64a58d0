"""Points of submaps on the host: as many as a network takes, and always the same ones in evaluation."""

import zlib

import numpy as np


def sample_points(xyz: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) → (count, 3) float32 and (count,) bool mask: `count` points, uniformly and without replacement.

    Fewer points than that are all there, in a random order, before masked zeros; of an empty submap all is
    masked.
    """
    chosen = rng.permutation(len(xyz)) if len(xyz) <= count else rng.choice(len(xyz), count, replace=False)
    points = np.zeros((count, 3), np.float32)
    points[: len(chosen)] = xyz[chosen]
    return points, np.arange(count) < len(chosen)


def evaluation_rng(sequence: str, frame_id: int) -> np.random.Generator:
    """A generator that depends on the frame's name alone, so that recall repeats from run to run.

    (Upstream draws other points at each evaluation.)
    """
    return np.random.default_rng([zlib.crc32(sequence.encode()), frame_id])


def turn_about_z(xyz: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(N, 3) → (N, 3) float32, turned by a random angle about z: harmful, says upstream, and off there."""
    angle = rng.uniform(0.0, 2.0 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y, z = xyz.astype(np.float32).T
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=-1)
