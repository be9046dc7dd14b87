"""What training on a CPU frees stays with the process, so that its steps meet no page faults."""

import os
import platform
import subprocess
import sys

import pytest

from t5x_lite import allocator

STEPS = """
import resource, sys
from t5x_lite import allocator
if sys.argv[1] == "kept":
    allocator.keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.sin(x) @ jnp.cos(x)).sum())
x = jnp.ones((2048, 2048))
for number in range(30):
    if number == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_the_same_step_again_and_again_meets_no_page_faults():
    """Ten steps with 32 MiB of temporaries are 80,000 pages of 4 KiB where the system gets them back."""

    def faults(*arguments, **settings):
        others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", STEPS, *arguments]
        done = subprocess.run(command, env=others | settings, stdout=subprocess.PIPE, check=True, text=True)
        return int(done.stdout)

    assert faults("returned") > 40_000
    assert faults("kept") < 8_000
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="1000000") > 40_000  # who sets the allocator up is left alone


@pytest.mark.parametrize(
    ("platforms", "devices", "expected"),
    [
        ("cpu", [], True),
        ("cpu", ["nvidia0"], True),
        ("", [], True),
        ("", ["nvidia0"], False),
        ("", ["vfio/0"], False),
        ("tpu,cpu", [], False),
    ],
)
def test_only_where_jax_will_run_on_cpu(tmp_path, monkeypatch, platforms, devices, expected):
    """Beside an accelerator the host's memory has other uses."""
    for device in devices:
        (tmp_path / device).parent.mkdir(exist_ok=True)
        (tmp_path / device).touch()
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(allocator, "_DEVICES", tmp_path)
    assert allocator._will_run_on_cpu() == expected
