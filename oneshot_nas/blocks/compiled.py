"""Optional compiled operators for training on the CPU, built once with the machine's C++ compiler.

MXNet's weight gradient of 5x5 and 7x7 depthwise convolutions dominates a training step (10 times the forward pass), and taking
the even and the odd channels apart costs it six passes over memory; ``compiled.cc`` beside this file computes the same functions
and gradients several times faster. Without a compiler, on a GPU, or with ``ONESHOT_NAS_PLAIN=1`` MXNet's own operators are used:
nothing changes but the speed.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import mxnet as mx
from mxnet.gluon import Parameter

from oneshot_nas.threads import compiler

KERNELS = (5, 7)  # sizes at which the depthwise convolution is faster than MXNet's
ACTIVATIONS = ("relu6", "swish", "hswish")  # oneDNN's relu is as fast as ours would be
FUSED = ("relu", *ACTIVATIONS)  # what BatchNorm takes in
# no -ffast-math: linking a library with it makes the whole process round subnormal numbers to zero
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-std=c++17", "-shared", "-fPIC")


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether the compiled operators are loaded; the first call builds it, once per machine, into the user's cache (20 s)."""
    if os.environ.get("ONESHOT_NAS_PLAIN") == "1":
        return False
    try:
        library = _library()
        failed = library.with_suffix(".failed")  # there when what was built here did not load
        if library.exists():
            try:
                mx.library.load(str(library), verbose=False)
                return True
            except (OSError, RuntimeError):  # cut off, or built beside another C++ library: then anew, but once
                if failed.exists() or not compiler():
                    raise
        if not _build(library):
            return False
        failed.touch()
        mx.library.load(str(library), verbose=False)
        failed.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # no home, a cache that cannot be read, a library that does not load
        print(f"note: no faster operators ({str(error).splitlines()[0]}); using MXNet's own", file=sys.stderr)
        return False
    return True


def usable(parameters: Iterable[Parameter]) -> bool:
    """Whether networks of these parameters may use the compiled operators: on the CPU, where there are any."""
    return any(parameter.list_ctx()[0].device_type == "cpu" for parameter in parameters) and available()


def _library() -> Path:
    """Where the library for this source, MXNet and processor lives."""
    cpu = sorted({line for line in _cpu_lines() if line.startswith(("flags", "Features", "CPU part"))}) or [platform.machine()]
    about = [mx.__version__, *cpu, *platform.libc_ver(), *FLAGS]
    key = hashlib.sha256(b"\0".join([_source().read_bytes(), *map(str.encode, about)]))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "oneshot_nas" / f"compiled-{key.hexdigest()[:16]}.so"


def _source() -> Path:
    return Path(__file__).with_suffix(".cc")


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _build(library: Path) -> bool:
    """Compile the library; False when there is no compiler or, with one line on stderr, when that fails."""
    command = compiler()
    if not command:
        return False
    package, temporary = Path(mx.__file__).parent, None
    print("building faster operators for this machine (once, some 20 seconds) ...", file=sys.stderr)
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=library.parent, prefix=".compiled-")  # machines may share the folder
        os.close(handle)
        subprocess.run([*command, *FLAGS, f"-I{package / 'include'}", str(_source()), str(package / "src" / "lib_api.cc"),
                        "-o", temporary], check=True, capture_output=True, timeout=300)
        os.replace(temporary, library)
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", None) or str(error).encode()).decode(errors="replace").strip().splitlines()
        reason = detail[-1][:160] if detail else "no message"
        print(f"note: it could not be built ({reason}); using MXNet's own operators", file=sys.stderr)
        return False
    finally:
        if temporary is not None:
            with suppress(OSError):  # where it has become the library
                os.unlink(temporary)
    return True
