"""Every test sees 8 virtual CPU devices; flags must stand before jax is imported."""

import contextlib
import os

import pytest
from hypothesis import settings

settings.register_profile("thorough", max_examples=10_000)

# Compiling is most of what tests do: with less care it takes two thirds of the time (tests/model/test_compiled.py takes
# the care of a user's run).
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # PyTorch's models here are tiny: its threads cost more than they do

os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # tests kill commands, and a program half kept is a warning

# PyTorch loads it late, and where TensorFlow was loaded before, that is a segmentation fault.
with contextlib.suppress(ImportError):
    import triton  # noqa: F401


@pytest.fixture
def compilations():
    """Every program that JAX itself says it has compiled."""
    import jax

    seen = []

    def listen(event, _, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
