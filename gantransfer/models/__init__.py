"""Model families by name."""

from gantransfer.errors import one_of
from gantransfer.models import biggan, biggan_deep, dcgan, fastgan, stylegan2, wgangp_resnet
from gantransfer.models.family import Family

_ALL = (biggan.FAMILY, biggan_deep.FAMILY, dcgan.FAMILY, fastgan.FAMILY, stylegan2.FAMILY, wgangp_resnet.FAMILY)
FAMILIES: dict[str, Family] = {family.name: family for family in _ALL}


def get_family(name: str) -> Family:
    """Returns the family called `name`; raises `UserError` with the names that exist."""
    return FAMILIES[one_of("model.family", name, FAMILIES)]
