"""A source that says which example and which draw it was; importable, so that worker processes have it."""

import numpy as np


class Numbers:
    """`size` examples: their number, and one random number of their own."""

    def __init__(self, size: int, broken: int | None = None) -> None:
        self.size, self.broken = size, broken

    def __len__(self) -> int:
        return self.size

    def example(self, index, rng):
        if index == self.broken:
            raise ValueError(f"example {index} is broken")
        return {"index": np.int32(index), "draw": np.float32(rng.random())}
