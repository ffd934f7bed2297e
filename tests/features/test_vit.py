"""Vision transformers: sizes that are refused, published spellings, tables of positions, tokens that see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gantransfer import features
from gantransfer.errors import UserError
from gantransfer.features import network, state_dicts, vit

TINY = {"width": 16, "depth": 5, "heads": 2}


def architecture(name):
    return next(found for found in vit.ARCHITECTURES if found.name == name)


def shapes_of(graph, size):
    x = jnp.zeros((1, size, size, 3))
    leaves = state_dicts.flat(jax.eval_shape(graph.init, jax.random.key(0), x, None)["params"])
    return {key: state_dicts.published_shape(key, leaf.shape) for key, leaf in leaves.items()}


def random_params(graph, size, seed=0):
    state = state_dicts.random_state(shapes_of(graph, size), seed)
    tree = state_dicts.nested({key: state_dicts.to_ours(key, array) for key, array in state.items()})
    return jax.tree.map(jnp.asarray, tree)


@pytest.fixture(scope="module")
def dino():
    graph = vit.DinoTransformer(patch=4, grid=3, layer_scale=True, **TINY)
    params = random_params(graph, 12)
    return jax.jit(lambda x, want=None: graph.apply({"params": params}, x, want), static_argnames="want")


@pytest.mark.parametrize(
    ("name", "width", "parameters"),
    [
        ("clip_vit_b32", 512, 87849216),
        ("clip_vit_l14_336", 768, 304293888),
        ("dino_vits16", 384, 21665664),
        ("dino_vitb16", 768, 85798656),
        # One row of 384 numbers fewer than published: the mask token is not used.
        ("dinov2_vits14", 384, 22056576 - 384),
        ("dinov2_vitb14", 768, 86580480 - 768),
        ("dinov2_vitl14", 1024, 304368640 - 1024),
    ],
)
def test_networks_have_the_published_numbers_of_parameters(name, width, parameters):
    found = architecture(name)
    assert sum(int(np.prod(shape)) for shape in found.blueprint.shapes.values()) == parameters
    assert found.blueprint.taps[found.feature] == (1, width)
    for output, size in found.outputs.items():
        assert not size or found.blueprint.taps[output] == (1, size)


def test_the_large_clip_is_read_from_openai_s_own_file_and_its_absence_names_it(tmp_path, monkeypatch):
    from gantransfer.features import published

    asked = []

    def no_network(file, *arguments, **named):
        asked.append(file)
        raise UserError("file", file.name, "a connection")

    monkeypatch.setattr(published, "download", no_network)
    monkeypatch.setenv("GANTRANSFER_CACHE", str(tmp_path))
    monkeypatch.delenv("GANTRANSFER_FEATURES", raising=False)
    with pytest.raises(UserError, match=r"weights of clip_vit_l14_336: .*ViT-L-14-336px\.pt \(934 MB\).*openai/CLIP"):
        features.load("clip_vit_l14_336")
    sha256 = "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
    assert asked[0].sha256 == sha256 and asked[0].url.endswith(f"/{sha256}/ViT-L-14-336px.pt")
    # Another file of that name is refused by its checksum.
    monkeypatch.setenv("GANTRANSFER_FEATURES", str(tmp_path))
    (tmp_path / "ViT-L-14-336px.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match=f"SHA-256 {sha256}"):
        features.load("clip_vit_l14_336")


def test_clip_sees_the_bytes_that_pillow_makes():
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    rule = architecture("clip_vit_l14_336").input
    resized = [Image.fromarray(image).resize((336, 336), Image.Resampling.BICUBIC) for image in images]
    expected = (np.stack(resized) / 255 - np.asarray(rule.mean)) / np.asarray(rule.std)
    np.testing.assert_allclose(rule.normalised(images), expected, atol=1e-5)
    assert rule.size == 336 and rule.described["in_bytes"]
    # Images that are no bytes are not rounded: what a gradient flows through has none.
    assert np.abs(rule.normalised(images.astype(np.float32)) - expected).max() > 1e-3


@pytest.mark.parametrize(
    ("name", "size", "allowed"),
    [
        ("clip_vit_b32", 256, "224"),
        ("clip_vit_l14_336", 224, "336"),
        ("dino_vits16", 100, "16"),
        ("dinov2_vits14", 224, ""),
    ],
)
def test_sizes_that_do_not_fit_patches_are_refused(name, size, allowed):
    graph = architecture(name).module()
    x = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    call = lambda x: graph.init(jax.random.key(0), x, ("cls", "embed"))
    if not allowed:
        jax.eval_shape(call, x)
        return
    with pytest.raises(UserError, match=allowed) as refused:
        jax.eval_shape(call, x)
    assert f"{size}x{size}" in str(refused.value)


def test_images_smaller_than_a_patch_are_refused(dino):
    with pytest.raises(UserError, match="multiples of 4"):
        dino(jnp.zeros((1, 0, 4, 3)))


def test_dino_s_stages_are_what_its_outputs_are_made_of(dino, key):
    found = dino(jax.random.normal(key, (2, 12, 8, 3)))
    np.testing.assert_array_equal(found["cls"], found["blocks.4.normed"][:, 0])
    np.testing.assert_array_equal(found["patch"], found["norm"][:, 1:])
    last = np.stack([found[f"blocks.{i}.normed"][:, 0] for i in range(1, 5)], axis=1)
    np.testing.assert_array_equal(found["last4_cls"], last)
    # The final norm, not a norm of its own: channels have unit variance where its scale is 1.
    np.testing.assert_allclose(found["blocks.2.normed"].std(axis=-1), 1, atol=1e-3)
    assert found["patch_embed"].shape == (2, 6, 16) and found["blocks.0"].shape == (2, 7, 16)


def test_a_batch_equals_its_images_one_by_one(dino, key):
    x = jax.random.normal(key, (7, 12, 12, 3))
    together = dino(x, want=("cls",))["cls"]
    alone = np.concatenate([dino(x[i : i + 1], want=("cls",))["cls"] for i in range(7)])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_gradients_reach_every_pixel_also_of_a_black_image(dino):
    gradient = jax.grad(lambda x: dino(x, want=("cls",))["cls"][:, :3].sum())(jnp.full((1, 12, 12, 3), -2.0))
    assert np.isfinite(gradient).all() and (np.abs(gradient).max(axis=-1) > 0).all()


def test_colours_in_another_order_give_other_features(dino, key):
    x = jax.random.normal(key, (1, 12, 12, 3))
    assert np.abs(dino(x)["cls"] - dino(x[..., ::-1])["cls"]).max() > 0.01


def test_half_precision_stays_near_and_finite(dino, key):
    x = jax.random.normal(key, (2, 12, 12, 3))
    half = dino(x.astype(jnp.bfloat16), want=("cls",))["cls"]
    assert half.dtype == jnp.bfloat16
    assert np.abs(half.astype(np.float32) - dino(x, want=("cls",))["cls"]).max() < 0.2


def test_a_table_is_kept_for_its_own_grid_and_its_class_row_for_all():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(10, 2)), jnp.float32)
    assert vit.position_table(table, (3, 3)) is table
    other = vit.position_table(table, (1, 9))
    assert other.shape == (10, 2) and np.abs(other[1:] - table[1:]).max() > 0.1
    np.testing.assert_array_equal(other[0], table[0])


def test_a_resized_table_is_sampled_with_the_ratio_of_the_published_code():
    """A ramp stays a ramp inside; its slope is that of 6.1 patches, not of 6."""
    ramp = jnp.repeat(jnp.arange(12.0), 12)
    table = jnp.concatenate([jnp.zeros(1), ramp])[:, None]
    found = np.asarray(vit.position_table(table, (6, 6)))[1:, 0].reshape(6, 6)
    # Cubics with a = -0.75 bend a ramp by up to 0.05; without the 0.1 the fourth entry were 0.15 larger.
    np.testing.assert_allclose(found[1:5, 0], (np.arange(1, 5) + 0.5) * 12 / 6.1 - 0.5, atol=0.06)
    np.testing.assert_allclose(found - found[:, :1], 0, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- other spellings


@pytest.fixture(scope="module")
def clip():
    """A small CLIP tower in OpenAI's spelling."""
    found = network.Architecture(
        **{field: getattr(architecture("clip_vit_b32"), field) for field in ("name", "about", "input", "outputs")},
        module=lambda **options: vit.ClipTower(patch=112, grid=2, depth=2, width=16, heads=2, embedding=8, **options),
        feature="embed",
        **{field: getattr(architecture("clip_vit_b32"), field) for field in ("prefixes", "harmless", "rename")},
    )
    return found, state_dicts.random_state(found.blueprint.shapes, 0)


