"""The standing town of one scene together with everybody who moves in it, as a sensor sees it at one instant.

The town's Embree scene is built once. For each exposure a second, small one is built of those who move near
the sensor, where they are at that very time, and the nearer hit of the two counts.
"""

from dataclasses import dataclass

import numpy as np

from data_prep.city import bodies
from data_prep.city.actors import LABELS, STANDING_SPEED, Actor
from data_prep.city.classes import Label
from data_prep.city.mesh import Mesh, MeshBuilder, merge
from data_prep.city.sensors import Hits, RayCaster
from data_prep.city.shading import Beam
from data_prep.city.terrain import Terrain

SEEN_WITHIN = 150.0  # m: who moves farther away is left out
SHADOW_REACH = 7.0  # m beyond a body in which its shadow is looked for
_EGO_LAMPS = (2.2, 0.0, 0.7)  # in the ego frame


@dataclass(frozen=True)
class Mover:
    """An actor with the shape that the sensors see and its number among the instances of its class."""

    actor: Actor
    label: Label
    number: int
    shapes: list[np.ndarray]  # (n, 3, 3) float64 in the body's frame, one for each phase of a step
    first: int  # triangle of the stage's mesh that is its first
    radius: float  # m, of a sphere around the middle of the body that holds it


class Stage:
    """The town of one scene and its movers; `mesh` holds the triangles of both, the town's first."""

    def __init__(
        self, town: Mesh, actors: list[Actor], parked: int, terrain: Terrain, lit: bool, rain: bool
    ) -> None:
        self.terrain = terrain
        self.town = RayCaster(town)
        self.movers: list[Mover] = []
        builder = MeshBuilder(town.centre)
        first = len(town.triangles)
        counts = {Label.CAR: parked}
        for actor in actors:
            label = LABELS[actor.kind]
            number = counts.get(label, 0)
            counts[label] = number + 1
            phases = _shapes(actor, lit, rain)
            for part in phases[0]:
                builder.add(part.triangles, part.material, part.colour, label=label, number=number)
            shapes = [np.concatenate([part.triangles for part in parts]) for parts in phases]
            reach = np.abs(shapes[0] - [0, 0, actor.size[2] / 2]).max((0, 1))
            radius = float(np.hypot(np.hypot(*reach[:2]), reach[2]))
            self.movers.append(Mover(actor, label, number, shapes, first, radius))
            first += len(shapes[0])
        self.mesh = merge(town, builder.build()) if actors else town

    def stands(self, mover: Mover, time: float) -> np.ndarray:
        """(4, 4) map_T_body of a mover at a time (s from the log's start)."""
        x, y, yaw, lift = mover.actor.pose(time)
        frame = self.terrain.frame(np.array([x, y, yaw]))
        if mover.label == Label.PERSON:  # people stand upright on a slope
            frame[:3, :3] = [[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]]
        frame[2, 3] += lift
        return frame

    def at(
        self, time: float, eye: np.ndarray, forward: np.ndarray | None = None, half: float = 0.0
    ) -> "View":
        """What can be seen at a time from `eye` (3,), in the map frame.

        With `forward` (3,) unit, those who move are left out where neither they nor their shadows lie within
        the angle `half` (radians) of it.
        """
        present = [mover for mover in self.movers if mover.actor.exists(time)]
        gaps = np.array([mover.actor.pose(time)[:2] for mover in present]).reshape(-1, 2) - eye[:2]
        distance = np.hypot(*gaps.T)
        seen = distance < SEEN_WITHIN
        if forward is not None:
            ahead = forward[:2] / np.hypot(*forward[:2])
            wide = np.array([mover.radius for mover in present]) + SHADOW_REACH
            inside = distance <= wide
            apart = np.maximum(distance, wide)
            angle = np.arccos(np.clip(gaps @ ahead / apart, -1, 1))
            seen &= inside | (angle <= half + np.arcsin(wide / apart))
        movers = [present[k] for k in np.flatnonzero(seen)]
        return View(self, movers, [self.stands(mover, time) for mover in movers], time)

    def beams(self, time: float, map_T_ego: np.ndarray, reach: float = 45.0) -> tuple[Beam, ...]:
        """The headlights of the recording vehicle and of the vehicles around it."""
        centre = np.append(self.mesh.centre, 0.0)
        beams = [_beam(map_T_ego, _EGO_LAMPS, 2.6, 48.0, centre)]
        for mover in self.movers:
            if mover.label == Label.PERSON or not mover.actor.exists(time):
                continue
            if np.hypot(*(mover.actor.pose(time)[:2] - map_T_ego[:2, 3])) < reach:
                lamps = (mover.actor.size[0] / 2, 0.0, 0.65)
                beams.append(_beam(self.stands(mover, time), lamps, 1.8, 22.0, centre))
        return tuple(beams)


