"""How well OpenStreetMap lies on a dataset's own map, and what would put it there.

OpenStreetMap comes in WGS84, a dataset's map in a frame of its own, and the way from one to the other is a
model (`data_prep.geodesy`) that nobody surveyed. Roads are driven on, so OSM's must lie inside the drivable
area: the share of road samples that do is what is reported, before and after a fit

    q = c + (dx, dy) + R(rotation)·diag(scale_x, scale_y)·(p − c),   c: the centre of the samples.

With one scale for both axes this is a similarity. Two are fitted beside it, because a sphere and an ellipsoid
differ by axis: near the equator a degree of latitude is 0.67 % shorter on the ellipsoid, one of longitude is
not, which no similarity can say.

The share alone does not say where the middle of a road is: any shift that keeps a centre line on its
carriageway scores the same. The fit therefore maximises a soft share, the mean of (1 + tanh(d/EDGE))/2 over
the samples' signed distances d to the area's edge (inside positive), which rises towards the middle of a road
and is level both far inside and far outside. A weak pull to the identity decides where the roads say nothing,
as along a single straight one. A grid of shifts first, then the simplex of Nelder and Mead. Float64, and the
same result every time.
"""

import dataclasses
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import scipy.ndimage
import scipy.optimize

from data_prep import geodesy
from data_prep.datasets import Place
from data_prep.raw.osm import OsmData
from placerec_jax.ops.grid import Grid2D

# OSM's `highway` values that are compared, with their links: what is on a dataset's map wherever it has one.
# Service ways run over car parks and yards, which maps for driving often leave out.
STREETS = ("primary", "secondary", "tertiary", "unclassified", "residential")
CELL = 0.5  # m, of the raster of distances, which is read by interpolation
SPACING = 2.0  # m between samples along a road
REACH = 20.0  # m, largest shift that is tried
STEP = 2.0  # m, of the grid of shifts
MAX_ROTATION = np.radians(1.0)
MAX_SCALE = 0.01
EDGE = 3.0  # m, softness of the area's edge: about half a carriageway
PULL = 1e-3  # share that a move of REACH costs in each parameter
MIN_CONTRAST = 1.5  # the best share over the median share at shifts of REACH: 3 on the real map of one-north
MIN_SAMPLES = 200  # 400 m of road: fewer say nothing about five parameters

