"""Surgery between networks without classes and networks with them, equal before the first update.

To classes, StyleGAN2: the first mapping layer gets inputs for the class embedding, padded with zeros, so that every
class makes the source's images; the class embedding is fresh and learns from the second update on, once the padding has
moved. In the discriminator the mapping of labels is set to give ones, and the output is spread over as many outputs, so
that every class is judged as before; small rows that sum to zero break their symmetry, without which all coordinates
of the class vector would get one gradient for ever. DCGAN: the same padding of its first layer, and projection rows
of zeros. WGAN-GP ResNet: gains and biases of batch norm are repeated for every class, and a class head of zeros is
added (Wang et al. 2018, arXiv:1805.01677).

From classes, StyleGAN2: the embedding of one class, or of a mean of rows, is folded into the first mapping layer's
bias, and the discriminator's class vectors into its output, so that its score is exactly the mean of the class scores.

Families that have class tables everywhere (BigGAN: one class is a table of one row) need none of this.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from gantransfer.errors import UserError
from gantransfer.models.family import Networks
from gantransfer.pretrained.class_map import FIELD, MappedClass
from gantransfer.pretrained.source import Source
from gantransfer.pretrained.surgery_rebuild import Leaves, Rewrite, rebuild, row_scale
from gantransfer.pretrained.surgery_report import SurgeryReport

# Deviation of the rows that break the symmetry of a new class vector, over that of the output's own row.
BREAK = 0.1
# As in the networks (arXiv:1912.04958): the slope and gain of the rectifier, the number under a second moment's root.
SLOPE, GAIN, EPS = 0.2, 2**0.5, 1e-8


def is_conditional(networks: Networks) -> bool:
    """Whether the generator reads labels at all."""
    return bool(networks.class_rows.get("generator"))


def add_classes(source: Source, class_names: Sequence[str], seed: int) -> tuple[Source, SurgeryReport]:
    """Gives classes to a source that has none; every class starts as the source.

    Raises:
      UserError: the family cannot be given classes.
    """
    family, options = source.info.family, dict(source.info.options)
    if family not in _ADD:
        raise UserError(
            FIELD,
            f"{len(class_names)} classes",
            f"one class: {source.info.name} has none, and classes can be added to {', '.join(_ADD)} only",
        )
    more, generator, discriminator, laws = _ADD[family](options, seed)
    name = source.info.class_names[0]
    classes = tuple(MappedClass(target, (0,), (name,), (1.0,)) for target in class_names)
    return rebuild(
        source,
        f"from no classes to {len(class_names)}",
        options | more,
        class_names,
        {"generator": generator, "discriminator": discriminator},
        laws if source.discriminator is not None else laws[:1],
        seed,
        classes=classes,
    )


def merge_classes(source: Source, merged: MappedClass, seed: int) -> tuple[Source, SurgeryReport]:
    """Takes the classes out of a source whose family has networks without; `merged` weighs the source's classes.

    Raises:
      UserError: `merged` has no source class, so that nothing could be folded.
    """
    if not merged.sources:
        raise UserError(FIELD, "fresh", "for one class, a policy that takes source classes: mean, list, random")
    options = dict(source.info.options)
    weights = np.zeros(source.info.num_classes)
    np.add.at(weights, list(merged.sources), merged.weights)
    return rebuild(
        source,
        f"from {source.info.num_classes} classes to none",
        options,
        (merged.name,),
        {
            "generator": lambda flat, shapes: _fold_generator(flat, weights),
            "discriminator": lambda flat, shapes: _fold_discriminator(flat, options, weights),
        },
        (
            "generator: the images of the source at the mixed row, within 1e-5",
            "discriminator: the weighted mean of the source's scores, within 1e-5",
        )[: 1 + (source.discriminator is not None)],
        seed,
        classes=(merged,),
    )


# What each family needs: further options, a rewrite for each network, and what is equal afterwards.

_Parts = tuple[dict[str, Any], Rewrite, Rewrite, tuple[str, ...]]
FC0, OUT = "params/mapper/fc0", "params/b4/out"
HEAD = ("kernel", "bias")


def _add_stylegan2(options: Mapping[str, Any], seed: int) -> _Parts:
    layers, rate = options["mapping_layers_d"], options["mapping_rate_d"]

    def generator(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        old, rows = np.asarray(flat[f"{FC0}/kernel"], np.float64), shapes[f"{FC0}/kernel"].shape[0]
        padding = np.zeros((rows - len(old), old.shape[1]))
        return {f"{FC0}/kernel": np.concatenate([old * row_scale("stylegan2", len(old), rows), padding])}

    def discriminator(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        row, bias = (np.asarray(flat[f"{OUT}/{leaf}"], np.float64) for leaf in ("kernel", "bias"))
        width = shapes[f"{OUT}/kernel"].shape[1]
        spread = np.repeat(row / width**0.5, width, axis=1)
        draw = np.random.default_rng([seed, zlib.crc32(f"discriminator/{OUT}".encode())])
        apart = BREAK * spread.std() * draw.standard_normal(spread.shape)
        made = {
            f"{OUT}/kernel": spread + apart - apart.mean(axis=1, keepdims=True),
            f"{OUT}/bias": np.repeat(bias / width**0.5, width),
        }
        # Ones come out of the last layer, whatever goes in; without layers, out of the normalised embedding.
        last = f"params/mapper/fc{layers - 1}" if layers else "params/mapper/embed"
        ones = 1 / (rate * GAIN) if layers else 1.0
        made[f"{last}/kernel"] = np.zeros(shapes[f"{last}/kernel"].shape)
        made[f"{last}/bias"] = np.full(shapes[f"{last}/bias"].shape, ones)
        return made

    laws = (
        "generator: every class makes the source's images, within 1e-5",
        "discriminator: every class is judged as by the source, within 1e-6 of the logits",
    )
    return {}, generator, discriminator, laws


def _add_dcgan(options: Mapping[str, Any], seed: int) -> _Parts:
    def generator(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        path = "params/linear/kernel"
        old = np.asarray(flat[path])
        return {path: np.concatenate([old, np.zeros((shapes[path].shape[0] - len(old), old.shape[1]), old.dtype)])}

    def discriminator(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        return {"params/embed/embedding": np.zeros(shapes["params/embed/embedding"].shape)}

    laws = (
        "generator: every class makes the source's images, within 1e-6",
        "discriminator: every class is judged as by the source, within 1e-6",
    )
    return {"class_dim": options["class_dim"] or options["z_dim"]}, generator, discriminator, laws


def _add_wgangp(options: Mapping[str, Any], seed: int) -> _Parts:
    def generator(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        rows = {path: shapes[path].shape for path in flat if path in shapes and shapes[path].shape != flat[path].shape}
        return {path: np.repeat(np.asarray(flat[path])[None], shape[0], axis=0) for path, shape in rows.items()}

    def discriminator(flat: Leaves, shapes: Leaves) -> dict[str, np.ndarray]:
        return {f"params/class_head/{leaf}": np.zeros(shapes[f"params/class_head/{leaf}"].shape) for leaf in HEAD}

    laws = (
        "generator: every class makes the source's images, bitwise",
        "discriminator: the source's scores, bitwise; its class head sees every class as equally likely",
    )
    return {"conditional": True, "class_head": True}, generator, discriminator, laws


_ADD: dict[str, Callable[[Mapping[str, Any], int], _Parts]] = {
    "stylegan2": _add_stylegan2,
    "dcgan": _add_dcgan,
    "wgangp_resnet": _add_wgangp,
}


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.sqrt(np.square(rows).mean(axis=-1, keepdims=True) + EPS)


def _embedded(flat: Leaves, weights: np.ndarray) -> np.ndarray:
    """Normalised embeddings of class weights `(n, classes)`."""
    table = np.asarray(flat["params/mapper/embed/kernel"], np.float64)
    return _unit(weights @ table / len(table) ** 0.5 + np.asarray(flat["params/mapper/embed/bias"], np.float64))


def _fold_generator(flat: Leaves, weights: np.ndarray) -> dict[str, np.ndarray]:
    kernel, bias = (np.asarray(flat[f"{FC0}/{leaf}"], np.float64) for leaf in ("kernel", "bias"))
    embedded = _embedded(flat, weights[None])[0]
    latent = len(kernel) - len(embedded)
    return {
        f"{FC0}/kernel": kernel[:latent] * row_scale("stylegan2", len(kernel), latent),
        f"{FC0}/bias": bias + embedded @ kernel[latent:] / len(kernel) ** 0.5,
    }


def _fold_discriminator(flat: Leaves, options: Mapping[str, Any], weights: np.ndarray) -> dict[str, np.ndarray]:
    x, rate = _embedded(flat, np.eye(len(weights))), options["mapping_rate_d"]
    for i in range(options["mapping_layers_d"]):
        kernel, bias = (np.asarray(flat[f"params/mapper/fc{i}/{leaf}"], np.float64) for leaf in ("kernel", "bias"))
        x = x @ kernel * (rate / len(kernel) ** 0.5) + bias * rate
        x = np.where(x > 0, x, SLOPE * x) * GAIN
    vector = weights @ x / x.shape[1] ** 0.5
    out = {leaf: np.asarray(flat[f"{OUT}/{leaf}"], np.float64) for leaf in ("kernel", "bias")}
    return {f"{OUT}/kernel": out["kernel"] @ vector[:, None], f"{OUT}/bias": out["bias"] @ vector[:, None]}
