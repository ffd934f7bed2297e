"""Builds our networks from published states through the table of their layout, as a conversion does."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from gantransfer.models import get_family
from gantransfer.pretrained.layouts.layout import to_ours, to_theirs


def load(layout, *states, **options):
    """Networks, complete options and variables per role, from states of NumPy arrays by published name.

    Every name must be in the table or have a reason to be left out, and those of the table must all be there.
    """
    found = [layout.recognise({name: value.shape for name, value in state.items()}) for state in states]
    family = get_family(layout.family)
    given = dict(layout.assumed) | {k: v for one in found for k, v in one.options.items()} | options
    complete = {name: option.default for name, option in family.options.items()} | given
    variables = {}
    for one, state in zip(found, states, strict=True):
        leaves = layout.leaves(one.role, complete)
        names = {name for leaf in leaves for name in leaf.names}
        assert not [name for name in state if name not in names and layout.reason(name) is None]
        flat = to_ours(leaves, state) | dict(layout.absent(one.role, complete))
        variables[one.role] = unflatten_dict({path: jnp.asarray(value) for path, value in flat.items()}, sep="/")
    return SimpleNamespace(
        networks=family.build(**given), options=complete, variables=variables, layout=layout, states=states
    )


def published(case, role, variables):
    """Published names and layouts for (part of) our variables, such as a tree of gradients `{"params": grads}`."""
    ours = {path: np.asarray(leaf) for path, leaf in flatten_dict(dict(variables), sep="/").items()}
    return to_theirs((leaf for leaf in case.layout.leaves(role, case.options) if leaf.ours in ours), ours)


def assert_round_trip(case):
    """The table covers our variables exactly, and what is written is what was read, bit for bit."""
    for role, state in zip(case.variables, case.states, strict=True):
        network = getattr(case.networks, role)
        first = (1, case.networks.z_dim) if role == "generator" else (1, *(case.networks.resolution,) * 2)
        given = jnp.zeros(first if role == "generator" else (*first, case.networks.channels))
        made = jax.eval_shape(network.init, jax.random.key(0), given, jnp.zeros(1, jnp.int32))
        expected = {path: leaf.shape for path, leaf in flatten_dict(dict(made), sep="/").items()}
        assert expected == {p: leaf.shape for p, leaf in flatten_dict(case.variables[role], sep="/").items()}
        back, made = published(case, role, case.variables[role]), case.layout.made(role, case.options)
        assert back.keys() | made.keys() == state.keys()
        for name, value in state.items():
            if name in back:
                np.testing.assert_array_equal(back[name], value, err_msg=name)
            assert {**made, **back}[name].shape == value.shape, name


def assert_near(ours, reference, tolerance, name=""):
    """The largest difference, relative to the reference's largest value."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, name
    error = np.abs(ours - reference).max() / max(np.abs(reference).max(), 1e-30)
    assert error <= tolerance, f"{name}: relative to the largest value {error:.2e} > {tolerance:.0e}"
