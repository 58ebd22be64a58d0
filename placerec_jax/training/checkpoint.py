"""Checkpoints: the whole state with the config, the dataset's fingerprint and the scores it belongs to.

`WORKDIR/checkpoints/<step>/` holds the items `variables` (parameters and running statistics), `training`
(step, optimiser state, key) and `about`. Orbax writes to a temporary name and renames, so a folder with a
number is a whole checkpoint. The newest two and the best are kept.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from placerec_jax.errors import UserError
from placerec_jax.training.sharding import leaf_name
from placerec_jax.training.state import TrainState

FOLDER = "checkpoints"
_KEPT = 2  # the newest

# What may differ when a run goes on: where things are and how often one looks, and the devices it runs on.
# Everything else changes what is computed.
_FREE_TO_CHANGE = (
    "workdir",
    "data.root",
    "data.prepare",
    "data.workers",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "mesh",
)
# Settings that are younger than some checkpoints, with the value that does what was done before them.
_ADDED_LATER = {("train", "accumulate"): 1, ("train", "gradients"): "whole", ("optimizer", "groups"): []}
# What must agree for weights to mean the same in another run.
_ARCHITECTURE = ("method", "model")
# Files that training started from, as the contract of methods names their settings: no part of the model.
_STARTED_FROM = re.compile(r"model\.\w+_weights")


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is absent, damaged, or of another run."""


@dataclasses.dataclass(frozen=True)
class About:
    """What is stored beside the arrays of a checkpoint."""

    step: int
    config: dict[str, Any]
    fingerprint: str  # of the prepared folder
    scores: dict[str, float]  # of the evaluation at this step; {} without one


