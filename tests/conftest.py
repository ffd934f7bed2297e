"""What every test may rely on: eight simulated CPU devices, a compilation cache, the shared folder."""

import gc
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

assert "jax" not in sys.modules, "a pytest plugin imported jax before its environment was set"

os.environ["JAX_PLATFORMS"] = "cpu"
FLAGS = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):
    # Without these emitters a training step compiles in a third of the time. Other versions may not know the flag.
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(FLAGS).strip()

# Environment variables rather than jax.config, so that the processes that tests start share the cache.
CACHE = os.environ.get("GANTRANSFER_TEST_CACHE") or Path(tempfile.gettempdir()) / f"gantransfer-tests-{os.getuid()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest  # noqa: E402

CHECKOUT = Path(__file__).resolve().parent.parent
# Tests in these folders compile many programs that run for a moment, so optimising them does not pay.
QUICKLY_COMPILED = ("contract", "methods", "models", "pretrained", "runs", "training")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Chooses how programs are compiled, before any fixture compiles one; processes read the environment."""
    import jax

    quickly = item.path.relative_to(CHECKOUT / "tests").parts[0] in QUICKLY_COMPILED
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quickly))
    if jax.config.read("jax_disable_most_optimizations") != quickly:
        jax.config.update("jax_disable_most_optimizations", quickly)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Compiled programs of a file go with it: those of all files together would take 8 GB in each process."""
    yield
    import jax

    jax.clear_caches()
    gc.collect()


@pytest.fixture
def invented_weights(monkeypatch):
    """Fresh sources take weights that need no program to be made."""
    from tests.invented import invented

    monkeypatch.setattr("gantransfer.pretrained.fresh.initial_variables", invented)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data sets, published weights and parity fixtures beside the checkout (or `GANTRANSFER_SHARED`)."""
    folder = Path(os.environ.get("GANTRANSFER_SHARED") or CHECKOUT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"the shared folder {folder} is missing; set GANTRANSFER_SHARED to where it is")
    return folder


@pytest.fixture
def key():
    """A typed random key, the same for every test."""
    import jax

    return jax.random.key(0)
