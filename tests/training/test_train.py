"""`python -m placerec_jax.train` as users run it: killed, stopped, refused, on bad data, on more devices."""

import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy
import tensorstore

from tests.toy.prepared import write_prepared

CHECKOUT = Path(__file__).parents[2]
TOY = CHECKOUT / "tests" / "toy"
METHODS = sorted(path for path in (CHECKOUT / "configs").glob("*.py") if path.stem != "common")


class Trainer:
    """Starts training runs of one config; every workdir is its own."""

    def __init__(
        self, environment: dict[str, str], module: list[str], config: str, *options: str, cwd: Path = CHECKOUT
    ) -> None:
        self._environment, self._cwd = environment, cwd
        self._command = [sys.executable, *module, f"--config={config}", *options]

    def start(self, workdir: Path, *options: str) -> subprocess.Popen:
        command = [*self._command, f"--workdir={workdir}", *options]
        return subprocess.Popen(
            command,
            cwd=self._cwd,
            env=self._environment,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as in a terminal
        )

    def run(self, workdir: Path, *options: str, expect: int = 0) -> str:
        """Runs to the end; what it said."""
        process = self.start(workdir, *options)
        said = process.communicate(timeout=400)[1]
        assert process.returncode == expect, said[-4000:]
        return said


@pytest.fixture(scope="module")
def toy(toy_root, command_environment) -> Trainer:
    return Trainer(command_environment, [str(TOY / "run.py")], f"{TOY / 'config.py'}:{toy_root}")


class Finished(NamedTuple):
    workdir: Path
    said: str


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory) -> Finished:
    """A run that was never stopped; copy its workdir before going on in it."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    return Finished(workdir, toy.run(workdir))


def metrics(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def lines(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for_lines(process: subprocess.Popen, workdir: Path, count: int) -> None:
    deadline = time.monotonic() + 400
    while lines(workdir) < count and process.poll() is None:
        assert time.monotonic() < deadline, f"{lines(workdir)} lines of metrics after 400 s, expected {count}"
        time.sleep(0.005)


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by name, read with TensorStore alone."""
    found = {}
    for item in ("variables", "training"):
        store = {"driver": "ocdbt", "base": f"file://{checkpoint / item}"}
        names = {
            key.decode().rsplit("/", 1)[0] for key in tensorstore.KvStore.open(store).result().list().result()
        }
        for name in names:
            spec = {"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}}
            found[f"{item}/{name}"] = tensorstore.open(spec, read=True).result().read().result()
    return found


def assert_same_run(workdir: Path, reference: Path) -> None:
    """Same log, same checkpoints, same bits."""
    assert (workdir / "metrics.jsonl").read_text() == (reference / "metrics.jsonl").read_text()
    steps = sorted(int(p.name) for p in (reference / "checkpoints").iterdir() if p.name.isdigit())
    assert sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()) == steps
    expected = arrays(reference / "checkpoints" / str(steps[-1]))
    found = arrays(workdir / "checkpoints" / str(steps[-1]))
    assert found.keys() == expected.keys()
    assert len(found) > 10
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def kill_and_resume(trainer: Trainer, reference: Path, workdir: Path, kills: int, earliest: int) -> None:
    """Kills a run at random moments, lets it finish, and compares it with `reference`, never stopped.

    A moment is a number of lines in the log; from `earliest` on there is a checkpoint.
    """
    moments = sorted(random.sample(range(earliest, lines(reference)), kills))
    for moment in moments:
        process = trainer.start(workdir)
        wait_for_lines(process, workdir, moment)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    said = trainer.run(workdir)
    assert "going on from step" in said
    assert_same_run(workdir, reference)


def test_a_killed_run_resumes_to_the_same_bits(toy, finished, tmp_path):
    kill_and_resume(toy, finished.workdir, tmp_path / "killed", kills=2, earliest=6)


def test_sigterm_saves_and_the_same_command_goes_on(toy, finished, tmp_path):
    workdir = tmp_path / "stopped"
    process = toy.start(workdir)
    wait_for_lines(process, workdir, 3)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == os.EX_TEMPFAIL, said
    assert "SIGTERM: finishing this step and saving" in said
    step = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
    assert f"stopped and saved at step {step} of 40; the same command goes on from there" in said
    assert 3 <= step < 40
    assert metrics(workdir)[-1]["step"] == step
    assert f"going on from step {step}" in toy.run(workdir)
    assert_same_run(workdir, finished.workdir)