def as_hugging_face(state):
    """The same weights as Hugging Face's CLIPModel saves them."""
    vision, found = "vision_model", {}
    plain = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    tops = {"conv1": "embeddings.patch_embedding", "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm"}
    for key, array in state.items():
        layer, _, leaf = key.rpartition(".")
        if key == "proj":
            found["visual_projection.weight"] = array.T
        elif key == "positional_embedding":
            found[f"{vision}.embeddings.position_embedding.weight"] = array
        elif key == "class_embedding":
            found[f"{vision}.embeddings.class_embedding"] = array
        elif layer in tops:
            found[f"{vision}.{tops[layer]}.{leaf}"] = array
        else:
            number, rest = layer.removeprefix("transformer.resblocks.").split(".", 1)
            inside = f"{vision}.encoder.layers.{number}"
            if leaf.startswith("in_proj_"):
                for letter, part in zip("qkv", np.split(array, 3), strict=True):
                    found[f"{inside}.self_attn.{letter}_proj.{leaf.removeprefix('in_proj_')}"] = part
            else:
                found[f"{inside}.{plain.get(rest, 'self_attn.out_proj')}.{leaf}"] = array
    found["vision_model.embeddings.position_ids"] = np.arange(5)[None]
    return found | {"logit_scale": np.ones(()), "text_model.final_layer_norm.weight": np.ones(16)}


