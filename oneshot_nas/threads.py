"""Threads of a process, set before MXNet is imported, what it may use, and an import of MXNet that says what is missing."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from oneshot_nas.errors import UserError
from oneshot_nas.memory import keep_freed_memory

VARIABLES = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "MXNET_CPU_PARALLEL_SIZE",
             "MXNET_CPU_WORKER_NTHREADS", "MXNET_ENGINE_TYPE")
OURS = "ONESHOT_NAS_"  # before a variable's name: what we set, so that child processes and `doctor` can tell it from the user's
SPINS = 20000  # turns that a waiting thread spins before it sleeps, some 50 microseconds
COPIES = 2_000_000_000  # elements from which on MXNet copies an array by several threads


def configure_threads(processes: int = 1) -> dict[str, dict[str, str | None]]:
    """Set OMP_NUM_THREADS to this process's share of the usable cores, GOMP_SPINCOUNT and MXNET_CPU_PARALLEL_SIZE; return all
    variables and who set them.

    `processes` work at the same time on this machine. A value that the user has set stays. Call it before MXNet is imported:
    afterwards nothing is set, since it would have no effect. MXNet's and NumPy's OpenBLAS follow OMP_NUM_THREADS too.

    More threads than cores make training 2 to 3 times slower; without the variable MXNet sees the machine's cores, not the share
    that a container's CPU quota leaves.

    GOMP_SPINCOUNT bounds how long a thread that waits for the others burns its core. MXNet's engine has several threads with a
    team each; by default they spin for milliseconds and take the cores from one another, and from every other process: a
    training step on two cores was measured at 55 to 570 images/s by chance, with 20,000 spins at 410 to 570. Where
    OMP_WAIT_POLICY is set, it decides.

    MXNET_CPU_PARALLEL_SIZE keeps `nd.array` and `asnumpy` on the thread that calls them. From 200,000 elements on they would
    start a team of threads of their own, which stays; GNU OpenMP then counts more threads than cores and no longer lets any of
    them spin: all that the process trains afterwards took 1.5 times as long, from the first validation on.

    Returns: variable -> {"value": text or None, "set_by": "user", "oneshot_nas" or None}.
    """
    if "mxnet" not in sys.modules:
        _set("OMP_NUM_THREADS", max(1, usable_cores() // processes))
        if not os.environ.get("OMP_WAIT_POLICY"):
            _set("GOMP_SPINCOUNT", SPINS)
        _set("MXNET_CPU_PARALLEL_SIZE", COPIES)
    return describe_threads()


def _set(name: str, value: int) -> None:
    """Set a variable unless it has a value that is not ours, or a lower one of ours: a parent shares the cores out."""
    ours = os.environ.get(OURS + name)
    if os.environ.get(name) in (None, "", ours):
        os.environ[name] = os.environ[OURS + name] = str(min(value, int(ours or value)) if os.environ.get(name) else value)


def describe_threads() -> dict[str, dict[str, str | None]]:
    """Return every thread variable with its value and who set it; see `configure_threads`."""
    described: dict[str, dict[str, str | None]] = {}
    for name in VARIABLES:
        value = os.environ.get(name) or None
        set_by = None if value is None else "oneshot_nas" if value == os.environ.get(OURS + name) else "user"
        described[name] = {"value": value, "set_by": set_by}
    return described


def compiler() -> list[str]:
    """The command of the C++ compiler, CXX= or c++; [] when there is none."""
    try:
        words = shlex.split(os.environ.get("CXX") or "c++")
    except ValueError:  # a quotation mark without its other half
        return []
    return words if words and shutil.which(words[0]) else []


def usable_cores() -> int:
    """Return how many cores this process may use: its CPU affinity, less what a container's CPU quota takes away."""
    cores = len(os.sched_getaffinity(0))
    for folder in cgroup_folders():
        quota, period = (read_cgroup(folder, "cpu.max") or "max 1").split()
        if quota == "max":  # or no such file: version 1 says -1 for no limit
            quota, period = read_cgroup(folder, "cpu.cfs_quota_us") or "-1", read_cgroup(folder, "cpu.cfs_period_us") or "1"
        if int(quota) > 0:
            cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, cores)


def usable_memory() -> int:
    """Return how many bytes of memory this process may use: the machine's, or less when a container has a limit."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for folder in cgroup_folders():
        limit = read_cgroup(folder, "memory.max") or read_cgroup(folder, "memory.limit_in_bytes") or "max"
        least = least if limit == "max" else min(least, int(limit))
    return least


def cgroup_folders() -> Iterator[Path]:
    """Yield the folder of every control group (version 1 and 2) that this process is in, and of all groups above them."""
    top = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        hierarchy = top / controllers.removeprefix("name=")
        folder = hierarchy / group.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each.is_relative_to(hierarchy) and each.is_dir())


def read_cgroup(folder: Path, name: str) -> str | None:
    """Return the content of the file `name` of a control group, or None where there is none."""
    try:
        return (folder / name).read_text().strip()
    except OSError:
        return None


def prepare_process() -> None:
    """Set threads and memory of a process that will import MXNet; before it does."""
    configure_threads()
    keep_freed_memory()


def import_mxnet() -> ModuleType:
    """Prepare the process and return the module `mxnet`.

    Raises: UserError that says what to install when it cannot be imported.
    """
    prepare_process()
    try:
        return import_module("mxnet")
    except (ImportError, OSError, AttributeError) as error:
        raise UserError(f"MXNet cannot be imported ({error}): {remedy(error)}") from error


def remedy(error: Exception) -> str:
    """Return what mends a failed import of MXNet."""
    text = str(error)
    if "libgomp" in text or "libquadmath" in text:
        return "install the system packages libgomp1 and libquadmath0 (apt-get install -y libgomp1 libquadmath0)"
    if isinstance(error, ImportError) and error.name == "distutils":
        return "use Python 3.10 or 3.11; MXNet 1.9.1 runs on no newer one"
    if isinstance(error, ImportError) and error.name == "mxnet":
        return "run 'sh scripts/quickstart.sh', or 'pip install -c constraints.txt -e .' in the checkout"
    if isinstance(error, AttributeError) and "numpy" in text:
        return "MXNet 1.9.1 needs numpy 1.23 (pip install 'numpy>=1.23,<1.24')"
    return "make the environment anew with 'sh scripts/quickstart.sh', or see 'oneshot-nas doctor'"
