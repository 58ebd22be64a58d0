"""What a run leaves to read, also after it was killed and went on."""

import json
import subprocess
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from placerec_jax.training.metrics import MetricsLog


def read(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_lines_beyond_the_restored_step_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
    log.write(2, {"eval/error": 9.0})  # never written: it stands after step 3
    log.close()
    log = MetricsLog(tmp_path, 2)
    log.write(3, {"loss": 7.0})
    log.close()
    assert read(tmp_path) == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 0.5},
        {"step": 3, "loss": 7.0},
    ]


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    MetricsLog(tmp_path, 5).close()
    assert read(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_tensorboard_forgets_what_was_not_restored(tmp_path):
    first = MetricsLog(tmp_path, 0)
    for step in (1, 2, 3):
        first.write(step, {"loss": float(step)})
    first.close()
    second = MetricsLog(tmp_path, 2)
    second.write(3, {"loss": 30.0})
    second.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_tensorboard_events_need_no_tensorflow(tmp_path):
    script = (
        "import sys; from placerec_jax.training.metrics import MetricsLog; "
        f"MetricsLog({str(tmp_path)!r}, 0).write(1, {{'loss': 1.0}}); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
