"""The blocks between the streets."""

from dataclasses import dataclass

import shapely

from data_prep.city.mesh import Material


@dataclass(frozen=True)
class Block:
    """What lies inside a ring of streets, behind the sidewalks."""

    polygon: shapely.Polygon
    district: str
    surface: Material
    park: bool
