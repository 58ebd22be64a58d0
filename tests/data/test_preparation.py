"""A missing prepared folder is made by the config's commands, or the error says how to make it."""

import ml_collections
import pytest

from placerec_jax.data import preparation
from placerec_jax.data.prepared import PreparedError
from tests.toy.prepared import write_prepared


def config(root, *commands):
    return ml_collections.ConfigDict({"data": {"root": str(root), "prepare": commands}})


def test_a_whole_folder_is_opened_and_nothing_runs(toy_root, monkeypatch):
    monkeypatch.setattr(preparation.subprocess, "run", lambda *_, **__: pytest.fail("ran a command"))
    prepared = preparation.ensure_prepared(config(toy_root, ("no-such-converter",)))
    assert len(prepared.table("frames")) == 32


def test_commands_run_in_turn_and_make_the_folder(tmp_path, monkeypatch):
    root, seen = tmp_path / "prepared", []

    def run(command, check):
        seen.append(command[1:])
        if len(seen) == 2:
            write_prepared(root)
        return preparation.subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(preparation.subprocess, "run", run)
    prepared = preparation.ensure_prepared(config(root, ("city", "--out", "raw"), ("maploc", "--raw", "raw")))
    assert seen == [
        ["-m", "data_prep", "city", "--out", "raw"],
        ["-m", "data_prep", "maploc", "--raw", "raw"],
    ]
    assert prepared.root == root


def test_no_commands(tmp_path):
    with pytest.raises(PreparedError, match=r"prepared: no prepared folder.*python -m data_prep"):
        preparation.ensure_prepared(config(tmp_path / "prepared"))


def test_a_failing_command_is_named(tmp_path):
    with pytest.raises(PreparedError, match=r"-m data_prep no-such-converter` ended with status [1-9]"):
        preparation.ensure_prepared(config(tmp_path / "prepared", ("no-such-converter",)))


def test_commands_that_make_something_else(tmp_path, monkeypatch):
    monkeypatch.setattr(
        preparation.subprocess, "run", lambda c, check: preparation.subprocess.CompletedProcess(c, 0)
    )
    with pytest.raises(PreparedError, match=r"ended well, yet it has no manifest\.json"):
        preparation.ensure_prepared(config(tmp_path / "prepared", ("city",)))
