"""Smooth centre lines: positions, directions and strips along a sampled curve."""

import numpy as np
import shapely

STEP = 3.0  # m between the points of what is laid out along a curve


class Curve:
    """A line through points (n, 2) that turns smoothly: its direction is interpolated between them."""

    def __init__(self, points: np.ndarray):
        self.points = np.asarray(points, np.float64)
        steps = np.hypot(*np.diff(self.points, axis=0).T)
        self.stations = np.append(0.0, np.cumsum(steps))  # (n,) m from the first point
        self.length = float(self.stations[-1])
        # The direction at a point between two pieces is the mean of theirs, the shorter counting more, which
        # is exact for an arc.
        pieces = np.diff(self.points, axis=0) / steps[:, None]
        middle = pieces[:-1] * steps[1:, None] + pieces[1:] * steps[:-1, None]
        first, last = pieces[:1], pieces[-1:]
        if len(pieces) > 1:
            first = _reflect(middle[:1], pieces[:1])
            last = _reflect(middle[-1:], pieces[-1:])
        self.directions = _unit(np.concatenate([first, middle, last]))

    def at(self, s: float | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(...) metres from the first point → points (..., 2) and unit directions (..., 2)."""
        point = np.stack([np.interp(s, self.stations, self.points[:, k]) for k in (0, 1)], axis=-1)
        direction = np.stack([np.interp(s, self.stations, self.directions[:, k]) for k in (0, 1)], axis=-1)
        return point, _unit(direction)

    def beside(self, s: float | np.ndarray, left: float | np.ndarray) -> np.ndarray:
        """(...) stations and metres to the left of the curve → (..., 2) points."""
        point, direction = self.at(s)
        return point + np.asarray(left)[..., None] * left_of(direction)

    def shifted(self, first: float, last: float, left: float) -> np.ndarray:
        """(n, 2) line parallel to the curve, `left` metres to its left, from station `first` to `last`."""
        return self.beside(self._stations_between(first, last), left)

    def strip(self, first: float, last: float, low: float, high: float) -> shapely.Polygon:
        """The area between stations `first` and `last` and between `low` and `high` metres to the left."""
        stations = self._stations_between(first, last)
        return shapely.Polygon(
            np.concatenate([self.beside(stations, low), self.beside(stations[::-1], high)])
        )

    def _stations_between(self, first: float, last: float) -> np.ndarray:
        return np.linspace(first, last, max(2, int(np.ceil(abs(last - first) / STEP)) + 1))


def left_of(direction: np.ndarray) -> np.ndarray:
    """(..., 2) → (..., 2) turned a quarter to the left."""
    return np.stack([-direction[..., 1], direction[..., 0]], axis=-1)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector, axis=-1, keepdims=True)


def _reflect(vector: np.ndarray, mirror: np.ndarray) -> np.ndarray:
    """The direction on the other side of a chord: an arc leaves its chord as it comes back to it."""
    vector = _unit(vector)
    return 2 * np.sum(vector * mirror, axis=-1, keepdims=True) * mirror - vector
