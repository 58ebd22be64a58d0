"""The methods, one module each, and the contract that the trainer, the evaluators and the exporters rely on.

A method module defines

- `features(cfg, training=False)`: {name: ShapeDtypeStruct} of ONE example; enough to initialise and to
compile without data;
- `model(cfg)`: the Linen module; `__call__(batch, train)` gives {encoder name: representation};
- `encoders(cfg)`: {name: Encoder} in the order of evaluation;
- `loss(cfg, representations, batch)`: {term: (sum, weight)}, float32 scalars, so that means over cells, pairs
  or points stay exact under gradient accumulation and sharding;
- `predict(cfg, representations, batch)`: {name: (B, ...)}: what the evaluator scores and the report draws;
- `source(cfg, prepared, split, training)`: an `ExampleSource`;
- `PUBLISHED` (optional): the paper's own figures, printed beside ours;
- `pretrained(cfg)` (optional): {submodule of the model: `Pretrained`}: what training may start from. Its
  settings are `config.model.<something>_weights`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np

from placerec_jax.errors import ConfigError


class Encoder(NamedTuple):
    """One function of the model, with the names of what it reads."""

    inputs: tuple[str, ...]  # batch features, or encoders that stand earlier
    function: Callable[..., Any]  # (module, *inputs, train) -> representation


class Pretrained(NamedTuple):
    """Published weights that a submodule may start from."""

    setting: str  # the key of the config that names the file, for messages
    path: str  # the file; empty: train from scratch
    layouts: tuple[Any, ...]  # `modules.torch_names.TorchLayout`s that are understood; () where none is


class ExampleSource(Protocol):
    """Examples by number; `example` is a pure function of (index, rng)."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]: ...


def load(name: str) -> ModuleType:
    """The method module called `name`; ValueError lists the methods there are."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    if name not in names:
        raise ConfigError(f"config.method is {name!r}; expected one of {names}")
    return importlib.import_module(f"{__name__}.{name}")


def run_encoders(
    module: Any, encoders: dict[str, Encoder], batch: dict[str, Any], train: bool
) -> dict[str, Any]:
    """Evaluates the encoders in order; each sees the batch and the representations before it."""
    representations: dict[str, Any] = {}
    for name, encoder in encoders.items():
        inputs = [representations[i] if i in representations else batch[i] for i in encoder.inputs]
        representations[name] = encoder.function(module, *inputs, train=train)
    return representations
