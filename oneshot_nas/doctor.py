"""What is installed, what this machine offers, and what will not work here with its remedy."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from oneshot_nas.errors import INSTALL_EXTRA, UserError
from oneshot_nas.threads import compiler, configure_threads, import_mxnet, usable_cores, usable_memory

PACKAGES = (
    "oneshot-nas", "mxnet", "gluoncv", "numpy", "scipy", "opencv-python", "opencv-python-headless", "scikit-learn", "matplotlib",
    "optuna", "pydantic", "typer", "PyYAML", "portalocker", "tensorboardX", "onnx", "onnxruntime", "safetensors",
    "optuna-dashboard", "torch",
)
CORE = ("gluoncv", "scikit-learn", "matplotlib", "optuna", "pydantic", "typer", "PyYAML", "portalocker", "tensorboardX")
GIB = 2**30


@dataclass(frozen=True)
class Problem:
    """Something that will not work here, or not well: what, why, and what mends it. `fatal`: no training without it."""

    what: str
    why: str
    remedy: str
    fatal: bool = False


def examine(folder: str | os.PathLike = ".") -> dict[str, Any]:
    """Return the whole report as JSON values; disk space is that of `folder`.

    Keys: versions, mxnet (features, gpus, error), threads, machine (cores, memory and disk in GiB), works, problems.
    """
    threads = configure_threads()
    versions = {"python": platform.python_version(), **{name: installed(name) for name in PACKAGES}}
    mxnet = examine_mxnet()
    machine = {
        "platform": platform.platform(),
        "cores": usable_cores(),
        "memory_gib": round(usable_memory() / GIB, 1),
        "disk_free_gib": round(shutil.disk_usage(folder).free / GIB, 1),
    }
    problems = [*core_problems(versions, mxnet), *extra_problems(versions), *machine_problems(mxnet, threads, machine)]
    return {
        "versions": versions, "mxnet": mxnet, "threads": threads, "machine": machine,
        "works": not any(problem.fatal for problem in problems),
        "problems": [asdict(problem) for problem in problems],
    }


def installed(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def release(text: str | None) -> tuple[int, ...]:
    """Return the leading numbers of a version: "1.23.5" -> (1, 23); a missing or unusual one is (0, 0)."""
    parts = (text or "0.0").split(".")[:2]
    return tuple(int(part) for part in parts) if all(part.isdigit() for part in parts) else (0, 0)


def examine_mxnet() -> dict[str, Any]:
    """Return MXNet's features and number of GPUs, or the sentence that says why it cannot be imported."""
    try:
        mxnet = import_mxnet()
        features = sorted(name for name, feature in mxnet.runtime.Features().items() if feature.enabled)
        return {"features": features, "gpus": mxnet.context.num_gpus(), "error": None}
    except UserError as error:
        return {"features": [], "gpus": 0, "error": str(error)}


def core_problems(versions: dict[str, str | None], mxnet: dict[str, Any]) -> Iterator[Problem]:
    """Yield what keeps the base install from working."""
    if sys.version_info[:2] not in ((3, 10), (3, 11)):
        yield Problem("training", f"Python {versions['python']} is not supported by MXNet 1.9.1", "use Python 3.10 or 3.11", True)
    if release(versions["numpy"]) >= (1, 24):
        yield Problem("training", f"numpy {versions['numpy']} lacks np.bool, which MXNet uses", "pip install 'numpy<1.24'", True)
    if mxnet["error"]:
        why, _, mend = mxnet["error"].rpartition(": ")
        yield Problem("training", why, mend, True)
    elif versions["mxnet"] != "1.9.1":
        yield Problem("results as documented", f"mxnet {versions['mxnet'] or 'without a version'} is not the tested 1.9.1",
                      "pip install mxnet==1.9.1, or run the test suite before trusting it")
    for package in CORE:
        if versions[package] is None:
            yield Problem("training", f"{package} is not installed", f"pip install -c constraints.txt {package}", True)
    try:
        import_module("cv2")
    except ImportError as error:
        mend = "pip install -c constraints.txt opencv-python"
        if versions["opencv-python"]:  # its windows need libGL and glib, which servers lack
            mend = f"pip install --no-deps --force-reinstall opencv-python-headless=={versions['opencv-python']}"
        yield Problem("reading images", f"OpenCV cannot be imported ({error})", mend, True)


def extra_problems(versions: dict[str, str | None]) -> Iterator[Problem]:
    """Yield what optional packages would add, and what is not built yet."""
    missing = [name for name in ("onnx", "onnxruntime", "safetensors") if versions[name] is None]
    if missing:
        why = f"not installed: {', '.join(missing)}"
        yield Problem("ONNX export, weights as .safetensors", why, INSTALL_EXTRA.format("onnx"))
    if release(versions["onnx"]) >= (1, 19):
        why = f"onnx {versions['onnx']} lacks onnx.mapping, which MXNet uses"
        yield Problem("ONNX export", why, "pip install 'onnx>=1.18,<1.19'")
    if versions["optuna-dashboard"] is None:
        yield Problem("the command dashboard", "optuna-dashboard is not installed", INSTALL_EXTRA.format("dashboard"))
    if versions["torch"] is None:
        yield Problem("convert from .pth files", "torch is not installed",
                      "pip install torch, or save the state dict as .npz or .safetensors elsewhere")
    yield Problem("int8 export", "it is not built yet", "export symbol and onnx")


def machine_problems(mxnet: dict[str, Any], threads: dict[str, Any], machine: dict[str, Any]) -> Iterator[Problem]:
    """Yield what this machine cannot do, or only slowly."""
    if mxnet["gpus"] == 0:
        yield Problem("float16 training", "no GPU is visible to MXNet, and it has no half-precision convolution on the CPU",
                      "train in float32, or use a CUDA build of MXNet on a machine with a GPU")
    if not compiler() and os.environ.get("ONESHOT_NAS_PLAIN") != "1":
        why = f"no C++ compiler ({os.environ.get('CXX') or 'c++'}) to build the faster operators; those built before are used"
        yield Problem("full speed", why, "install one (Debian and Ubuntu: apt-get install -y g++), or set CXX")
    wanted = threads["OMP_NUM_THREADS"]["value"] or ""
    if wanted.isdigit() and int(wanted) > machine["cores"]:
        why = f"OMP_NUM_THREADS={wanted} on {machine['cores']} usable cores makes training 2 to 3 times slower"
        yield Problem("full speed", why, f"unset it, or set it to {machine['cores']}")
    if (threads["OMP_WAIT_POLICY"]["value"] or "").lower() == "passive":
        yield Problem("full speed", "OMP_WAIT_POLICY=passive costs about a quarter of the training speed", "unset it")
    if machine["memory_gib"] < 4:
        why = f"{machine['memory_gib']} GiB of memory is little"
        yield Problem("training at 224x224", why, "use small batches and small images")
    if machine["disk_free_gib"] < 2:
        why = f"only {machine['disk_free_gib']} GiB of disk is free here"
        yield Problem("long runs", why, "free some, or give an --out on another disk")