def test_clip_is_read_in_the_spelling_of_hugging_face(clip):
    tower, state = clip
    usual = network.load(tower, state, network.Settings())
    other = network.load(tower, as_hugging_face(state), network.Settings())
    assert other.sha256 == usual.sha256
    assert "not used" in other.info["notes"][0] and not usual.info["notes"]


def test_clip_is_read_out_of_the_whole_model_in_half_precision(clip):
    """Beside the tower lies the text network, whose keys look alike, and everything is float16."""
    tower, state = clip
    half = {key: array.astype(np.float16) for key, array in state.items()}
    whole = {f"visual.{key}": array for key, array in half.items()}
    whole |= {key: array[:4] for key, array in half.items() if key.startswith("transformer.") and array.ndim > 1}
    whole |= {"positional_embedding": np.ones((7, 4)), "logit_scale": np.ones(()), "token_embedding.weight": np.ones(3)}
    read = network.load(tower, whole, network.Settings())
    rounded = network.load(tower, {key: array.astype(np.float32) for key, array in half.items()}, network.Settings())
    assert read.sha256 == rounded.sha256
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(read.params))


def test_an_incomplete_attention_is_named(clip):
    tower, state = clip
    broken = as_hugging_face(state)
    del broken["vision_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(UserError, match=r"in_proj_bias"):
        network.load(tower, broken, network.Settings())


def test_weights_of_another_vision_transformer_are_refused():
    small = state_dicts.random_state(architecture("dino_vits16").blueprint.shapes, 0)
    with pytest.raises(UserError, match=r"24 missing: blocks\.0\.ls1\.gamma"):
        features.load("dinov2_vits14", weights=small)
