"""The import contract: which way the modules may know each other, read from the source without running it."""

import os
import subprocess
import sys

import pytest
from conftest import load_script

house = load_script("house", "benchmarks")
GRAPH = house.import_graph()
MODULES = sorted(path.relative_to(house.PACKAGE).as_posix() for path in house.PACKAGE.rglob("*.py"))
WITH_EXTRAS = ("batch/sources.py", "data/datasets.py", "data/shards.py", "training/", "evaluation/")
HEAVY = {"accelerate", "datasets", "torchmetrics"}
REMOTE_CODE = {  # these files also run where our package is not installed: the siblings each may import
    "camera.py": set(),
    "data/images.py": set(),
    "models/image_encoder.py": {"nvb_diffusers.safetensors_only"},
    "models/pixel_restorer.py": set(),
    "models/entries.py": set(),
    "warp.py": {"nvb_diffusers.camera"},
    "camera_fit.py": {"nvb_diffusers.camera"},
    "models/appearance.py": {
        "nvb_diffusers.camera",
        "nvb_diffusers.camera_fit",
        "nvb_diffusers.warp",
        "nvb_diffusers.models.entries",
        "nvb_diffusers.models.pixel_restorer",
        "nvb_diffusers.safetensors_only",
    },
    "models/camera_predictor.py": {"nvb_diffusers.camera"},
    "models/attention_blocks.py": set(),
    "models/view_transformer.py": {
        "nvb_diffusers.camera",
        "nvb_diffusers.models.attention_blocks",
        "nvb_diffusers.models.camera_predictor",
        "nvb_diffusers.models.entries",
        "nvb_diffusers.safetensors_only",
    },
    "conditioning.py": {"nvb_diffusers.camera"},
    "denoising.py": set(),
    "safetensors_only.py": set(),
    "pipeline_files.py": {"nvb_diffusers.safetensors_only"},
    "pipeline_inputs.py": {"nvb_diffusers.camera", "nvb_diffusers.conditioning", "nvb_diffusers.data.images"},
    "pipeline_output.py": {"nvb_diffusers.conditioning", "nvb_diffusers.pipeline_inputs"},
    "pipeline_nvb_face.py": {
        f"nvb_diffusers.{name}"
        for name in ("conditioning", "denoising", "pipeline_files", "pipeline_inputs", "pipeline_output")
    },
}


def test_imported_names_sees_every_form():
    """Assert that absolute, relative and local imports are all found under their absolute names."""
    source = (
        "import torch.nn as nn\nfrom . import unet\nfrom ..camera import x\nfrom .a.b import c\n"
        "def f():\n    from datasets import load"
    )
    found = house.imported_names(source, ("nvb_diffusers", "training"))
    ours = {"nvb_diffusers.training.unet", "nvb_diffusers.camera.x", "nvb_diffusers.training.a.b.c"}
    assert found == {"torch.nn", "datasets.load"} | ours


@pytest.mark.parametrize("module", MODULES)
def test_torchvision_is_never_imported(module):
    """Assert that no module imports torchvision, whose absence must never matter."""
    assert not {name for name in house.imports(house.PACKAGE / module) if name.split(".")[0] == "torchvision"}


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith(WITH_EXTRAS)])
def test_only_training_and_evaluation_import_their_extras(module):
    """Assert that the package runs without the libraries of its training and evaluation extras."""
    assert not {name.split(".")[0] for name in house.imports(house.PACKAGE / module)} & HEAVY


@pytest.mark.parametrize("module", REMOTE_CODE)
def test_remote_code_imports_no_component(module):
    """Assert that components know cameras alone and the pipeline none of its components: they are injected."""
    name = ".".join(["nvb_diffusers", *module.removesuffix(".py").split("/")])
    assert GRAPH[name] <= REMOTE_CODE[module]


def test_contract_is_kept():
    """Assert that no module knows one of a layer above its own, nor what it must never know, nor itself in a circle."""
    assert house.contract_breaches(GRAPH) == []


def test_the_rooms_of_heads_are_a_stack():
    """Assert that no room of the synthetic heads imports one above it, and that they know little else."""
    stack, heads = ("mesh", "person", "head", "picture"), "nvb_diffusers.heads."
    outside = {f"nvb_diffusers.{name}" for name in ("data", "files", "camera", "option_types", "stopping")}
    for module in (name for name in GRAPH if name.startswith(heads)):
        room = module.removeprefix(heads).split(".")[0]
        above = stack[stack.index(room) + 1 :] if room in stack else ()
        for other in GRAPH[module]:
            if other.startswith(heads):
                assert other.removeprefix(heads).split(".")[0] not in above, (module, other)
            else:
                assert ".".join(other.split(".")[:2]) in outside or other == "nvb_diffusers.heads", (module, other)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ({"camera": {"data.records"}}, "nvb_diffusers.camera imports nvb_diffusers.data.records, which stands above"),
        ({"hub": {"cli"}}, "stands above"),
        ({"data.records": {""}}, "stands above"),
        ({"evaluation.score": {"training.losses"}}, "must never know"),
        ({"pipeline_nvb_face": {"models.unet"}}, "must never know"),
        ({"cli": {"heads.write"}}, "must never know"),
        ({"data.records": {"data.images"}, "data.images": {"data.records"}}, "a circle of imports"),
        ({"odds.ends": set()}, "odds stands in no layer"),
    ],
)
def test_a_breach_is_found(graph, words):
    """Assert that an import upward, a forbidden one, a circle and a room without a layer are one line each."""
    names = {f"nvb_diffusers.{module}".rstrip("."): imported for module, imported in graph.items()}
    full = {name: {f"nvb_diffusers.{other}".rstrip(".") for other in imported} for name, imported in names.items()}
    (line,) = house.contract_breaches(full)
    assert words in line


def test_what_is_allowed_is_no_breach():
    """Assert that imports downward, within a layer, and of the public names from above them, are all accepted."""
    graph = {
        "nvb_diffusers.data.images": {"nvb_diffusers.files", "nvb_diffusers.face_crop", "nvb_diffusers.data"},
        "nvb_diffusers": {"nvb_diffusers.models.unet", "nvb_diffusers.pipeline_nvb_face"},
        "nvb_diffusers.evaluation.score": {"nvb_diffusers", "nvb_diffusers.evaluation.metrics"},
    }
    assert house.contract_breaches(graph) == []


@pytest.mark.parametrize(("given", "left"), [({}, "1000"), ({"OMP_WAIT_POLICY": "active"}, "None")])
def test_threads_wait_briefly_unless_told_otherwise(given, left):
    """Assert that how threads wait is set before torch reads it, and left alone where somebody has decided."""
    code = "import os, nvb_diffusers; print(os.environ.get('GOMP_SPINCOUNT'))"
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    printed = subprocess.run([sys.executable, "-c", code], env=kept | given, capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == left


@pytest.mark.parametrize("before", ["enable", "disable"])
def test_importing_leaves_the_collector_as_it_was(before):
    """Assert that garbage is looked for after the import as before, and that nothing of it is kept out of sight."""
    code = f"import gc; gc.{before}(); import nvb_diffusers; print(gc.isenabled(), gc.get_freeze_count())"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == [str(before == "enable"), "0"]


def test_commands_import_no_pydantic():
    """Assert that a command which reads no JSON of others starts without what checks it, which takes 0.4 s to load."""
    code = "import sys, nvb_diffusers.cli; print(sorted({'pydantic', 'gradio', 'datasets'} & sys.modules.keys()))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
