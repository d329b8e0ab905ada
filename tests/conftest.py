"""What all tests share: the CPU, a compilation cache, strict shapes, and an honest summary."""

import gc
import hashlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import urllib.request
import uuid
from pathlib import Path

# Before jax, matplotlib and the Hugging Face libraries are imported, here or in a child process:
# the tests give the same answer on every machine, open no window and reach no network.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # the tests' server speaks JSON, no gRPC

from tests.processes import NO_EMITTERS

os.environ.setdefault("XLA_FLAGS", NO_EMITTERS)

import hypothesis
import jax
import pytest

TESTS = Path(__file__).resolve().parent
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
HAS_LMMS = importlib.util.find_spec("lmms_eval") is not None
COMPILED_QUICKLY = (
    *(f"vvlm_jax/{room}" for room in ("data", "eval", "generate", "models", "train", "weights")),
    *(f"tools/test_{name}.py" for name in ("bench_train", "evaluate", "generate", "train")),
    "tools/convert",
)
LEFT_OUT = pytest.StashKey[dict[str, str]]()

# The same examples every time (others with --hypothesis-profile=others), however long they take:
# the first one compiles.
PATIENT = dict(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("fixed", derandomize=True, **PATIENT)
hypothesis.settings.register_profile("others", **PATIENT)
hypothesis.settings.load_profile("fixed")


def _machine():
    """Return a short name of this kind of CPU: compiled code is not shared with another kind."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else platform.processor()
    kinds = {line for line in text.splitlines() if line.startswith(("model name", "flags"))}
    return hashlib.sha256(repr((platform.machine(), sorted(kinds))).encode()).hexdigest()[:12]


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of background jobs; children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[LEFT_OUT] = {}
    if hasattr(config, "cache"):
        # By config and not by environment: child processes, which some tests kill, write none.
        cache = config.cache.mkdir(f"jax-{jax.__version__}-{_machine()}")
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(config, items):
    for item in items:
        slow = item.get_closest_marker("slow")
        if slow is not None and not slow.kwargs.get("reason"):
            raise pytest.UsageError(f'{item.nodeid}: say why, as in @pytest.mark.slow(reason="…")')
        if item.get_closest_marker("torch") and not HAS_TORCH:
            reason = "needs PyTorch: pip install -r tests/requirements-torch.txt"
            item.add_marker(pytest.mark.skip(reason=reason))
        if item.get_closest_marker("tpu") and not HAS_LIBTPU:
            item.add_marker(pytest.mark.skip(reason="needs libtpu: make test-tpu"))
        if item.get_closest_marker("lmms") and not HAS_LMMS:
            item.add_marker(pytest.mark.skip(reason="needs LMMs-Eval: make test-lmms"))
    # Files with slow tests first: with what is short at the end no process waits for another.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_deselected(items):
    for item in items:
        if why := _why_left_out(item):
            item.config.stash[LEFT_OUT][item.nodeid] = why


def _why_left_out(item):
    slow = item.get_closest_marker("slow")
    if slow is not None:
        return f"slow: {slow.kwargs['reason']}"
    return "compares with PyTorch" if item.get_closest_marker("torch") else None


def pytest_sessionfinish(session):
    """Pass on which tests were left out; with `pytest -n` every worker leaves out the same."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    output = getattr(node, "workeroutput", {})
    node.config.stash[LEFT_OUT].update(output.get("left_out", {}))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config):
    """Name every test that `-m 'not …'` left out, and why."""
    left_out = config.stash[LEFT_OUT]
    if left_out and "not " in config.option.markexpr:
        terminalreporter.section(f"{len(left_out)} not run, by -m {config.option.markexpr!r}")
        for name, why in sorted(left_out.items()):
            terminalreporter.write_line(f"NOT RUN {name} - {why}")


@pytest.fixture(autouse=True, scope="module")
def _no_silent_broadcast(request):
    """Make it an error, in the tests of vvlm_jax, to add arrays of different rank."""
    if TESTS / "vvlm_jax" in request.path.parents:
        with jax.numpy_rank_promotion("raise"):
            yield
    else:
        yield


@pytest.fixture(autouse=True, scope="module")
def _few_optimisations(request):
    """Compile quickly where compiling takes most time. Comparisons with other implementations
    are compiled as users' programs are.
    """
    path = request.path
    quickly = any(path.is_relative_to(TESTS / room) for room in COMPILED_QUICKLY)
    if quickly and path.name != "test_torch_parity.py":
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)
    else:
        yield


@pytest.fixture(scope="module")
def collected():
    """Collect garbage after a file whose broken objects warn when they are deleted: the warnings
    would fail a test of the next file.
    """
    yield
    gc.collect()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Return the folder of a model with random parameters and a byte-level tokenizer."""
    from tests.vvlm_jax.byte_level import save_byte_level
    from tests.vvlm_jax.random_model import random_model
    from vvlm_jax.data import tokenizer
    from vvlm_jax.train.model_dir import save_params

    folder = tmp_path_factory.mktemp("model")
    save_byte_level(folder, tokenizer.FAMILIES["llama3"].values())
    save_params(folder, random_model(folder, tokenizer.load(folder)))
    return folder


@pytest.fixture(scope="session")
def object_server():
    """Start a server of gs:// and s3://; `ask(next=["lost"], …)` sets faults, `ask()` returns
    request counts.
    """
    for name in ("moto", "boto3", "google.cloud.storage"):
        parent = name.partition(".")[0]
        if not importlib.util.find_spec(parent) or not importlib.util.find_spec(name):
            pytest.skip(f"needs {name}: pip install -r tests/requirements.txt")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.vvlm_jax.storage.object_server"],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    address = f"http://127.0.0.1:{server.stdout.readline().strip()}"

    def ask(**options) -> dict:
        data = json.dumps(options).encode() if options else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{address}/control", data, headers)
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    with pytest.MonkeyPatch.context() as patch:
        for variable in ("STORAGE_EMULATOR_HOST", "AWS_ENDPOINT_URL"):
            patch.setenv(variable, address)
        for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(variable, "key")
        patch.setenv("NO_GCE_CHECK", "true")  # no credentials of Google's are looked for
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield ask
    server.kill()
    server.communicate()


@pytest.fixture
def server(object_server):
    """Return the object server, without faults before and after the test."""
    object_server(share=0)
    yield object_server
    object_server(share=0)


@pytest.fixture(params=["gs", "s3"])
def service(request, server, tmp_path, monkeypatch):
    """Return the URL of a bucket folder over HTTP, one for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return f"{request.param}://bucket/{uuid.uuid4().hex[:8]}"