_IDENTITY = np.array([0.0, 0.0, 0.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The outcome for one location.

    `moves` and `similarity` (5,) are (dx, dy, rotation, scale_x, scale_y) about `center` (2,) in map metres
    and radians: the best there is, and the best with one scale. `before`, `after` and `after_similarity` are
    the shares of samples inside the drivable area without and with them. Where nothing was fitted the shares
    are NaN, both moves are the identity, and `problem` says why. `shifts` (S,) are the offsets (m) of the
    searched grid, `scores` (S, S) the share of samples inside at (dx, dy) = (shifts[i], shifts[j]).
    """

    moves: np.ndarray
    similarity: np.ndarray
    center: np.ndarray
    samples: int
    before: float
    after: float
    after_similarity: float
    shifts: np.ndarray
    scores: np.ndarray
    problem: str | None = None

    @property
    def gain(self) -> float:
        """By how much the fit raises the share; 0 where nothing was fitted."""
        return 0.0 if self.problem else self.after - self.before

    def apply(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) map metres by the geodesy alone → (..., 2) moved by the fit."""
        return transform(self.moves, self.center, xy)

    def affine(self) -> np.ndarray:
        """(2, 3) float64: the same as `apply`, of (x, y, 1)."""
        offset, *ends = self.apply(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        return np.stack([ends[0] - offset, ends[1] - offset, offset], axis=-1)

    def best_shift(self) -> np.ndarray:
        """(2,) the shift (dx, dy) of the grid with the largest share, the nearest to zero of several."""
        dx, dy = np.meshgrid(self.shifts, self.shifts, indexing="ij")
        best = np.lexsort((np.hypot(dx, dy).ravel(), -self.scores.ravel()))[0]
        return np.array([dx.ravel()[best], dy.ravel()[best]])

    def statement(self) -> str:
        """One line to read."""
        if self.problem:
            return f"alignment not fitted: {self.problem}"
        dx, dy, rotation, scale_x, scale_y = self.moves
        return (
            f"OSM roads inside the drivable area: {self.before:.1%} as they come, {self.after:.1%} after a "
            f"move by ({dx:+.1f}, {dy:+.1f}) m, {np.degrees(rotation):+.2f}°, scale {scale_x:.4f} x "
            f"{scale_y:.4f}; {self.after_similarity:.1%} with one scale ({self.similarity[3]:.4f}); "
            f"{self.samples} samples"
        )

    def summary(self) -> dict[str, object]:
        """For a manifest: plain values."""
        shares = {
            "inside_before": self.before,
            "inside_after": self.after,
            "inside_after_similarity": self.after_similarity,
        }
        return {
            "moves": self.moves.tolist(),
            "similarity": self.similarity.tolist(),
            "center": self.center.tolist(),
            "samples": self.samples,
            **{name: None if self.problem else round(share, 6) for name, share in shares.items()},
            "problem": self.problem,
        }


def transform(moves: np.ndarray, center: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """(5,) (dx, dy, rotation, scale_x, scale_y) about (2,) `center`, of (..., 2) points; float64."""
    dx, dy, rotation, scale_x, scale_y = moves
    cos, sin = np.cos(rotation), np.sin(rotation)
    x, y = np.moveaxis((np.asarray(xy, np.float64) - center) * [scale_x, scale_y], -1, 0)
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) + center + np.array([dx, dy])


def sample_roads(roads: Sequence[np.ndarray], spacing: float = SPACING) -> np.ndarray:
    """Polylines (N, 2) → (M, 2) points along them, one every `spacing` metres from half of it on."""
    samples = []
    for road in roads:
        lengths = np.hypot(*np.diff(road, axis=0).T)
        ends = np.concatenate([[0.0], np.cumsum(lengths)])
        along = np.arange(spacing / 2, ends[-1], spacing)
        samples.append(np.stack([np.interp(along, ends, road[:, axis]) for axis in (0, 1)], axis=-1))
    return np.concatenate([np.zeros((0, 2)), *samples])


def fit_place(place: Place, extracts: Sequence[OsmData]) -> Alignment:
    """Fit the streets of OpenStreetMap extracts to the drivable area of a dataset's map."""
    roads = streets(extracts, place)
    grid = _grid_about(roads, map_grid(place))
    return fit_alignment(roads, place.drivable.draw(grid), grid)


def map_grid(place: Place) -> Grid2D:
    """The grid over a whole map, in whole cells from its lower corner.

    Not on whole metres: a map that is itself a raster of 1 m is taken cell by cell, and not shifted by half.
    """
    x_min, x_max, y_min, y_max = place.extent
    rows, columns = (round((high - low) / CELL) for low, high in ((x_min, x_max), (y_min, y_max)))
    return Grid2D((x_min, x_min + rows * CELL, y_min, y_min + columns * CELL), CELL)


def _grid_about(roads: Sequence[np.ndarray], whole: Grid2D) -> Grid2D:
    """The part of the map about the roads: what lies further off does not matter to them."""
    points = sample_roads(roads)
    x_min, x_max, y_min, y_max = whole.extent
    points = points[((points > [x_min, y_min]) & (points < [x_max, y_max])).all(axis=1)]
    if not len(points):
        return whole
    reach = 2 * (REACH + MAX_SCALE * max(x_max - x_min, y_max - y_min))
    lower = np.floor((points.min(axis=0) - reach - whole.lower) / CELL) * CELL + whole.lower
    upper = np.ceil((points.max(axis=0) + reach - whole.lower) / CELL) * CELL + whole.lower
    lower, upper = np.maximum(lower, [x_min, y_min]), np.minimum(upper, [x_max, y_max])
    return Grid2D((float(lower[0]), float(upper[0]), float(lower[1]), float(upper[1])), CELL)


def streets(extracts: Sequence[OsmData], place: Place) -> list[np.ndarray]:
    """Polylines (N, 2) in map metres, of the classes STREETS and their links, that come near the map."""
    kinds = {kind for street in STREETS for kind in (street, f"{street}_link")}
    wanted = [
        [road]
        for extract in extracts
        for road, kind in zip(extract.roads, extract.road_kinds, strict=True)
        if kind in kinds
    ]
    return [road for (road,) in geodesy.shapes_near(wanted, place.location, place.extent, REACH)]


def fit_alignment(roads: Sequence[np.ndarray], drivable: np.ndarray, grid: Grid2D) -> Alignment:
    """Fit roads, polylines (N, 2) in map metres, to `drivable` (rows, columns) uint8 of 0 and 1 on `grid`.

    Samples nearer than the search's reach to the grid's edge are left out, so that the same samples count at
    every shift.
    """
    samples = sample_roads(roads)
    x_min, x_max, y_min, y_max = grid.extent
    reach = REACH + MAX_SCALE * max(x_max - x_min, y_max - y_min)
    inner = (samples > [x_min + reach, y_min + reach]) & (samples < [x_max - reach, y_max - reach])
    samples = samples[inner.all(axis=1)]
    shifts = np.arange(-REACH, REACH + STEP / 2, STEP)
    center = samples.mean(axis=0) if len(samples) else np.array([x_min + x_max, y_min + y_max]) / 2
    problem = _lacking(samples, drivable)
    if problem:
        return _not_fitted(center, len(samples), shifts, np.full((len(shifts), len(shifts)), np.nan), problem)

    field = _SignedDistance(drivable, grid)
    soft, scores = np.empty((2, len(shifts), len(shifts)))
    for i, dx in enumerate(shifts):
        for j, dy in enumerate(shifts):
            distance = field.at(samples + np.array([dx, dy]))
            soft[i, j] = _soft_share(distance) - _pull(np.array([dx, dy]))
            scores[i, j] = np.mean(distance > 0)
    problem = _unlike(scores)
    if problem:
        return _not_fitted(center, len(samples), shifts, scores, problem)
    first = shifts[np.array(np.unravel_index(np.argmax(soft), soft.shape))]

    similarity = _climb(field, samples, center, _one_scale, np.array([*first, 0.0, 0.0]))
    moves = _climb(field, samples, center, _two_scales, np.array([*first, 0.0, 0.0, 0.0]))

    def share(moves: np.ndarray) -> float:
        return float(np.mean(field.at(transform(moves, center, samples)) > 0))

    return Alignment(
        moves,
        similarity,
        center,
        len(samples),
        share(_IDENTITY),
        share(moves),
        share(similarity),
        shifts,
        scores,
    )


def _one_scale(parameters: np.ndarray, radius: float) -> np.ndarray:
    dx, dy, turn, stretch = parameters
    return np.array([dx, dy, turn / radius, 1 + stretch / radius, 1 + stretch / radius])


def _two_scales(parameters: np.ndarray, radius: float) -> np.ndarray:
    dx, dy, turn, stretch_x, stretch_y = parameters
    return np.array([dx, dy, turn / radius, 1 + stretch_x / radius, 1 + stretch_y / radius])


def _climb(
    field: "_SignedDistance",
    samples: np.ndarray,
    center: np.ndarray,
    moves_of: Callable[[np.ndarray, float], np.ndarray],
    first: np.ndarray,
) -> np.ndarray:
    """(5,) moves with the largest soft share that the simplex finds from `first`.

    All parameters are in metres: a rotation or a change of scale is what it moves at the samples' mean
    distance from the centre.
    """
    radius = float(np.sqrt(((samples - center) ** 2).sum(axis=1).mean()))

    def cost(parameters: np.ndarray) -> float:
        moves = moves_of(parameters, radius)
        limits = [REACH, REACH, MAX_ROTATION, MAX_SCALE, MAX_SCALE]
        if (np.abs(moves - _IDENTITY) > limits).any():
            return 1.0  # worse than any inside the limits
        return _pull(parameters) - _soft_share(field.at(transform(moves, center, samples)))

    # Towards zero, so that the first simplex lies inside the limits.
    steps = np.diag(np.where(first > 0, -STEP, STEP))
    found = scipy.optimize.minimize(
        cost,
        first,
        method="Nelder-Mead",
        options={
            "initial_simplex": np.vstack([first, first + steps]),
            "xatol": 1e-3,
            "fatol": 1e-7,
            "maxiter": 1000,
            "maxfev": 1000,
        },
    )
    return moves_of(found.x, radius)


def _not_fitted(
    center: np.ndarray, samples: int, shifts: np.ndarray, scores: np.ndarray, problem: str
) -> Alignment:
    return Alignment(_IDENTITY, _IDENTITY, center, samples, np.nan, np.nan, np.nan, shifts, scores, problem)


def _unlike(scores: np.ndarray) -> str | None:
    """Whether the two maps have nothing in common: then a shift changes little."""
    far = np.median(np.concatenate([scores[0], scores[-1], scores[:, 0], scores[:, -1]]))
    if scores.max() >= MIN_CONTRAST * far and scores.max() > 0:
        return None
    return (
        f"the roads do not follow the drivable area: {scores.max():.1%} of their samples are inside it at "
        f"best, {far:.1%} after a shift of {REACH:.0f} m. Are both maps of this place?"
    )


def _lacking(samples: np.ndarray, drivable: np.ndarray) -> str | None:
    """What is lacking for a fit, if anything is."""
    if not drivable.any():
        return "there is no drivable area on this map"
    if drivable.all():
        return "all of this map is drivable: there is no edge to align with"
    if len(samples) < MIN_SAMPLES:
        return (
            f"{len(samples) * SPACING:.0f} m of OSM roads ({', '.join(STREETS)}) on this map, and "
            f"{MIN_SAMPLES * SPACING:.0f} m are needed"
        )
    return None


def _soft_share(distance: np.ndarray) -> float:
    return float(np.mean(0.5 + 0.5 * np.tanh(distance / EDGE)))


def _pull(parameters: np.ndarray) -> float:
    """What parameters in metres cost."""
    return PULL * float(((parameters / REACH) ** 2).sum())


class _SignedDistance:
    """Distance (m) to the edge of an area, positive inside, read between the cells' centres."""

    def __init__(self, area: np.ndarray, grid: Grid2D) -> None:
        area = np.ascontiguousarray(area, np.uint8)
        inside, outside = (
            cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) for mask in (area, 1 - area)
        )
        # The edge lies between two centres, half a cell from either.
        self._field = (inside - outside - np.where(area > 0, 0.5, -0.5).astype(np.float32)) * grid.cell
        self._lower, self._cell = np.array(grid.lower), grid.cell

    def at(self, xy: np.ndarray) -> np.ndarray:
        """(N, 2) map metres → (N,) float64."""
        index = ((xy - self._lower) / self._cell - 0.5).T
        return scipy.ndimage.map_coordinates(self._field, index, np.float64, order=1, mode="nearest")
