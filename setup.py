"""What gantransfer is, what it needs and what it ships."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"', (HERE / "gantransfer/__init__.py").read_text("utf-8"), re.M)[1]

# Lower bounds are the oldest versions that the whole test suite was run with (constraints/py311.txt).
REQUIRED = [
    "absl-py>=2.5",
    "array_record>=0.8.6",
    "clu>=0.0.12",
    "etils[epath]>=1.15",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "jaxtyping>=0.3.11",
    "jinja2>=3.1.6",
    "ml_collections>=1.1",
    "ml_dtypes>=0.6",
    "numpy>=2.4",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=13.0",
    "rich>=15.0",
    "safetensors>=0.8",
    "tensorflow-datasets>=4.9.10",
]

EXTRAS = {
    "digits": ["scikit-learn>=1.9", "matplotlib>=3.11"],
    "metrics": ["scipy>=1.17"],
    "tensorboard": ["tensorboardX>=2.6.5"],
    "video": ["imageio>=2.38", "av>=18.1"],
    "gcs": ["gcsfs"],
    "export": ["flatbuffers>=25.2"],
    "dev": [
        "beartype>=0.23",
        "chex>=0.1.92",
        "flatbuffers>=25.2",
        "hypothesis>=6.170",
        "pytest>=9.2",
        "pytest-xdist>=3.8",
        "ruff>=0.17.6",
        "setuptools>=77",
    ],
}
EXTRAS["quickstart"] = EXTRAS["digits"] + EXTRAS["metrics"]

setup(
    name="gantransfer",
    version=VERSION,
    description="Finetune pretrained GANs on small data sets, in JAX and Flax",
    long_description=(HERE / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["gantransfer", "gantransfer.*"]),
    package_data={"gantransfer": ["py.typed", *(f"**/*.{kind}" for kind in ("safetensors", "json", "md", "jinja"))]},
    install_requires=REQUIRED,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["gantransfer = gantransfer.__main__:main"]},
)
