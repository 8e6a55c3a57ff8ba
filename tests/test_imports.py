"""The import contract: which way the modules may know each other, read from the source without running it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "nvb_diffusers"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
WITH_EXTRAS = ("data/datasets.py", "data/shards.py", "training/", "evaluation/")
HEAVY = {"accelerate", "datasets", "torchmetrics"}
REMOTE_CODE = {  # these files also run where our package is not installed: the siblings each may import
    "camera.py": set(),
    "models/image_encoder.py": set(),
    "models/pixel_restorer.py": set(),
    "models/camera_predictor.py": {"nvb_diffusers.camera"},
    "models/view_transformer.py": {"nvb_diffusers.camera", "nvb_diffusers.models.camera_predictor"},
    "pipeline_inputs.py": {"nvb_diffusers.camera"},
    "pipeline_nvb_face.py": {"nvb_diffusers.camera", "nvb_diffusers.pipeline_inputs"},
}


def imported_names(source: str, module: str) -> set[str]:
    """Every module that the source of `module` (a path in the package) imports, at any depth, by absolute name."""
    folder = ["nvb_diffusers", *module.split("/")[:-1]]
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) + "." if node.level else ""
            if node.module:
                names.add(base + node.module)
            else:  # from . import camera
                names |= {base + alias.name for alias in node.names}
            if node.module == "nvb_diffusers":  # from nvb_diffusers import camera
                names |= {f"nvb_diffusers.{alias.name}" for alias in node.names}
    return names


def imports_of(module: str) -> set[str]:
    return imported_names((PACKAGE / module).read_text(encoding="utf-8"), module)


def test_imported_names_sees_every_form():
    """Assert that absolute, relative and local imports are all found under their absolute names."""
    source = (
        "import torch.nn as nn\nfrom . import unet\nfrom ..camera import x\ndef f():\n    from datasets import load"
    )
    found = imported_names(source, "training/data.py")
    assert found == {"torch.nn", "nvb_diffusers.training.unet", "nvb_diffusers.camera", "datasets"}


@pytest.mark.parametrize("module", MODULES)
def test_torchvision_is_never_imported(module):
    """Assert that no module imports torchvision, whose absence must never matter."""
    assert not {name for name in imports_of(module) if name.split(".")[0] == "torchvision"}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(WITH_EXTRAS)])
def test_only_training_and_evaluation_import_their_extras(module):
    """Assert that the package runs without the libraries of its training and evaluation extras."""
    assert not {name.split(".")[0] for name in imports_of(module)} & HEAVY


@pytest.mark.parametrize("module", REMOTE_CODE)
def test_remote_code_imports_no_component(module):
    """Assert that components know cameras alone and the pipeline none of its components: they are injected."""
    ours = {name for name in imports_of(module) if name.startswith("nvb_diffusers")}
    assert ours <= REMOTE_CODE[module]