class Checkpointer:
    """Saves and restores the checkpoints of one working directory.

    Args:
        workdir: the run's folder.
        cfg: the resolved config; `eval.best_metric` and `eval.best_mode` ("min" or "max") choose the best.
        fingerprint: of the prepared folder that the run reads.
        writable: for the one run that trains there: it saves, and removes what a killed run left unfinished.
    """

    def __init__(
        self, workdir: str | Path, cfg: ml_collections.ConfigDict, fingerprint: str, *, writable: bool = False
    ) -> None:
        self.folder = Path(workdir).absolute() / FOLDER
        self._writable = writable
        self._config = config_as_json(cfg)
        self._fingerprint = fingerprint
        self._best_metric, self._best_mode = cfg.eval.best_metric, cfg.eval.best_mode
        # Saving waits until the files are in place: whatever is said or deleted next can rely on them.
        options = ocp.CheckpointManagerOptions(
            enable_async_checkpointing=False,
            cleanup_tmp_directories=writable,
            create=writable,
            read_only=not writable,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def close(self) -> None:
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def about(self, step: int) -> About:
        """What is stored beside the arrays of checkpoint `step`."""
        with self._damage_explained(step):
            stored = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
            return About(step, stored["config"], stored["fingerprint"], stored["scores"])

    def best_step(self) -> int | None:
        """The step with the best `eval.best_metric`, the later of equals; None where none has scores."""
        sign = {"min": 1.0, "max": -1.0}[self._best_mode]
        ranked = []
        for step in self.steps():
            value = self.about(step).scores.get(self._best_metric)
            if value is not None and not math.isnan(value):
                ranked.append((sign * value, -step))
        return -min(ranked)[1] if ranked else None

    def save(self, state: TrainState, scores: dict[str, float]) -> None:
        """Writes checkpoint `state.step`, in the place of one that is there already; then deletes all but the
        newest two and the best.

        Raises:
            CheckpointError: opened to read.
        """
        if not self._writable:
            raise CheckpointError(f"{self.folder}: not writable: opened to read.")
        step = int(state.step)
        if step in self.steps():
            self._manager.delete(step)
        about = {"config": self._config, "fingerprint": self._fingerprint, "scores": scores}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                training=ocp.args.StandardSave(_training(state)),
                about=ocp.args.JsonSave(about),
            ),
            force=True,
        )
        self._manager.wait_until_finished()
        steps = self.steps()
        for old in set(steps) - set(steps[-_KEPT:]) - {self.best_step()}:
            self._manager.delete(old)

    def discard_after(self, step: int) -> None:
        """Deletes the checkpoints newer than `step`: the run goes on from there and will write them again."""
        for newer in [s for s in self.steps() if s > step]:
            self._manager.delete(newer)

    def restore(self, abstract: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (default: the newest) with the shardings of `abstract`, to go on with this run.

        Raises:
            CheckpointError: no such checkpoint, a damaged one, or one of another config or dataset; the
                message lists the differences.
        """
        step = self._existing(step)
        about = self.about(step)
        self._refuse_changes(about)
        with self._damage_explained(step):
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(abstract.variables),
                    training=ocp.args.StandardRestore(_training(abstract)),
                ),
            )
        return TrainState(**restored.variables, **restored.training)

    def restore_variables(
        self, abstract: dict[str, Any], which: int | str = "best"
    ) -> tuple[dict[str, Any], About]:
        """{"params", "batch_stats"} to evaluate or export, and where they come from.

        `which` is a step, "last", or "best" (the last where no checkpoint has scores). Only the method and
        the model must be those of this config: other data and other evaluation settings are what evaluation
        is for.

        Raises:
            CheckpointError: no such checkpoint, a damaged one, or one of another model.
        """
        chosen = {"best": self.best_step, "last": lambda: None}[which]() if isinstance(which, str) else which
        step = self._existing(chosen)
        about = self.about(step)
        differences = [
            line
            for line in config_differences(about.config, self._config)
            if (key := line.split(":")[0]).split(".")[0] in _ARCHITECTURE and not _STARTED_FROM.fullmatch(key)
        ]
        if differences:
            raise CheckpointError(
                f"{self.folder / str(step)} holds another model than config describes:\n  "
                + "\n  ".join(differences)
                + "\nGive the config it was trained with (WORKDIR/config.json)."
            )
        with self._damage_explained(step):
            restored = self._manager.restore(
                step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(abstract))
            )
        return restored.variables, about

    def initial_variables(
        self, fresh: dict[str, Any], which: int | str = "best"
    ) -> tuple[dict[str, Any], list[str], list[str]]:
        """`fresh` variables with those replaced that the checkpoint has by the same name and shape.

        For `--init_from`: config and data may differ. Also returns the names that matched, and a line for
        every one that did not, on either side.

        Raises:
            CheckpointError: no such checkpoint, a damaged one, or nothing in it matches.
        """
        chosen = {"best": self.best_step, "last": lambda: None}[which]() if isinstance(which, str) else which
        step = self._existing(chosen)
        with self._damage_explained(step):
            stored = self._manager.item_metadata(step).variables
            replicated = NamedSharding(jax.tree.leaves(fresh)[0].sharding.mesh, PartitionSpec())
            target = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated), stored
            )
            old = self._manager.restore(
                step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(target))
            ).variables
        return _merge(fresh, old, self.folder / str(step))

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.folder}: no checkpoint there. Train first, or name the right --workdir."
            )
        if step is not None and step not in steps:
            raise CheckpointError(f"{self.folder}: no checkpoint of step {step}; there are {steps}.")
        return steps[-1] if step is None else step

    def _refuse_changes(self, about: About) -> None:
        differences = [
            line
            for line in config_differences(_with_added(about.config), self._config)
            if not any(_is_under(line.split(":")[0], free) for free in _FREE_TO_CHANGE)
        ]
        if about.fingerprint != self._fingerprint:
            differences.append(f"dataset fingerprint: {about.fingerprint} → {self._fingerprint}")
        if differences:
            raise CheckpointError(
                f"{self.folder / str(about.step)} belongs to another run (checkpoint → now):\n  "
                + "\n  ".join(differences)
                + "\nGo on with the old settings, choose another --workdir, or start from its weights with "
                f"--init_from={self.folder.parent} and another --workdir."
            )

    def _damage_explained(self, step: int) -> "_DamageExplained":
        return _DamageExplained(self.folder, step, [s for s in self.steps() if s != step])


class _DamageExplained:
    """Turns what Orbax says about unreadable files into a CheckpointError with the ways out."""

    def __init__(self, folder: Path, step: int, others: list[int]) -> None:
        self._folder, self._step, self._others = folder, step, others

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, CheckpointError):
            return
        way_out = (
            f"Go on from another with --restore_step={self._others[-1]} (there are {self._others})."
            if self._others
            else "There is no other checkpoint: copy it again or choose another --workdir."
        )
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
        raise CheckpointError(
            f"{self._folder / str(self._step)}: damaged or of another version; expected a readable "
            f"checkpoint, found {type(error).__name__}: {first_line[:500]}. {way_out}"
        ) from error


def config_as_json(cfg: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as JSON would give it back: plain dicts and lists."""
    return json.loads(cfg.to_json_best_effort())


def config_differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Lines `dotted.key: old → new`, in the order of the keys."""
    lines = []
    for key in sorted(old.keys() | new.keys()):
        name, before, after = prefix + key, old.get(key, "absent"), new.get(key, "absent")
        if isinstance(before, dict) and isinstance(after, dict):
            lines += config_differences(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name}: {before} → {after}")
    return lines


def _with_added(old: dict[str, Any]) -> dict[str, Any]:
    """The config of a checkpoint with the settings that it is too old to have."""
    sections = {name: {**old.get(name, {})} for name, _ in _ADDED_LATER}
    for (section, key), value in _ADDED_LATER.items():
        sections[section].setdefault(key, value)
    return {**old, **sections}


def _is_under(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def _training(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state, "rng": state.rng}


def _merge(
    fresh: dict[str, Any], old: dict[str, Any], source: Path
) -> tuple[dict[str, Any], list[str], list[str]]:
    available = {leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    matched, unmatched = [], []

    def choose(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = leaf_name(path)
        found = available.pop(name, None)
        if found is None:
            unmatched.append(f"{name}: not in the checkpoint, stays as initialised")
            return leaf
        if found.shape != leaf.shape:
            unmatched.append(
                f"{name}: {list(found.shape)} in the checkpoint, {list(leaf.shape)} in the model"
            )
            return leaf
        matched.append(name)
        return jax.device_put(found.astype(leaf.dtype), leaf.sharding)

    merged = jax.tree_util.tree_map_with_path(choose, fresh)
    unmatched += [f"{name}: only in the checkpoint" for name in available]
    if not matched:
        raise CheckpointError(
            f"{source}: none of its {len(unmatched)} arrays has a name and shape of this model."
        )
    return merged, matched, unmatched
