"""The model card says how to draw latents, and what nobody has said."""

from gantransfer.pretrained.card import model_card


def test_a_card_says_how_latents_are_drawn(tiny):
    options = {"resolution": 16, "channels": 1, "z_dim": 12, "width": 8, "bias_g": "output"}
    assert "| latent | 12 standard normal numbers |" in model_card(tiny.make_of("dcgan", **options), "made up")
    uniform = model_card(tiny.make_of("dcgan", **options | {"latent": "uniform"}), "made up")
    assert "| latent | 12 numbers, uniform in [-1, 1) |" in uniform
    assert "not stated" in uniform