def test_a_second_interrupt_exits_at_once(toy, tmp_path):
    process = toy.start(tmp_path / "run", "--config.train.steps=100000")
    wait_for_lines(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    # EX_TEMPFAIL: the first was already obeyed.
    assert process.returncode in (-signal.SIGINT, os.EX_TEMPFAIL)


def test_what_a_run_says_and_leaves(finished):
    workdir, said = finished
    assert "33,194 parameters on 1 x cpu" in said
    assert "batch 8, 8 a device" in said
    losses = [line["loss"] for line in metrics(workdir) if "loss" in line]
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    scores = {line["step"]: line["eval/error"] for line in metrics(workdir) if "eval/error" in line}
    assert list(scores) == [10, 20, 30, 40]
    best = min(scores, key=scores.get)
    kept = {int(p.name) for p in (workdir / "checkpoints").iterdir()}
    assert kept == {35, 40, best}
    assert json.loads((workdir / "config.json").read_text())["train"]["batch_size"] == 8
    timing = [json.loads(line) for line in (workdir / "timing.jsonl").read_text().splitlines()]
    assert all(line["examples_per_second"] > 0 and 0 <= line["input_wait"] <= 1 for line in timing)


def test_a_finished_run_has_nothing_to_do(toy, finished):
    before = (finished.workdir / "metrics.jsonl").read_text()
    assert "done: step 40" in toy.run(finished.workdir)
    assert (finished.workdir / "metrics.jsonl").read_text() == before


def test_a_changed_config_is_refused(toy, finished):
    said = toy.run(finished.workdir, "--config.seed=1", expect=1)
    assert "error: " in said
    assert "seed: 0 → 1" in said
    assert "Traceback" not in said


def test_init_from_starts_a_new_run_from_old_weights(toy, finished, tmp_path):
    said = toy.run(
        tmp_path / "new", f"--init_from={finished.workdir}", "--config.train.steps=2", "--config.seed=9"
    )
    assert "arrays match" in said
    first = metrics(tmp_path / "new")[0]["loss"]
    assert first < 0.5 * metrics(finished.workdir)[0]["loss"]


def test_published_weights_begin_a_run_once_and_are_written_down(
    toy, toy_root, tmp_path, command_environment
):
    """On (data=4, fsdp=2), with nothing to learn, what is in the checkpoint is what was in the file."""
    weights = tmp_path / "conv.safetensors"
    kernel = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)  # torch: out, in, h, w
    safetensors.numpy.save_file({"stem.weight": kernel, "classifier.bias": np.zeros(3)}, weights)
    environment = {**command_environment, "JAX_NUM_CPU_DEVICES": "8"}
    eight = Trainer(environment, [str(TOY / "run.py")], f"{TOY / 'config.py'}:{toy_root}")
    still = ("--config.optimizer.learning_rate=0", "--config.train.steps=5", "--config.mesh.fsdp=2")
    setting = f"--config.model.conv_weights={weights}"
    workdir = tmp_path / "run"

    said = eight.run(workdir, *still, setting)
    assert f"conv: 1 arrays from {weights} (torchtoy)" in said
    assert "not needed, the classifier: classifier.bias" in said
    found = arrays(workdir / "checkpoints" / "5")["variables/params.conv.kernel"]
    np.testing.assert_array_equal(found, kernel.transpose(2, 3, 1, 0))
    record = json.loads((workdir / "pretrained.json").read_text())
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    expected = {"file": weights.name, "sha256": digest, "library": "torchtoy", "arrays": 1}
    assert record == {"conv": expected}

    untrained = ("--config.train.steps=0", "--config.mesh.fsdp=2", setting)
    eight.run(tmp_path / "untrained", *untrained)
    kept = tmp_path / "untrained" / "checkpoints" / "0"
    np.testing.assert_array_equal(arrays(kept)["variables/params.conv.kernel"], kernel.transpose(2, 3, 1, 0))
    assert "eval/error" in metrics(tmp_path / "untrained")[0]
    assert "going on from step 0" in eight.run(tmp_path / "untrained", *untrained)

    weights.unlink()  # who goes on has the checkpoint
    said = eight.run(workdir, *still, setting)
    assert "going on from step 5" in said
    assert weights.name not in said.split("going on from step 5")[1]
    assert f"{weights}: cannot be read: No such file" in eight.run(
        tmp_path / "new", *still, setting, expect=1
    )
    said = toy.run(tmp_path / "new", "--config.train.steps=1")
    assert "conv: trained from scratch (config.model.conv_weights is empty)" in said


def test_restore_step_goes_back(toy, finished, tmp_path):
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    said = toy.run(workdir, "--restore_step=35")
    assert "going on from step 35" in said
    assert_same_run(workdir, finished.workdir)


def test_bad_data_stops_the_run_and_is_named(toy_root, tmp_path, command_environment):
    root = write_prepared(tmp_path / "prepared", nan=5)
    trainer = Trainer(command_environment, [str(TOY / "run.py")], f"{TOY / 'config.py'}:{root}")
    said = trainer.run(tmp_path / "run", "--config.train.checkpoint_every=1", expect=1)
    assert "batch/target is not finite" in said
    bad = int(said.split("error: step ")[1].split(":")[0])
    assert 1 <= bad <= 3  # 24 examples in batches of 8
    kept = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert all(step < bad for step in kept)


