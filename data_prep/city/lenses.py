"""What a lens does to rays: how the points of an image plane, before focal length and centre, look outwards.

A point of the image plane is (x, y) = K⁻¹ (u, v, 1) without its 1, of the pixel's column u and row v and of
the camera's (3, 3) K. Camera axes: z forward, x right, y down.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

_NEWTON_STEPS = 12  # quadratic from the outside: 6 are enough for real lenses


@dataclass(frozen=True)
class Pinhole:
    """No lens: straight lines stay straight."""

    @property
    def rim(self) -> float:
        """How far from the centre of the image plane there is light."""
        return np.inf

    @property
    def spread(self) -> float:
        """Radians of the view that one unit of the image plane shows, in its middle."""
        return 1.0

    def lift(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) of the image plane → (N, 3) directions of any length, camera frame."""
        return np.concatenate([points, np.ones((len(points), 1))], axis=1)


@dataclass(frozen=True)
class Mei:
    """The fisheyes of KITTI-360: the unified model of Mei and Rives (ICRA 2007) with radial distortion.

    A unit direction (X, Y, Z) comes to m = (X, Y) / (Z + xi), and from there to m (1 + k1 |m|² + k2 |m|⁴).
    """

    xi: float
    k1: float
    k2: float
    half_aperture: float  # degrees from the axis to the rim: less than arccos(-1 / xi), where m turns back

    @cached_property
    def rim(self) -> float:
        """How far from the centre of the image plane there is light."""
        angle = np.radians(self.half_aperture)
        radius = np.sin(angle) / (np.cos(angle) + self.xi)
        return float(radius * (1 + self.k1 * radius**2 + self.k2 * radius**4))

    @property
    def spread(self) -> float:
        """Radians of the view that one unit of the image plane shows, in its middle."""
        return 1 + self.xi

    def lift(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) of the image plane, within the rim → (N, 3) unit directions, camera frame."""
        distorted = np.hypot(*points.T)
        radius = distorted.copy()
        for _ in range(_NEWTON_STEPS):
            square = radius**2
            excess = radius * (1 + self.k1 * square + self.k2 * square**2) - distorted
            radius -= excess / (1 + 3 * self.k1 * square + 5 * self.k2 * square**2)
        plane = points * (radius / np.maximum(distorted, 1e-12))[:, None]
        square = radius**2
        scale = (self.xi + np.sqrt(1 + (1 - self.xi**2) * square)) / (1 + square)
        return np.concatenate([plane * scale[:, None], (scale - self.xi)[:, None]], axis=1)


Lens = Pinhole | Mei
PINHOLE = Pinhole()
