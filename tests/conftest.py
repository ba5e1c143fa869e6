"""Shapes in the signatures of the numeric modules are enforced while the tests run."""

import gc
import os
import signal

import pytest
from browser import chromium, show  # noqa: F401  fixtures of several files
from hypothesis import settings
from jaxtyping import install_import_hook

# The same examples on every CI run; new ones whenever a person runs the tests, and what fails then
# is printed as a line that repeats it (@reproduce_failure), to be kept as an @example.
settings.register_profile("ci", derandomize=True, print_blob=True)
settings.register_profile("here", print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# A shell lets what it runs in the background ignore Ctrl-C; here it is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Its asserts say what they compared, as those of a test do.
pytest.register_assert_rewrite("exercise_pages")

install_import_hook(["xb_lite.hidden", "xb_lite.losses.terms"], "beartype.beartype")

# Files with tests of ten seconds. They begin first: at the end one process would wait for another.
LONG = (
    "test_own_model_page",
    "test_training",
    "test_experiments",
    "test_remote",
    "test_evaluation",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """From here on garbage is looked for among what the tests make. The modules are a million
    objects that stay; to look through them takes 0.4 s, several times in a training run."""
    gc.disable()
    found = yield
    gc.collect()
    gc.freeze()
    gc.enable()
    return found


@pytest.fixture(scope="session")
def default_model():
    """The default model in fp32, and its tokenizer; fetched once into the cache."""
    import torch

    from xb_lite.models.loading import load_model
    from xb_lite.models.precision import Precision

    return load_model(precision=Precision("cpu", torch.float32, None, "tests"))


@pytest.fixture(scope="session")
def tokenizer(default_model):
    return default_model[1]


@pytest.fixture(scope="module")
def one_thread():
    """For tiny matrices: on a busy machine threads would only wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def made_up_sets(monkeypatch):
    """Rows of a test's own may have the name of a public set."""
    from xb_lite.data import published

    monkeypatch.setattr(published, "published", dict)
