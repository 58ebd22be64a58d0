"""What all tests share: simulated devices, a compile cache, commands as a user types them, fixtures.

Runs before any test module is imported, so the environment set here reaches JAX, NumPy and TensorFlow before
they start their thread pools, and reaches the processes that tests start.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent

# The tests state what holds on CPU; on a machine with an accelerator they still run there.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compiled programs are shared between tests, workers, commands and runs: most of a cold run is compilation.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CHECKOUT / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    # One worker a core already fills the machine; a thread pool for each library would only make them wait.
    for variable in (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "TF_NUM_INTEROP_THREADS",
        "TF_NUM_INTRAOP_THREADS",
    ):
        os.environ.setdefault(variable, "1")

import jax

# In this process only: a command started by a test sees one device, as on a user's machine.
jax.config.update("jax_num_cpu_devices", 8)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need the second environment are slow ones: `make test` does not build it."""
    for item in items:
        if item.get_closest_marker("interop"):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with pieces of the real datasets; skips where PLACEREC_REAL_DATA is unset."""
    folder = os.environ.get("PLACEREC_REAL_DATA")
    if not folder:
        pytest.skip("PLACEREC_REAL_DATA is unset: no real data on this machine")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"PLACEREC_REAL_DATA={folder} is not a folder; unset it to skip these tests")
    return path


@pytest.fixture(scope="session")
def interop_python() -> Path:
    """The interpreter of .venv-interop, where the datasets' own tools live; skips where it was not made."""
    python = CHECKOUT / ".venv-interop" / "bin" / "python"
    if not python.exists():
        pytest.skip(".venv-interop is absent: make env-interop")
    return python


@pytest.fixture(scope="session")
def command_environment() -> dict[str, str]:
    """The environment of a command started by a test: the checkout is importable from any folder."""
    search_path = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search_path)}


@pytest.fixture(scope="session")
def run_command(command_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_command('-m', 'data_prep', 'check', root)`: this Python with these arguments, from the checkout.

    `expect` is the exit status that must come back (None: any), else the test fails and shows both outputs;
    `cwd` and `env` (added variables) are optional.
    """

    def run(
        *arguments: object,
        expect: int | None = 0,
        timeout: float = 900,  # a safety net only: a busy machine is no failure
        cwd: Path = CHECKOUT,
        env: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**command_environment, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if expect is not None and done.returncode != expect:
            pytest.fail(
                f"{' '.join(command)}\nexit status {done.returncode}, expected {expect}\n"
                f"--- stdout\n{done.stdout[-6000:]}\n--- stderr\n{done.stderr[-6000:]}"
            )
        return done

    return run
