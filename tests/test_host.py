"""A process that trains on a CPU keeps the memory it frees; what one command compiled is there for the next."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from t5x_lite import host

STEPS = """
import resource, sys
from t5x_lite import host
if sys.argv[1] == "kept":
    host.keep_freed_memory()
import jax, jax.numpy as jnp
step = jax.jit(lambda x: (jnp.sin(x) @ jnp.cos(x)).sum())
x = jnp.ones((2048, 2048))
for number in range(60):
    if number == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
@pytest.mark.skipif(resource.getpagesize() != 4096, reason="pages of 4 KiB are counted")
@pytest.mark.skipif(HUGE_PAGES.exists() and "[always]" in HUGE_PAGES.read_text(), reason="2 MiB a fault")
def test_the_same_step_again_and_again_meets_no_page_faults():
    """32 MiB of temporaries are 8,192 pages of 4 KiB in each step where the system gets them back."""

    def faults(*arguments, **settings):
        others = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
        command = [sys.executable, "-c", STEPS, *arguments]
        done = subprocess.run(command, env=others | settings, stdout=subprocess.PIPE, check=True, text=True)
        return int(done.stdout)

    returned = faults("returned")
    assert returned > 100_000
    assert faults("kept") < returned / 4
    assert faults("kept", MALLOC_MMAP_THRESHOLD_="1000000") > returned / 2  # who sets the allocator up is left alone


@pytest.mark.parametrize(
    ("platforms", "devices", "expected"),
    [
        ("cpu", [], True),
        ("cpu", ["nvidiactl"], True),
        ("", [], True),
        ("", ["nvidiactl"], False),
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
    monkeypatch.setattr(host, "_DEVICES", tmp_path)
    assert host._will_run_on_cpu() == expected


COMPILES = """
from t5x_lite import host
host.keep_compiled_programs()
import jax, jax.numpy as jnp
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.arange(9.0))), sum(hits))
"""


def test_what_one_command_compiles_the_next_one_reads(tmp_path):
    def run(**settings):
        ours = ("JAX_COMP", "JAX_PERS", "JAX_ENABLE", "TF_CPP")
        others = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        done = subprocess.run(
            [sys.executable, "-c", COMPILES], env=others | settings, capture_output=True, check=True, text=True
        )
        assert not done.stderr
        value, hits = done.stdout.split()
        return value, int(hits)

    first, second = (run(XDG_CACHE_HOME=str(tmp_path)) for _ in range(2))
    assert first[0] == second[0] and first[1] == 0 < second[1]
    (kind,) = (tmp_path / "t5x_lite" / "compiled").iterdir()
    assert kind.name == host._kind_of_cpu()
    assert run(XDG_CACHE_HOME=str(tmp_path), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "mine"))[1] == 0
    assert any((tmp_path / "mine").iterdir())
    (tmp_path / "file").touch()
    assert run(XDG_CACHE_HOME=str(tmp_path / "file")) == (first[0], 0)  # a cache that cannot be made stops nobody


@pytest.mark.parametrize(
    ("devices", "on_accelerators", "named", "kept_in"),
    [
        ([], False, None, "own"),
        (["accel0"], False, None, None),  # whose jobs may have many hosts
        (["accel0"], True, None, "own"),
        (["accel0"], False, "gs://bucket/compiled", "gs://bucket/compiled"),
    ],
)
def test_where_programs_are_kept(tmp_path, monkeypatch, devices, on_accelerators, named, kept_in):
    for device in devices:
        (tmp_path / device).touch()
    environment = {"XDG_CACHE_HOME": str(tmp_path)} | ({"JAX_COMPILATION_CACHE_DIR": named} if named else {})
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(host, "_DEVICES", tmp_path)
    host.keep_compiled_programs(on_accelerators=on_accelerators)
    own = str(tmp_path / "t5x_lite" / "compiled" / host._kind_of_cpu())
    assert environment.get("JAX_COMPILATION_CACHE_DIR") == (own if kept_in == "own" else kept_in)
    assert ("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES" in environment) == bool(named)
    assert ("TF_CPP_MIN_LOG_LEVEL" in environment) == (not devices)  # an accelerator's errors are to be seen


def test_each_kind_of_cpu_has_programs_of_its_own(tmp_path, monkeypatch):
    found = set()
    for flags in ("flags : fpu avx2", "flags : fpu avx2 avx512f", "Features : fp asimd"):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
        monkeypatch.setattr(host, "_CPU_INFO", tmp_path / "cpuinfo")
        found.add(host._kind_of_cpu())
    assert len(found) == 3
    monkeypatch.setattr(host, "_CPU_INFO", tmp_path / "none")
    assert host._kind_of_cpu() not in found
