"""Reads plain pickles of networks: StyleGAN2-ADA, StyleGAN3, R3GAN and Projected GAN, and StyleGAN2 of TensorFlow.

The first kind is a dictionary with the modules G, D and G_ema, whose classes come with their source text; the text is
never looked at. The second is a tuple (G, D, Gs) of `dnnlib.tflib.network.Network`, whose variables keep the names and
layouts of TensorFlow. Constructor arguments are the `config` under the network's name; `config["classes"]` says of
which class each network is and `config["attributes"]` what plain attributes its parts have.
"""

from typing import Any

from gantransfer.pretrained.readers.contents import Contents
from gantransfer.pretrained.readers.mapped import MappedFile, short
from gantransfer.pretrained.readers.networks import Splitter
from gantransfer.pretrained.readers.pickles import Record

# StyleGAN1 and configurations a to d of StyleGAN2 have other variables.
OLDEST_TF_VERSION = 4
TF_CLASS = "dnnlib.tflib.network.Network"


def from_pickle(file: MappedFile, value: Any) -> Contents:
    """The contents of an unpickled object: whole networks, or a dictionary of arrays.

    Raises:
      UserError: there are no weights in it, or it is of an unsupported version.
    """
    splitter = Splitter(file)
    if isinstance(value, tuple) and len(value) == 3 and all(_of_tensorflow(file, part) for part in value):
        value = dict(zip(("G", "D", "G_ema"), value, strict=True))
        splitter.notes.append("Gs of the file is called G_ema")
    splitter.add(value)
    modules = isinstance(value, Record) or (
        isinstance(value, dict) and any(isinstance(part, Record) for part in value.values())
    )
    return splitter.contents("stylegan-pickle" if modules else "pickle", (file.path,))


def _of_tensorflow(file: MappedFile, part: Any) -> bool:
    if not isinstance(part, Record) or part.name != TF_CLASS:
        return False
    version = part.state.get("version") if isinstance(part.state, dict) else None
    if not isinstance(version, int) or version < OLDEST_TF_VERSION:
        raise file.refuse(f"a network of version {short(version)}", "StyleGAN2 networks (version 4 or later)")
    return True
