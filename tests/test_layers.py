"""The direction of the arrows: modules import from their own layer or a lower one, without cycles; 0 and 1 without MXNet."""

import ast
import subprocess
import sys
from pathlib import Path

import oneshot_nas

ROOT = Path(oneshot_nas.__file__).parent
LAYERS = [
    ("__init__", "arch", "plan", "ops", "primitives", "config", "sections", "spacefile", "errors", "files", "later", "progress",
     "shell", "interrupts", "memory", "threads", "values"),
    ("spaces", "costs", "search"),
    ("blocks", "nets"),
    ("data", "train", "indicators", "export", "plots", "model_zoo", "doctor"),
    ("oneshot_nas_network", "cli", "__main__", "quickstart"),
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}
HEAVY = ("mxnet", "gluoncv")


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def layer_of(module):
    part = module.split(".")[1]
    assert part in LAYER_OF, f"{module} has no layer; name it in LAYERS of {Path(__file__).name}"
    return LAYER_OF[part]


def imported(path):
    """Names of all modules that a file imports anywhere, ``from package import module`` resolved."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} line {node.lineno}: imports are absolute here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found.update(inner or {str(node.module)})
    return found


def own(path):
    """The modules of this package among them; the lazy package itself counts as none."""
    return {name for name in imported(path) if name in MODULES}


def test_every_module_imports_its_own_layer_or_a_lower_one():
    upward = [
        f"{module} imports {name}" for module, path in MODULES.items() for name in own(path) if layer_of(name) > layer_of(module)
    ]
    assert not upward, upward


def test_no_cycles():
    """Modules that import nothing left, and modules that nothing left imports, are taken away until only circles remain."""
    left = {module: own(path) - {module} for module, path in MODULES.items()}
    size = None
    while size != len(left):
        size = len(left)
        left = {module: needs & set(left) for module, needs in left.items() if needs & set(left)}
        left = {module: needs for module, needs in left.items() if any(module in others for others in left.values())}
    assert not left, f"these modules import each other in a circle: {left}"


def test_layers_0_and_1_never_import_mxnet():
    names = [module for module in MODULES if layer_of(module) <= 1]
    heavy = [f"{module} imports {name}" for module in names for name in imported(MODULES[module]) if name.split(".")[0] in HEAVY]
    assert not heavy, heavy
    code = f"import importlib, sys; [importlib.import_module(name) for name in {names}]; sys.exit('mxnet' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent).returncode == 0, "another module brought mxnet in"


def test_the_check_would_notice(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text(
        "def late():\n    import mxnet as mx\n    from oneshot_nas.nets import fixed\n    from oneshot_nas.plan import Conv\n"
    )
    assert imported(path) == {"mxnet", "oneshot_nas.nets.fixed", "oneshot_nas.plan"}
