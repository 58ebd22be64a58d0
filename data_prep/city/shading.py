"""Colours of the rays: procedural textures, windows, sun and shadow, haze, exposure and noise.

Everything is a function of world coordinates and of one Light per drive, computed for all pixels of a
keyframe at once.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_prep.city.mesh import Material, Mesh
from data_prep.city.sensors import Hits, RayCaster

_BANK = 512  # side of the tileable noise textures
SHADOW_RANGE = 140.0  # m: farther shadows are too small to see


@dataclass(frozen=True)
class Light:
    """Sun, sky and air of one drive, and how each camera exposes."""

    sun: np.ndarray  # (3,) unit, towards the sun
    sun_colour: np.ndarray  # (3,)
    ambient: np.ndarray  # (3,)
    sky_top: np.ndarray  # (3,)
    sky_low: np.ndarray  # (3,), also the colour of the haze
    clouds: float  # share of the sky
    haze: float  # 1/m
    exposure: np.ndarray  # (cameras,)
    noise: float  # standard deviation in grey levels


def draw_light(rng: np.random.Generator, cameras: int) -> Light:
    """The light of one date: sunny, hazy or overcast."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(22, 65))
    sun = np.array(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    overcast = float(np.clip(rng.normal(0.35, 0.35), 0, 1))
    warm = np.clip((np.radians(45) - elevation) / np.radians(45), 0, 1)
    sun_colour = np.array([2.5, 2.35 - 0.5 * warm, 2.1 - 0.9 * warm]) * (1 - 0.85 * overcast)
    ambient = np.array([0.62, 0.70, 0.85]) * (1 - overcast) + np.array([1.15, 1.17, 1.2]) * overcast
    top = np.array([0.13, 0.28, 0.62]) * (1 - overcast) + np.array([0.50, 0.53, 0.58]) * overcast
    low = np.array([0.55, 0.68, 0.85]) * (1 - overcast) + np.array([0.72, 0.73, 0.75]) * overcast
    return Light(
        sun.astype(np.float32),
        sun_colour.astype(np.float32),
        (ambient * rng.uniform(0.9, 1.1)).astype(np.float32),
        top.astype(np.float32),
        low.astype(np.float32),
        float(rng.uniform(0.1, 0.7)),
        float(rng.uniform(1 / 1500, 1 / 400)),
        rng.uniform(0.85, 1.2, cameras).astype(np.float32) * np.float32(rng.uniform(0.9, 1.15)),
        float(rng.uniform(1.5, 4.0)),
    )


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
    """Colours hits on one mesh. `pixel_angle` (radians) is a pixel's size: finer texture fades."""

    def __init__(self, caster: RayCaster, light: Light, pixel_angle: float):
        mesh = caster.mesh
        self.caster = caster
        self.mesh: Mesh = mesh
        self.light = light
        self.pixel_angle = pixel_angle
        self.normals = mesh.normals()
        self.bank = _noise_bank()
        self.texture = np.array([_TEXTURE[material] for material in Material], np.float32)

    def shade(self, origins: np.ndarray, directions: np.ndarray, hits: Hits) -> np.ndarray:
        """Rays (N, 3) and what they hit → (N, 3) float32 linear RGB."""
        colour = np.empty_like(directions)
        sky = hits.triangle < 0
        colour[sky] = self._sky(directions[sky])
        solid = np.flatnonzero(~sky)
        direction = directions[solid]
        distance = hits.distance[solid]
        triangle = hits.triangle[solid]
        point = origins[solid] + direction * distance[:, None]
        normal = self.normals[triangle]
        facing = np.einsum("ij,ij->i", normal, direction)
        normal = np.where((facing > 0)[:, None], -normal, normal)
        material = self.mesh.material[triangle]
        albedo = self.mesh.colour[triangle] * self._grain(point, normal, material, distance)[:, None]
        self._pave(albedo, material, point, distance)
        gloss = self._windows(albedo, material, triangle, point, distance, facing)
        lit = albedo * self._illumination(point, normal, distance)
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
        colour = colour + (np.float32(0.9) - colour) * (cloud * 0.75)
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

    def _windows(
        self,
        albedo: np.ndarray,
        material: np.ndarray,
        triangle: np.ndarray,
        point: np.ndarray,
        distance: np.ndarray,
        facing: np.ndarray,
    ) -> np.ndarray:
        """Paint windows, shops and bricks onto the facades → (N,) share of each pixel that is glass."""
        gloss = np.zeros(len(albedo), np.float32)
        index = np.flatnonzero(material == Material.FACADE)
        wall = self.mesh.walls[self.mesh.wall[triangle[index]]]
        tx, ty, offset, base, pitch, floor, share, sill, head, shop, brick, tint, number, awning = wall.T
        u = point[index, 0] * tx + point[index, 1] * ty - offset
        z = point[index, 2] - base
        column, row = np.floor(u / pitch), np.floor(z / floor)
        du, dv = u / pitch - column, z / floor - row
        course = np.floor(z * 7.0)
        joint = (z * 7.0 - course < 0.2) | (np.abs((u * 3.5 + 0.5 * (course % 2)) % 1) < 0.08)
        tone = 1 - brick * joint * (distance[index] < 25)
        inside = (np.abs(du - 0.5) < share / 2) & (dv > sill) & (dv < head)
        frame = (np.abs(du - 0.5) < share / 2 + 0.05) & (dv > sill - 0.05) & (dv < head + 0.05) & ~inside
        in_shop = z < shop
        display = in_shop & (dv > 0.12) & (dv < 0.68) & (np.abs(du - 0.5) < 0.44)
        awned = in_shop & (dv >= 0.7)
        glass = np.where(in_shop, display, inside & (z > 0.4))
        room = self._lookup(0, column * 7 + number, row * 13 + number * 3)
        paint = albedo[index] * tone[:, None]
        paint[frame & ~in_shop] *= 1.35
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
        # Where windows are smaller than pixels, a facade is their average.
        footprint = distance[index] * self.pixel_angle / np.maximum(np.abs(facing[index]), 0.05)
        sharp = np.clip(1.6 - 1.6 * footprint / pitch, 0, 1)
        mean = share * (head - sill)
        weight = glass * sharp + mean * (1 - sharp)
        albedo[index] = paint + (pane - paint) * weight[:, None]
        gloss[index] = weight * np.where(blind[:, 0] > 0, 0.3, 1.0)
        return gloss

    def _illumination(self, point: np.ndarray, normal: np.ndarray, distance: np.ndarray) -> np.ndarray:
        light = self.light
        cosine = normal @ light.sun
        lit = np.maximum(cosine, 0)
        near = np.flatnonzero((cosine > 0) & (distance < SHADOW_RANGE))
        start = point[near] + normal[near] * np.float32(0.02)
        shadow = self.caster.occluded(start, np.broadcast_to(light.sun, start.shape).copy())
        lit[near[shadow]] = 0
        # The sky lights what faces up most; the ground throws some light back at walls.
        up = 0.62 + 0.38 * normal[:, 2]
        near_ground = np.clip(0.75 + 0.08 * point[:, 2], 0.75, 1.0)
        near_ground = np.where(normal[:, 2] > 0.5, 1.0, near_ground)
        return lit[:, None] * light.sun_colour + (up * near_ground)[:, None] * light.ambient

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
