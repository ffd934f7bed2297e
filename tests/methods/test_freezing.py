"""FreezeD and FreezeG on a real network: which leaves are held, and which settings the network refuses."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from gantransfer.errors import UserError
from gantransfer.methods import parse_method
from gantransfer.models import get_family


@pytest.fixture(scope="module")
def networks():
    return get_family("biggan").build(resolution=32, num_classes=3, width=8, attention_d="16", attention_g="16")


@pytest.fixture(scope="module")
def held(networks):
    """Returns `held(line, role)`: first parts of the paths that a method holds, and those that it leaves."""

    def split(line, role):
        method = parse_method(line)
        method.needs(networks)
        network = networks.generator if role == "generator" else networks.discriminator
        given = jnp.zeros((1, networks.z_dim) if role == "generator" else (1, 32, 32, 3))
        params = jax.eval_shape(network.init, jax.random.key(0), given, jnp.zeros(1, jnp.int32))["params"]
        paths = flatten_dict(params, sep="/")
        yes = {path.split("/")[0] for path in paths if method.freeze(role, path, networks)}
        return yes, {path.split("/")[0] for path in paths if not method.freeze(role, path, networks)}

    return split


def test_blocks_of_the_discriminator_are_counted_from_the_image_with_their_attention(held):
    yes, no = held("freeze_discriminator(blocks=1)", "discriminator")
    assert yes == {"block_0", "attn_0"} & (yes | no)
    assert "head" in no
    assert held("freeze_discriminator(blocks=0)", "discriminator")[0] == set()
    all_blocks, rest = held("freeze_discriminator(blocks=4)", "discriminator")
    assert {"block_0", "block_3"} <= all_blocks
    assert rest == {"head", "embed"}


def test_discriminator_blocks_can_be_named_by_the_size_that_they_are_given(held):
    assert held("freeze_discriminator(resolution=32)", "discriminator") == held(
        "freeze_discriminator(blocks=1)", "discriminator"
    )
    assert held("freeze_discriminator(resolution=16)", "discriminator") == held(
        "freeze_discriminator(blocks=2)", "discriminator"
    )


def test_heads_are_held_only_when_asked(held):
    yes, _ = held("freeze_discriminator(blocks=1, heads=True)", "discriminator")
    assert {"head", "embed"} <= yes


def test_blocks_of_the_generator_are_counted_from_the_latent_with_their_norms_and_what_is_before(held):
    yes, no = held("freeze_generator(blocks=1)", "generator")
    assert {"linear", "block_0"} <= yes
    assert no >= {"shared", "block_1", "block_2", "out_bn", "out_conv"}
    assert "block_0" not in no, "conditional norms of a held block train"
    assert held("freeze_generator(resolution=8)", "generator") == (yes, no)
    assert held("freeze_generator(blocks=0)", "generator")[0] == set()


def test_class_embedding_is_held_only_when_asked(held):
    assert "shared" in held("freeze_generator(blocks=1, class_embedding=True)", "generator")[0]


def test_each_holds_one_side_only(held):
    assert held("freeze_discriminator(blocks=4, heads=True)", "generator")[0] == set()
    assert held("freeze_generator(blocks=3, class_embedding=True)", "discriminator")[0] == set()


@pytest.mark.parametrize("name", ["freeze_discriminator", "freeze_generator"])
def test_exactly_one_way_of_counting_is_taken(name):
    with pytest.raises(UserError, match=rf"{name}\.blocks: 'neither' .*exactly one"):
        parse_method(name)
    with pytest.raises(UserError, match=rf"{name}\.blocks: 'blocks=1, resolution=16' .*exactly one"):
        parse_method(f"{name}(blocks=1, resolution=16)")
    with pytest.raises(UserError, match=rf"{name}\.blocks: -1 "):
        parse_method(f"{name}(blocks=-1)")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("freeze_discriminator(blocks=5)", r"freeze_discriminator\.blocks: 5 .*from 0 to 4"),
        ("freeze_discriminator(resolution=64)", r"freeze_discriminator\.resolution: 64 .*8, 16, 32"),
        ("freeze_generator(blocks=4)", r"freeze_generator\.blocks: 4 .*from 0 to 3"),
        ("freeze_generator(resolution=12)", r"freeze_generator\.resolution: 12 .*8, 16, 32"),
    ],
)
def test_what_the_network_does_not_have_is_refused_with_what_it_has(networks, line, message):
    with pytest.raises(UserError, match=message):
        parse_method(line).needs(networks)
