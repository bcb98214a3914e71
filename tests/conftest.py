"""For every test: loopback only, here and in child processes, and the place of the published vectors."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
GUARD = ROOT / "tests" / "guard"


def _load_guard():
    """The guard module: the one that Python imported at start-up in a child (pytest-xdist's workers
    are children), else loaded here under a name of its own, since sitecustomize may be another's."""
    present = sys.modules.get("sitecustomize")
    if getattr(present, "LoopbackOnly", None) is not None:
        return present
    spec = importlib.util.spec_from_file_location("ktlog_loopback_guard", GUARD / "sitecustomize.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _put_on_child_path() -> None:
    """Children find the guard first, then this source tree, then what was there before."""
    wanted = [str(GUARD), str(ROOT)]
    present = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    os.environ["PYTHONPATH"] = os.pathsep.join(wanted + [entry for entry in present if entry not in wanted])


# A slow machine is no failure, and what lands is judged by the same examples as what was tried. KTLOG_FUZZ=N looks
# further: other examples each time, and N times as many where a test counts them.
settings.register_profile(
    "ktlog", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="KTLOG_FUZZ" not in os.environ
)
settings.load_profile("ktlog")

_guard = _load_guard()
_guard.install()
_put_on_child_path()


@pytest.fixture
def loopback_guard():
    """The guard itself: ``.refused`` lists what this process was refused, ``.LoopbackOnly`` is the error."""
    del _guard.refused[:]
    yield _guard
    del _guard.refused[:]


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The directory of the published vectors, which stay where they are and are not part of this project."""
    directory = ROOT.parent / "shared" / "vectors"
    if not directory.is_dir():
        pytest.skip("the published vectors (../shared/vectors) are not on this machine")
    return directory


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory):
    """The run's PostgreSQL server, a ``tests.postgres_server.Cluster``; the workers of one run share it."""
    from tests.machine import need
    from tests.postgres_server import shared_cluster

    need("postgres")
    base = tmp_path_factory.getbasetemp()
    with shared_cluster(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres) -> Iterator[str]:
    """The URL of an empty database on it."""
    url = postgres.new_database()
    yield url
    postgres.drop_database(url)


def pytest_make_parametrize_id(config, val, argname):
    """An id without a memory address: workers of one run must all collect the same names."""
    return argname if " at 0x" in repr(val) else None