def test_absent_data_names_the_remedy(tmp_path, command_environment):
    trainer = Trainer(
        command_environment, [str(TOY / "run.py")], f"{TOY / 'config.py'}:{tmp_path / 'absent'}"
    )
    said = trainer.run(tmp_path / "run", expect=1)
    assert f"error: {tmp_path / 'absent'}: no prepared folder there" in said
    assert "python -m data_prep" in said


def test_a_run_moves_to_eight_devices(toy_root, finished, tmp_path, command_environment):
    """From step 35 on it computes on (data=4, fsdp=2) what it computed on one device."""
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    environment = {**command_environment, "JAX_NUM_CPU_DEVICES": "8"}
    trainer = Trainer(environment, [str(TOY / "run.py")], f"{TOY / 'config.py'}:{toy_root}")
    said = trainer.run(workdir, "--restore_step=35", "--config.mesh.fsdp=2")
    assert "on 8 x cpu (mesh {'data': 4, 'fsdp': 2}" in said
    assert "batch 8, 1 a device" in said
    for one, eight in zip(metrics(finished.workdir), metrics(workdir), strict=True):
        assert eight == pytest.approx(one, rel=1e-4)


@pytest.mark.slow
def test_two_processes_train_like_one_and_stop_together(toy_root, finished, tmp_path, command_environment):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    trainers = [
        Trainer(
            {
                **command_environment,
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": str(number),
            },
            [str(TOY / "run.py")],
            f"{TOY / 'config.py'}:{toy_root}",
            "--distributed",
        )
        for number in range(2)
    ]
    workdir = tmp_path / "run"
    # Only the second is told to stop; both do, at the same step.
    processes = [trainer.start(workdir) for trainer in trainers]
    wait_for_lines(processes[0], workdir, 12)
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [os.EX_TEMPFAIL] * 2, said
    assert "stopped and saved at step" in said[0]
    # Both go on to the end.
    processes = [trainer.start(workdir) for trainer in trainers]
    said = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert "going on from step" in said[0]
    assert "batch 8, 4 a device" in said[0]
    for one, two in zip(metrics(finished.workdir), metrics(workdir), strict=True):
        assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_worker_processes_change_nothing(toy, finished, tmp_path):
    workdir = tmp_path / "run"
    process = toy.start(workdir, "--config.data.workers=2")
    wait_for_lines(process, workdir, 8)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches the workers, too
    said = process.communicate(timeout=60)[1]
    assert process.returncode == os.EX_TEMPFAIL, said
    assert "KeyboardInterrupt" not in said
    toy.run(workdir, "--config.data.workers=2")
    assert_same_run(workdir, finished.workdir)


def test_a_run_stopped_where_an_evaluation_was_due_makes_up_for_it(toy, finished, tmp_path):
    """The state that a signal leaves at a step: a checkpoint without scores and a log without them."""
    workdir = shutil.copytree(finished.workdir, tmp_path / "run")
    about = workdir / "checkpoints" / "40" / "about" / "metadata"
    about.write_text(json.dumps({**json.loads(about.read_text()), "scores": {}}))
    log = [line for line in metrics(workdir) if (line["step"], "eval/error" in line) != (40, True)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    toy.run(workdir)
    assert_same_run(workdir, finished.workdir)


@pytest.mark.slow
@pytest.mark.parametrize("config", METHODS, ids=lambda path: path.stem)
def test_every_method_resumes_to_the_same_bits_and_moves_to_eight_devices(
    config, tmp_path, command_environment
):
    module, arguments = ["-m", "placerec_jax.train"], f"{config}:tiny"
    reference = tmp_path / "reference"
    trainer = Trainer(command_environment, module, arguments, cwd=tmp_path)
    trainer.run(reference)  # prepares the data, too
    kill_and_resume(trainer, reference, tmp_path / "killed", kills=1, earliest=5)

    moved = shutil.copytree(reference, tmp_path / "moved")
    middle = min(int(p.name) for p in (moved / "checkpoints").iterdir())
    environment = {**command_environment, "JAX_NUM_CPU_DEVICES": "8"}
    options = (f"--restore_step={middle}", "--config.mesh.fsdp=2", "--config.mesh.fsdp_min_size=512")
    said = Trainer(environment, module, arguments, cwd=tmp_path).run(moved, *options)
    assert "on 8 x cpu (mesh {'data': 4, 'fsdp': 2}" in said
    for one, eight in zip(metrics(reference), metrics(moved), strict=True):
        assert eight == pytest.approx(one, rel=1e-2)
