"""A hand-made `Play`: what a method's `loss` sees, around a discriminator given as a plain function."""

import jax
import jax.numpy as jnp
import pytest

from gantransfer.methods.hooks import Play, Players, Seen


@pytest.fixture
def make_play():
    """Returns `make(role, judge, images, labels, view, fakes, trained)`; fakes default to `-images`."""

    def make(role, judge, images, labels, view=lambda x: x, fakes=None, trained=None):
        fakes = -images if fakes is None else fakes

        def seen(x):
            return Seen(x, labels, judge(view(x), labels), view)

        return Play(
            role=role,
            players=Players(G=lambda z, c, want=(): None, D=lambda x, c, want=(): judge(x, c)),
            fake=seen(fakes),
            real=seen(images) if role == "discriminator" else None,
            picture=None,
            z=jnp.zeros((len(images), 2)),
            trained=trained or {},
            keys=jax.random.split(jax.random.key(0), len(images)),
            images_seen=jnp.int32(0),
        )

    return make
