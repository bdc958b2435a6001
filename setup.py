"""Packaging of oneshot_nas; exact versions of everything are in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ONNX = ["onnx>=1.18,<1.19", "onnxruntime>=1.20", "safetensors"]  # onnx 1.19 drops onnx.mapping, which MXNet's exporter needs
DASHBOARD = ["optuna-dashboard"]
TEST = ["pytest>=8", "pytest-xdist", "pytest-timeout", "hypothesis", "ruff", "mypy", "types-PyYAML"]

setup(
    name="oneshot-nas",
    version=re.search(r'__version__ = "(.+)"', (HERE / "oneshot_nas" / "__init__.py").read_text("utf-8"))[1],
    description="One-shot neural architecture search on Apache MXNet Gluon",
    long_description=(HERE / "README.md").read_text("utf-8") if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.12",
    packages=[*find_packages(include=["oneshot_nas", "oneshot_nas.*"]), "oneshot_nas.recipes"],
    package_dir={"oneshot_nas.recipes": "recipes"},
    package_data={"oneshot_nas": ["zoo/*.json", "blocks/*.cc"], "oneshot_nas.recipes": ["*.yaml"]},
    install_requires=[
        "mxnet==1.9.1",
        "gluoncv==0.10.5.post0",
        "numpy>=1.23,<1.24",  # MXNet 1.9.1 uses np.bool, gone in 1.24
        "scipy<2",
        "matplotlib",
        "opencv-python",
        "optuna>=5,<6",
        "portalocker",
        "pydantic>=2",
        "PyYAML",
        "scikit-learn",
        "tensorboardX>=2.6",
        "tqdm",
        "typer",
    ],
    extras_require={"onnx": ONNX, "dashboard": DASHBOARD, "test": [*TEST, *ONNX, *DASHBOARD]},
    entry_points={"console_scripts": ["oneshot-nas = oneshot_nas.__main__:main"]},
    zip_safe=False,
)
