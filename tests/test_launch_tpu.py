"""launch_tpu.sh against a recorded gcloud: which commands it gives, in which order, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "launch_tpu.sh"

# Appends its arguments to calls.jsonl and answers from answers.json:
# {"words of the command": [[status, output], ...]}, one answer a call, the last one for ever.
FAKE_GCLOUD = f"""#!{sys.executable}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
with open(folder / "calls.jsonl", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
answers = json.loads((folder / "answers.json").read_text())
for words, replies in answers.items():
    if words in " ".join(sys.argv[1:]):
        status, output = replies.pop(0) if len(replies) > 1 else replies[0]
        (folder / "answers.json").write_text(json.dumps(answers))
        print(output)
        sys.exit(status)
"""

TRAIN = ("--", "python", "-m", "placerec_jax.train", "--config=a b")


class Launcher:
    """Runs the script with the recorded gcloud first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        gcloud = folder / "gcloud"
        gcloud.write_text(FAKE_GCLOUD)
        gcloud.chmod(0o755)
        self.answer({})

    def answer(self, answers: dict[str, list[tuple[int, str]]]) -> None:
        (self.folder / "answers.json").write_text(json.dumps(answers))

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "LAUNCH_TPU_POLL_SECONDS": "0",
            "TMPDIR": str(self.folder),
        }
        return subprocess.run(
            [str(SCRIPT), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self) -> list[list[str]]:
        recorded = self.folder / "calls.jsonl"
        return [json.loads(line) for line in recorded.read_text().splitlines()] if recorded.exists() else []

    def verbs(self) -> list[str]:
        return [call[3] for call in self.calls()]


@pytest.fixture
def launch(tmp_path: Path) -> Launcher:
    return Launcher(tmp_path)


def test_create_asks_for_the_slice_and_waits_until_it_is_active(launch: Launcher) -> None:
    launch.answer({"describe": [(0, "WAITING_FOR_RESOURCES"), (0, "PROVISIONING"), (0, "ACTIVE")]})
    done = launch(
        "create", "bev", "--zone", "us-west4-a", "--type", "v5litepod-16", "--spot", "--project", "p"
    )
    assert done.returncode == 0, done.stderr
    first, *polls = launch.calls()
    expected = "compute tpus queued-resources create bev --node-id bev --accelerator-type v5litepod-16"
    expected += " --runtime-version v2-alpha-tpuv5-lite --spot --zone us-west4-a --project p"
    assert " ".join(first) == expected
    assert [call[3] for call in polls] == ["describe"] * 3
    assert "PROVISIONING" in done.stdout


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_stops_when_the_request_ends_otherwise(launch: Launcher, state: str) -> None:
    launch.answer({"describe": [(0, state)]})
    done = launch("create", "bev", "--zone", "us-west4-a", "--type", "v4-8")
    assert done.returncode != 0
    assert state in done.stderr


def test_setup_copies_the_checkout_to_all_hosts_and_makes_the_environment(launch: Launcher) -> None:
    done = launch("setup", "bev", "--zone", "us-west4-a")
    assert done.returncode == 0, done.stderr
    copy, make = launch.calls()
    assert copy[3] == "scp"
    assert copy[5] == "bev:checkout.tar.gz"
    assert copy[6:8] == make[5:7] == ["--worker", "all"]
    assert make[make.index("--command") + 1].endswith("make env")
    assert not list(launch.folder.glob("checkout-*")), "the archive is left behind"


def test_run_quotes_the_program_and_returns_its_status(launch: Launcher) -> None:
    launch.answer({"tpu-vm ssh": [(0, "")]})
    assert launch("run", "bev", "--zone", "us-west4-a", *TRAIN).returncode == 0
    (call,) = launch.calls()
    assert "python -m placerec_jax.train --config=a\\ b" in call[call.index("--command") + 1]
    assert call[call.index("--worker") + 1] == "all"


def test_program_that_fails_on_a_healthy_slice_is_not_started_again(launch: Launcher) -> None:
    launch.answer({"tpu-vm ssh": [(3, "")], "tpu-vm describe": [(0, "READY")]})
    done = launch("run", "bev", "--zone", "us-west4-a", "--type", "v5litepod-16", "--spot", *TRAIN)
    assert done.returncode == 3
    assert launch.verbs() == ["ssh", "describe"]


def test_preempted_slice_is_made_again_and_the_same_program_started(launch: Launcher) -> None:
    launch.answer(
        {
            "tpu-vm ssh": [(255, ""), (0, ""), (0, "")],
            "tpu-vm describe": [(0, "PREEMPTED")],
            "queued-resources describe": [(0, "ACTIVE")],
        }
    )
    done = launch("run", "bev", "--zone", "us-west4-a", "--type", "v5litepod-16", "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert launch.verbs() == ["ssh", "describe", "delete", "create", "describe", "scp", "ssh", "ssh"]
    assert launch.calls()[0] == launch.calls()[-1]


def test_preemption_gives_up_after_the_restarts_asked_for(launch: Launcher) -> None:
    launch.answer(
        {
            "make env": [(0, "")],
            "tpu-vm ssh": [(255, "")],
            "tpu-vm describe": [(1, "")],  # no such slice any more
            "queued-resources describe": [(0, "SUSPENDED"), (0, "ACTIVE")] * 2 + [(0, "SUSPENDED")],
        }
    )
    done = launch("run", "bev", "--zone", "us-west4-a", "--type", "v4-8", "--spot", "--restarts", "2", *TRAIN)
    assert done.returncode == 255
    assert launch.verbs().count("create") == 2


def test_slice_is_not_deleted_when_its_state_cannot_be_told(launch: Launcher) -> None:
    launch.answer({"tpu-vm ssh": [(255, "")], "describe": [(1, "")]})
    done = launch("run", "bev", "--zone", "us-west4-a", "--type", "v4-8", "--spot", *TRAIN)
    assert done.returncode == 255
    assert "unknown" in done.stderr
    assert "delete" not in launch.verbs()


def test_logs_and_delete(launch: Launcher) -> None:
    assert launch("logs", "bev", "--zone", "us-west4-a", "--worker", "3").returncode == 0
    assert launch("delete", "bev", "--zone", "us-west4-a").returncode == 0
    logs, delete = launch.calls()
    assert logs[logs.index("--worker") + 1] == "3"
    assert delete[2:5] == ["queued-resources", "delete", "bev"]
    assert "--force" in delete


@pytest.mark.parametrize(
    "arguments",
    [("create", "--type", "v4-8"), ("setup",), ("run", *TRAIN), ("logs",), ("delete",)],
    ids=lambda arguments: arguments[0],
)
def test_dry_run_prints_the_commands_and_gives_none(launch: Launcher, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments
    done = launch(command, "bev", "--zone", "us-west4-a", "--dry-run", *rest)
    assert done.returncode == 0, done.stderr
    assert "+ gcloud compute tpus" in done.stderr
    assert launch.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "create NAME"),
        ("start bev --zone us-west4-a", "unknown command start"),
        ("create Bev --zone us-west4-a --type v4-8", "NAME 'Bev'"),
        ("create --zone us-west4-a --type v4-8", "NAME ''"),
        ("create bev --type v4-8", "--zone ''"),
        ("create bev --zone uswest --type v4-8", "--zone 'uswest'"),
        ("create bev --zone us-west4-a", "--type ''"),
        ("create bev --zone us-west4-a --type h100-8", "--type 'h100-8'"),
        ("create bev --zone", "--zone needs a value"),
        ("create bev --zone us-west4-a --type v4-8 --fast", "unknown option --fast"),
        ("run bev --zone us-west4-a", "run needs a program"),
        ("run bev --zone us-west4-a --spot -- x", "--type ''"),
        ("run bev --zone us-west4-a python train.py", "comes after --"),
        ("delete bev --zone us-west4-a -- x", "delete takes no program"),
        ("logs bev --zone us-west4-a --worker all", "--worker 'all'"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_is_called(
    launch: Launcher, arguments: str, message: str
) -> None:
    done = launch(*arguments.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert launch.calls() == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", ["launch_tpu.sh", ".ci/run"])
def test_shellcheck(script: str) -> None:
    done = subprocess.run(["shellcheck", SCRIPT.parent / script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
