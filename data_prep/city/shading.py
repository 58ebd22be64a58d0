"""Colours of the rays: procedural textures, windows, sun and shadow, lamps, haze, exposure and noise.

Everything is a function of world coordinates and of one Light per drive, computed for all pixels of an image
at once.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_prep.city.light import Light
from data_prep.city.mesh import Material, Mesh
from data_prep.city.sensors import Hits, RayCaster
from data_prep.city.surroundings import Surroundings

_BANK = 512  # side of the tileable noise textures
SHADOW_RANGE = 140.0  # m: farther shadows are too small to see
LAMP_COLOUR = np.array([1.0, 0.80, 0.52], np.float32)
BEAM_COLOUR = np.array([1.0, 0.95, 0.85], np.float32)
ROOM_COLOURS = np.array([(1.0, 0.78, 0.45), (0.95, 0.88, 0.72), (0.75, 0.85, 1.0)], np.float32)


@dataclass(frozen=True)
class Beam:
    """The headlights of one vehicle, as one source."""

    place: np.ndarray  # (3,) in the mesh's coordinates
    direction: np.ndarray  # (3,) unit
    strength: float
    reach: float  # m


def _noise_bank() -> np.ndarray:
    """(2, 512, 512) float32 tileable noise in [-1, 1]: fine grain, and smooth blotches of several sizes."""
    rng = np.random.default_rng(20)
    fine = rng.uniform(-1, 1, (_BANK, _BANK))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(_BANK) * _BANK, np.fft.fftfreq(_BANK) * _BANK))
    spectrum = np.fft.fft2(rng.normal(0, 1, (_BANK, _BANK))) / (1 + frequency / 6) ** 1.7
    smooth = np.fft.ifft2(spectrum).real
    smooth = np.clip(smooth / (2.2 * smooth.std()), -1, 1)
    return np.stack([fine, smooth]).astype(np.float32)


# Per material: fine grain (strength, cells per metre) and blotches (strength, cells per metre).
_TEXTURE = {
    Material.ASPHALT: (0.22, 22.0, 0.22, 14.0),
    Material.KERB: (0.12, 16.0, 0.10, 20.0),
    Material.PAVING: (0.10, 18.0, 0.16, 16.0),
    Material.GRASS: (0.55, 14.0, 0.40, 12.0),
    Material.GRAVEL: (0.45, 12.0, 0.25, 12.0),
    Material.WATER: (0.05, 3.0, 0.30, 30.0),
    Material.MARKING: (0.18, 14.0, 0.25, 40.0),
    Material.FACADE: (0.06, 14.0, 0.14, 18.0),
    Material.ROOF: (0.20, 9.0, 0.20, 16.0),
    Material.PLAIN: (0.04, 12.0, 0.06, 20.0),
    Material.FOLIAGE: (0.75, 7.0, 0.45, 50.0),
    Material.LIGHT: (0.0, 12.0, 0.0, 20.0),
}


class Shader:
    """Colours hits in one light. `pixel_angle` (radians) is a pixel's size: finer texture fades."""

    def __init__(self, light: Light, pixel_angle: float, surroundings: Surroundings):
        self.light = light
        self.pixel_angle = pixel_angle
        self.surroundings = surroundings
        self.bank = _noise_bank()
        self.texture = np.array([_TEXTURE[material] for material in Material], np.float32)

    def shade(
        self,
        caster: RayCaster,
        origins: np.ndarray,
        directions: np.ndarray,
        hits: Hits,
        beams: tuple[Beam, ...] = (),
    ) -> np.ndarray:
        """Rays (N, 3) and what they hit in `caster` → (N, 3) float32 linear RGB."""
        mesh = caster.mesh
        colour = np.empty_like(directions)
        sky = hits.triangle < 0
        colour[sky] = self._sky(directions[sky])
        solid = np.flatnonzero(~sky)
        direction = directions[solid]
        distance = hits.distance[solid]
        triangle = hits.triangle[solid]
        point = origins[solid] + direction * distance[:, None]
        normal = caster.normals_of(triangle)
        facing = np.einsum("ij,ij->i", normal, direction)
        normal = np.where((facing > 0)[:, None], -normal, normal)
        material = mesh.material[triangle]
        albedo = mesh.colour[triangle] * self._grain(point, normal, material, distance)[:, None]
        self._pave(albedo, material, point, distance)
        gloss, windows, shine = self._windows(mesh, albedo, material, triangle, point, distance, facing)
        self._wet(albedo, gloss, material)
        lit = albedo * self._illumination(caster, point, normal, distance, beams)
        lit[windows] += shine
        lamps = np.flatnonzero(material == Material.LIGHT)
        lit[lamps] += mesh.colour[triangle[lamps]] * (0.3 + 2.2 * self.light.lamps)
        self._add_reflections(lit, gloss, material, direction, normal)
        air = np.exp(-self.light.haze * distance)[:, None]
        colour[solid] = lit * air + self.light.sky_low * (1 - air)
        return colour

    def _sky(self, direction: np.ndarray) -> np.ndarray:
        light = self.light
        up = np.clip(direction[:, 2:3], 0, 1)
        colour = light.sky_low + (light.sky_top - light.sky_low) * np.sqrt(up)
        # A flat layer of clouds, seen in perspective.
        plane = direction[:, :2] / (up + 0.12) * 40
        cloud = np.clip(self._lookup(1, plane[:, 0], plane[:, 1]) + 2 * light.clouds - 1, 0, 1)[:, None]
        colour = colour + (self.light.cloud_colour - colour) * (cloud * 0.75)
        glow = np.clip(direction @ light.sun, 0, 1) ** 24
        return colour + glow[:, None] * light.sun_colour * 0.25

    def _lookup(self, bank: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        a, b = np.floor(a).astype(np.int32), np.floor(b).astype(np.int32)
        return self.bank[bank].ravel()[((a & (_BANK - 1)) * _BANK) | (b & (_BANK - 1))]

    def _grain(
        self, point: np.ndarray, normal: np.ndarray, material: np.ndarray, distance: np.ndarray
    ) -> np.ndarray:
        """Brightness factors of fine grain and blotches; grain finer than a pixel fades out."""
        fine, per_metre, broad, broad_per_metre = self.texture[material].T
        upright = np.abs(normal[:, 2]) < 0.7
        a = np.where(upright, normal[:, 0] * point[:, 1] - normal[:, 1] * point[:, 0], point[:, 0])
        b = np.where(upright, point[:, 2], point[:, 1])
        fade = 1 / (1 + (distance * (self.pixel_angle * 2) * per_metre) ** 2)
        grain = self._lookup(0, a * per_metre, b * per_metre) * (fine * fade)
        return 1 + grain + self._lookup(1, a * broad_per_metre, b * broad_per_metre) * broad

    def _pave(
        self, albedo: np.ndarray, material: np.ndarray, point: np.ndarray, distance: np.ndarray
    ) -> None:
        """Joints between paving slabs of 0.75 m."""
        paved = np.flatnonzero((material == Material.PAVING) & (distance < 30))
        slab = point[paved, :2] * np.float32(1 / 0.75)
        slab = slab - np.floor(slab)
        joint = (slab < 0.07).any(1)
        albedo[paved[joint]] *= np.clip(0.72 + distance[paved[joint], None] / 100, 0, 1)

    def _wet(self, albedo: np.ndarray, gloss: np.ndarray, material: np.ndarray) -> None:
        """Rain darkens the ground and makes it mirror, asphalt most."""
        if self.light.wet == 0:
            return
        for kind, mirror in ((Material.ASPHALT, 0.55), (Material.MARKING, 0.4), (Material.PAVING, 0.3)):
            index = np.flatnonzero(material == kind)
            albedo[index] *= 1 - 0.4 * self.light.wet
            gloss[index] = mirror * self.light.wet

    def _windows(
        self,
        mesh: Mesh,
        albedo: np.ndarray,
        material: np.ndarray,
        triangle: np.ndarray,
        point: np.ndarray,
        distance: np.ndarray,
        facing: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Paint windows, shops and bricks onto the facades, and light into rooms at night.

        Returns (N,) the share of each pixel that is glass, the numbers (M,) of the pixels that glow and their
        light (M, 3).
        """
        gloss = np.zeros(len(albedo), np.float32)
        index = np.flatnonzero(material == Material.FACADE)
        wall = mesh.walls[mesh.wall[triangle[index]]]
        tx, ty, offset, base, pitch, floor, share, sill, head, shop, brick, tint, number, awning = wall.T
        u = point[index, 0] * tx + point[index, 1] * ty - offset
        z = point[index, 2] - base
        column, row = np.floor(u / pitch), np.floor(z / floor)
        du, dv = u / pitch - column, z / floor - row
        course = np.floor(z * 7.0)
        joint = (z * 7.0 - course < 0.2) | (np.abs((u * 3.5 + 0.5 * (course % 2)) % 1) < 0.08)
        # What is smaller than a pixel is seen as its average.
        footprint = distance[index] * self.pixel_angle / np.maximum(np.abs(facing[index]), 0.05)
        fine = np.clip(1.7 - footprint * 14, 0, 1)
        tone = 1 - brick * (joint * fine + 0.25 * (1 - fine))
        inside = (np.abs(du - 0.5) < share / 2) & (dv > sill) & (dv < head)
        frame = (np.abs(du - 0.5) < share / 2 + 0.05) & (dv > sill - 0.05) & (dv < head + 0.05) & ~inside
        in_shop = (z >= 0) & (z < shop)
        display = in_shop & (dv > 0.12) & (dv < 0.68) & (np.abs(du - 0.5) < 0.44)
        awned = in_shop & (dv >= 0.7)
        glass = np.where(in_shop, display, inside & (z > 0.4))
        room = self._lookup(0, column * 7 + number, row * 13 + number * 3)
        paint = albedo[index] * tone[:, None]
        paint[frame & ~in_shop & (z > 0.3)] *= 1.35
        hue = awning[:, None] * 6 - np.array([3, 2, 4], np.float32)
        rainbow = np.clip(
            np.abs(hue) * np.array([1, -1, -1], np.float32) + np.array([-1, 2, 2], np.float32), 0.06, 0.55
        )
        paint = np.where(awned[:, None], rainbow, paint)
        dark = np.stack([0.03 + 0.03 * tint, 0.04 + 0.07 * tint, 0.06 + 0.12 * tint], 1)
        blind = (
            (room > 0.45)[:, None] * np.clip(room, 0, 1)[:, None] * np.array([0.5, 0.46, 0.38], np.float32)
        )
        pane = dark * (1 + 0.35 * room)[:, None] + blind
        sharp = np.clip(1.6 - 1.6 * footprint / pitch, 0, 1)
        mean = share * (head - sill)
        weight = glass * sharp + mean * (1 - sharp)
        albedo[index] = paint + (pane - paint) * weight[:, None]
        gloss[index] = weight * np.where(blind[:, 0] > 0, 0.3, 1.0)
        if self.light.lamps == 0:
            return gloss, index[:0], np.zeros((0, 3), np.float32)
        # Some rooms are lit; where windows are smaller than pixels, their share of the light is seen.
        tone = ((column * 3 + row * 5 + number) % 3).astype(np.int32)
        lit = np.where(in_shop, 1.0, self._lookup(0, column * 5 + number * 7, row * 11) > 0.2)
        lit = lit * sharp + 0.4 * (1 - sharp)
        shine = weight * lit * (0.55 * self.light.lamps) * (1 + 0.3 * room)
        return gloss, index, (shine[:, None] * ROOM_COLOURS[tone]).astype(np.float32)

    def _illumination(
        self,
        caster: RayCaster,
        point: np.ndarray,
        normal: np.ndarray,
        distance: np.ndarray,
        beams: tuple[Beam, ...],
    ) -> np.ndarray:
        light = self.light
        # The sky lights what faces up most; the ground throws some light back at walls.
        up = 0.62 + 0.38 * normal[:, 2]
        steep = np.flatnonzero(normal[:, 2] <= 0.5)
        height = np.zeros_like(up)
        height[steep] = point[steep, 2] - self.surroundings.ground(point[steep, :2])
        up[steep] *= np.clip(0.75 + 0.08 * height[steep], 0.75, 1.0)
        result = up[:, None] * light.ambient
        if light.sun_colour.any():
            cosine = normal @ light.sun
            lit = np.maximum(cosine, 0)
            near = np.flatnonzero((cosine > 0) & (distance < SHADOW_RANGE))
            start = point[near] + normal[near] * np.float32(0.02)
            shadow = caster.occluded(start, np.broadcast_to(light.sun, start.shape).copy())
            lit[near[shadow]] = 0
            result += lit[:, None] * light.sun_colour
        if light.lamps > 0:
            result += self._lamplight(point, normal, height)[:, None] * LAMP_COLOUR
            for beam in beams:
                self._add_beam(result, beam, point, normal)
        return result

    def _lamplight(self, point: np.ndarray, normal: np.ndarray, height: np.ndarray) -> np.ndarray:
        """(N,) light of the street lamps: pools on the ground that fade up the walls."""
        pools = self.surroundings.lamplight(point[:, :2])
        fade = np.clip(1.15 - height / 9.0, 0.06, 1.0)
        return pools * fade * (0.55 + 0.45 * np.maximum(normal[:, 2], 0)) * (1.5 * self.light.lamps)

    def _add_beam(self, result: np.ndarray, beam: Beam, point: np.ndarray, normal: np.ndarray) -> None:
        gap = point - beam.place
        index = np.flatnonzero((np.abs(gap[:, 0]) < beam.reach) & (np.abs(gap[:, 1]) < beam.reach))
        gap = gap[index]
        distance = np.linalg.norm(gap, axis=1)
        gap = gap / np.maximum(distance, 0.1)[:, None]
        cone = np.clip((gap @ beam.direction - 0.80) / 0.17, 0, 1)
        # Dipped: little goes above the lamps.
        cone = cone * np.where(gap[:, 2] > 0.02, 0.3, 1.0)
        facing = 0.35 + 0.65 * np.abs(np.einsum("ij,ij->i", gap, normal[index]))
        falls = np.clip(1.25 - distance / beam.reach, 0, 1) / (1 + (distance / 10.0) ** 2)
        shine = beam.strength * self.light.lamps * cone * facing * falls
        result[index] += shine[:, None] * BEAM_COLOUR

    def _add_reflections(
        self,
        lit: np.ndarray,
        gloss: np.ndarray,
        material: np.ndarray,
        direction: np.ndarray,
        normal: np.ndarray,
    ) -> None:
        """Glass and water mirror the sky, the more the flatter one looks at them."""
        gloss = np.where(material == Material.WATER, np.float32(0.8), gloss)
        index = np.flatnonzero(gloss > 0.02)
        d, n = direction[index], normal[index]
        cosine = np.einsum("ij,ij->i", d, n)
        mirrored = d - 2 * cosine[:, None] * n
        strength = gloss[index] * (0.10 + 0.75 * (1 + cosine) ** 3)
        lit[index] += strength[:, None] * (self._sky(mirrored) - lit[index])


@lru_cache(maxsize=1)
def _gamma() -> np.ndarray:
    """(4096,) float32: linear intensity in 4096 steps → grey level."""
    return (np.linspace(0, 1, 4096) ** (1 / 2.2) * 255).astype(np.float32)


def develop(colour: np.ndarray, exposure: float, noise: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) linear RGB → uint8 RGB: exposure, vignette, soft highlights, gamma, pixel noise."""
    height, width = colour.shape[:2]
    y = (np.arange(height, dtype=np.float32) / height - 0.5)[:, None]
    x = (np.arange(width, dtype=np.float32) / width - 0.5)[None]
    vignette = exposure * (1 - 0.35 * (x * x + y * y))
    exposed = colour * vignette[..., None]
    exposed = exposed / (1 + 0.28 * exposed)
    grey = _gamma()[np.clip(exposed * 4095, 0, 4095).astype(np.int32)]
    grey += rng.standard_normal(grey.shape, np.float32) * np.float32(noise)
    return np.clip(grey, 0, 255).astype(np.uint8)
