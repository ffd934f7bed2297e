"""The model card that lies beside weights: what they are, where they are from, how to use them."""

from gantransfer.pretrained.source import Source


def model_card(source: Source, how: str, notes: str = "") -> str:
    """Returns a model card in Markdown.

    Args:
      source: what the card is about.
      how: how the weights were made, as a clause.
      notes: further Markdown, put at the end.
    """
    info = source.info
    names = ", ".join(info.class_names[:40]) + (" ..." if info.num_classes > 40 else "")
    uniform = source.networks.latent == "uniform"
    drawn = "numbers, uniform in [-1, 1)" if uniform else "standard normal numbers"
    seen = "unknown" if info.images_seen is None else f"{info.images_seen:,}"
    lines = [
        f"# {info.name}",
        "",
        f"Weights of a {info.family} GAN, {how}.",
        "",
        "| | |",
        "| --- | --- |",
        f"| images | {info.resolution} x {info.resolution}, {'grey' if info.channels == 1 else 'colour'} |",
        f"| classes | {info.num_classes}: {names} |",
        f"| latent | {info.z_dim} {drawn} |",
        f"| trained on | {info.trained_on or 'unknown'} |",
        f"| real images seen | {seen} |",
        f"| origin | {info.origin or 'unknown'} |",
        f"| licence | {info.licence or 'not stated; ask whoever made the weights'} |",
        f"| discriminator | {'yes' if info.has_discriminator else 'no'} |",
        "",
        "```python",
        "import gantransfer",
        "",
        'source = gantransfer.load("this folder")',
        "images = source.sample(16, seed=0)   # uint8 (16, height, width, channels)",
        "```",
    ]
    return "\n".join(lines) + (f"\n\n{notes.strip()}" if notes else "") + "\n"