def _beam(
    frame: np.ndarray, lamps: tuple[float, float, float], strength: float, reach: float, centre: np.ndarray
) -> Beam:
    place = (frame @ [*lamps, 1.0])[:3] - centre
    return Beam(place.astype(np.float32), frame[:3, 0].astype(np.float32), strength, reach)


def _shapes(actor: Actor, lit: bool, rain: bool) -> list[list[bodies.Part]]:
    if actor.kind in bodies.VEHICLES:
        return [bodies.VEHICLES[actor.kind](actor.size, actor.colour, lit)]
    return bodies.person(actor.size[2], actor.seed, umbrella=rain and actor.seed % 3 > 0)


class View:
    """A caster of rays at one instant: the same functions as a RayCaster's, over the stage's mesh."""

    def __init__(self, stage: Stage, movers: list[Mover], frames: list[np.ndarray], time: float):
        self.mesh = stage.mesh
        self._town = stage.town
        self._standing = len(stage.town.mesh.triangles)
        self._bodies: RayCaster | None = None
        if not movers:
            return
        triangles, numbers = [], []
        centre = np.append(self.mesh.centre, 0.0)
        for mover, frame in zip(movers, frames, strict=True):
            shape = mover.shapes[_step_phase(mover, time)]
            triangles.append(shape @ frame[:3, :3].T + (frame[:3, 3] - centre))
            numbers.append(mover.first + np.arange(len(shape)))
        self._numbers = np.concatenate(numbers)
        everyone = self.mesh._replace(triangles=np.concatenate(triangles).astype(np.float32))
        self._bodies = RayCaster(everyone)
        self._own_normals = np.zeros((len(self.mesh.triangles) - self._standing, 3), np.float32)
        self._own_normals[self._numbers - self._standing] = everyone.normals()

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """As RayCaster.cast; triangles are those of `mesh`."""
        hits = self._town.cast(origins, directions)
        if self._bodies is None:
            return hits
        # Most rays miss the few bodies, which Embree finds out faster than any test made here.
        own = self._bodies.cast(origins, directions)
        met = np.flatnonzero(own.triangle >= 0)
        met = met[(hits.triangle[met] < 0) | (own.distance[met] < hits.distance[met])]
        hits.triangle[met] = self._numbers[own.triangle[met]]
        hits.distance[met] = own.distance[met]
        return hits

    def occluded(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """As RayCaster.occluded."""
        blocked = self._town.occluded(origins, directions)
        if self._bodies is not None:
            blocked |= self._bodies.occluded(origins, directions)
        return blocked

    def normals_of(self, triangle: np.ndarray) -> np.ndarray:
        """As RayCaster.normals_of."""
        if self._bodies is None:
            return self._town.normals_of(triangle)
        normals = self._town.normals_of(np.minimum(triangle, self._standing - 1))
        own = np.flatnonzero(triangle >= self._standing)
        normals[own] = self._own_normals[triangle[own] - self._standing]
        return normals


def _step_phase(mover: Mover, time: float) -> int:
    if len(mover.shapes) == 1:
        return 0
    walked = mover.actor.speed(time) > STANDING_SPEED
    # The phase runs with the way gone, so that feet do not slide much.
    start = mover.actor.pose(mover.actor.time[0])[:2]
    way = float(np.hypot(*(mover.actor.pose(time)[:2] - start)))
    return int(way / (bodies.STEP_LENGTH / 2)) % bodies.STEP_PHASES if walked else 0
