"""Model families by name."""

from gantransfer.errors import one_of
from gantransfer.models import biggan, dcgan, stylegan2
from gantransfer.models.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (biggan.FAMILY, dcgan.FAMILY, stylegan2.FAMILY)}


def get_family(name: str) -> Family:
    """Returns the family called `name`; raises `UserError` with the names that exist."""
    return FAMILIES[one_of("model.family", name, FAMILIES)]
