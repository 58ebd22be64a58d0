"""The ground's height: gentle hills that die out towards the river, which lies in a level valley.

The field is a sum of long waves, so it has a height, a slope and a frame at every point, and no cells of
its own. Waves are no shorter than SHORTEST_WAVE and their slope is bounded, which bounds the curvature: a
triangle with edges of up to 5 m, draped over the ground, stays within 5 mm of it.
"""

from dataclasses import dataclass

import numpy as np

SHORTEST_WAVE = 400.0  # m
VALLEY = 110.0  # m from the river's axis at which half of the hills' height is there
_WAVES = 6


@dataclass(frozen=True)
class Terrain:
    """Heights in metres over the map frame: valley(u) · Σ amplitude · sin(wave · xy + phase).

    u is the distance to the river's axis, a line along one of the map's axes, and valley(u) = u² / (u² +
    VALLEY²).
    """

    amplitude: np.ndarray  # (W,) m
    wave: np.ndarray  # (W, 2) rad/m
    phase: np.ndarray  # (W,) rad
    across: int  # the coordinate, 0 or 1, that leads across the river
    axis: float  # the value of that coordinate on the river's axis

    def height(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) map frame → (...) m."""
        xy = np.asarray(xy, np.float64)
        waves = np.sin(xy @ self.wave.T + self.phase) @ self.amplitude
        u2 = (xy[..., self.across] - self.axis) ** 2
        return waves * u2 / (u2 + VALLEY**2)

    def gradient(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) map frame → (..., 2) rise per metre along x and y."""
        xy = np.asarray(xy, np.float64)
        angle = xy @ self.wave.T + self.phase
        u = xy[..., self.across] - self.axis
        valley = u**2 / (u**2 + VALLEY**2)
        rise = (np.cos(angle) * self.amplitude) @ self.wave * valley[..., None]
        waves = np.sin(angle) @ self.amplitude
        rise[..., self.across] += waves * 2 * u * VALLEY**2 / (u**2 + VALLEY**2) ** 2
        return rise

    def slope(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) map frame → (...) steepest rise per metre."""
        return np.linalg.norm(self.gradient(xy), axis=-1)

    def normal(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) map frame → (..., 3) unit vector out of the ground."""
        rise = self.gradient(xy)
        normal = np.concatenate([-rise, np.ones_like(rise[..., :1])], axis=-1)
        return normal / np.linalg.norm(normal, axis=-1, keepdims=True)

    def frame(self, pose: np.ndarray) -> np.ndarray:
        """(..., 3) x, y, yaw → (..., 4, 4) map_T_body of a body that stands on the ground.

        Its z axis is the ground's normal, and its x axis, seen from above, points along yaw exactly: whoever
        reads (x, y, yaw) back from the matrix finds what went in.
        """
        pose = np.asarray(pose, np.float64)
        xy, yaw = pose[..., :2], pose[..., 2]
        heading = np.stack([np.cos(yaw), np.sin(yaw)], axis=-1)
        climb = np.sum(self.gradient(xy) * heading, axis=-1, keepdims=True)
        forward = np.concatenate([heading, climb], axis=-1)
        forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
        up = self.normal(xy)
        matrix = np.zeros((*yaw.shape, 4, 4))
        matrix[..., :3, 0] = forward
        matrix[..., :3, 1] = np.cross(up, forward)
        matrix[..., :3, 2] = up
        matrix[..., :2, 3] = xy
        matrix[..., 2, 3] = self.height(xy)
        matrix[..., 3, 3] = 1.0
        return matrix


def flat_terrain() -> Terrain:
    """Ground at height 0 everywhere."""
    return Terrain(np.zeros(1), np.zeros((1, 2)), np.zeros(1), 0, 0.0)


def make_terrain(
    lower: np.ndarray, upper: np.ndarray, across: int, axis: float, rng: np.random.Generator
) -> Terrain:
    """Hills for a town in the box `lower` … `upper` ((2,) each), whose steepest slope is 4 to 6 %.

    `across` and `axis` say where the river runs: see Terrain.
    """
    length = SHORTEST_WAVE * rng.uniform(1.0, 2.2, _WAVES)
    direction = rng.uniform(0, np.pi, _WAVES)
    wave = 2 * np.pi / length[:, None] * np.stack([np.cos(direction), np.sin(direction)], 1)
    amplitude = length / length.sum()  # every wave is equally steep
    phase = rng.uniform(0, 2 * np.pi, _WAVES)
    unscaled = Terrain(amplitude, wave, phase, across, axis)
    grid = np.stack(np.meshgrid(*[np.linspace(lower[k], upper[k], 80) for k in (0, 1)]), -1)
    steepest = float(unscaled.slope(grid).max())
    return Terrain(amplitude * rng.uniform(0.04, 0.06) / steepest, wave, phase, across, axis)
