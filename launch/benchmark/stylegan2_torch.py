"""The peer's side of the StyleGAN2 benchmark: the official stylegan2-ada-pytorch networks and loss, phase by phase.

Nothing of that code is in this repository. `--peer` names a checkout, whose `training/networks.py` and
`training/loss.py` are imported as they are; resampling takes their reference path, as it must on a CPU. The phases are
run as in the official loop, with its replacement of NaNs and one Adam per network; D is updated before G, as on our
side, and styles are not mixed.

Runs in a Python that has PyTorch. Variants: "eager" is the code as it is; "fused" passes fused=True to Adam; "compile"
puts synthesis and discriminator through torch.compile too.
"""

import argparse
import copy
import sys
import time

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lines import peak_bytes, serve, take_output, timed  # noqa: E402
from workloads import (  # noqa: E402
    EMA,
    EPS,
    PATH_DECAY,
    PATH_WEIGHT,
    R1_GAMMA,
    STYLE_BETA2,
    STYLE_RATE,
    WORKLOADS,
    StyleWorkload,
)

VARIANTS = ("eager", "fused", "compile")
IMAGES = 256
PHASES = {"main": ("Dmain", "Gmain"), "r1": ("Dreg",), "path length": ("Greg",)}
REPORTED = {"Dmain": "Loss/scores/fake", "Greg": "Loss/G/reg", "Dreg": "Loss/D/reg"}


def make_networks(workload: StyleWorkload) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The official networks of a workload, in single precision."""
    from training.networks import Discriminator, Generator

    size = {"c_dim": 0, "img_resolution": workload.resolution, "img_channels": 3}
    width = {"channel_base": workload.channel_base, "channel_max": workload.channel_max, "num_fp16_res": 0}
    mapping = {"num_layers": workload.mapping_layers}
    latents = {"z_dim": workload.latent, "w_dim": workload.latent}
    generator = Generator(**latents, **size, mapping_kwargs=mapping, synthesis_kwargs=width)
    return generator, Discriminator(**size, **width, epilogue_kwargs={"mbstd_group_size": 4})


class Recorder:
    """Stands in for the official statistics: keeps the mean of what a phase reports, of its last pass."""

    def __init__(self) -> None:
        self.kept: dict[str, torch.Tensor] = {}

    def report(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Keeps a value."""
        self.kept[name] = torch.as_tensor(value).detach()
        return value


class Worker:
    """One phase (or the two main ones) of the official code, and the answers to commands about it."""

    def __init__(self, workload: StyleWorkload, variant: str, weights: str):
        begun = time.perf_counter()
        self.workload, self.variant = workload, variant
        self.given = dict(np.load(weights))
        self.build()
        self.seconds = {"import": begun - STARTED, "prepare": time.perf_counter() - begun}

    def build(self) -> None:
        """Networks with the given weights, optimizers, running average and loss, at the first step."""
        from training import loss as official

        self.recorder = official.training_stats = Recorder()
        self.G, self.D = make_networks(self.workload)
        for letter, network in (("G", self.G), ("D", self.D)):
            prefix = f"{letter}/"
            state = {k.removeprefix(prefix): torch.from_numpy(v) for k, v in self.given.items() if k.startswith(prefix)}
            network.load_state_dict(state)
            network.train().requires_grad_(False)
        fused = {"fused": True} if self.variant != "eager" else {}
        adam = lambda network: torch.optim.Adam(
            network.parameters(), STYLE_RATE, betas=(0.0, STYLE_BETA2), eps=EPS, **fused
        )
        self.networks = {"G": self.G, "D": self.D}
        self.optimizers = {letter: adam(network) for letter, network in self.networks.items()}
        self.average = copy.deepcopy(self.G).eval()
        synthesis, judge = self.G.synthesis, self.D
        if self.variant == "compile":
            synthesis, judge = torch.compile(synthesis), torch.compile(judge)
        self.loss = official.StyleGAN2Loss(
            torch.device("cpu"),
            self.G.mapping,
            synthesis,
            judge,
            style_mixing_prob=0,
            r1_gamma=R1_GAMMA,
            pl_batch_shrink=1,
            pl_decay=PATH_DECAY,
            pl_weight=PATH_WEIGHT,
        )
        rng = np.random.default_rng(0)
        size = (IMAGES, 3, self.workload.resolution, self.workload.resolution)
        self.images = torch.from_numpy(rng.integers(0, 256, size, np.uint8))

    def _phase(self, name: str, reals: torch.Tensor, z: torch.Tensor) -> None:
        network, optimizer = self.networks[name[0]], self.optimizers[name[0]]
        none = torch.zeros(len(z), 0)
        optimizer.zero_grad(set_to_none=True)
        network.requires_grad_(True)
        self.loss.accumulate_gradients(name, reals, none, z, none, sync=True, gain=1)
        network.requires_grad_(False)
        for parameter in network.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        optimizer.step()

    def _follow(self) -> None:
        with torch.no_grad():
            for average, value in zip(self.average.parameters(), self.G.parameters(), strict=True):
                average.copy_(value.lerp(average, EMA))
            for average, value in zip(self.average.buffers(), self.G.buffers(), strict=True):
                average.copy_(value)

    def _iteration(self, reals: torch.Tensor, z: dict[str, torch.Tensor]) -> None:
        for phase in PHASES[self.workload.trains]:
            self._phase(phase, reals, z[phase[0]])
        if self.workload.trains == "main":
            self._follow()

    def _steps(self, count: int) -> None:
        n = self.workload.batch
        for _ in range(count):
            reals = self.images[torch.randint(IMAGES, (n,))].float() / 127.5 - 1
            self._iteration(reals, {letter: torch.randn(n, self.workload.latent) for letter in "GD"})

    def first(self) -> dict:
        """What is known after the first steps, which `losses` has run."""
        return {"seconds": self.seconds, "flops": self.flops(), "peak bytes": peak_bytes()}

    def flops(self) -> float | None:
        """Counted by PyTorch in convolutions and matrix products; it counts neither compiled networks nor gradients of
        gradients.
        """
        from torch.utils.flop_counter import FlopCounterMode

        if self.variant == "compile" or self.workload.trains != "main":
            return None
        with FlopCounterMode(display=False) as counter:
            self._steps(1)
        return float(counter.get_total_flops())

    def run(self, steps: int) -> dict:
        """Runs steps; returns seconds per step."""
        return timed(self._steps, steps)

    def losses(self) -> dict:
        """Losses of the first iterations, on the draws that came with the weights."""
        begun, found = time.perf_counter(), []
        draws = {name: torch.from_numpy(v) for name, v in self.given.items() if not name.startswith(("G/", "D/"))}
        softplus = torch.nn.functional.softplus
        for i in range(len(draws["z_g"])):
            reals = draws["reals"][i].permute(0, 3, 1, 2).contiguous()
            directions = draws["directions"][i].permute(0, 3, 1, 2).contiguous()
            one, z = {}, {"D": draws["z_d"][i], "G": draws["z_g"][i]}
            drawn, torch.randn_like = torch.randn_like, lambda *_, given=directions, **__: given
            for phase in PHASES[self.workload.trains]:
                self._phase(phase, reals, z[phase[0]])
                kept = {name: value.mean() for name, value in self.recorder.kept.items()}
                scores = self.recorder.kept
                if phase == "Dmain":
                    one["fake"] = float(softplus(scores["Loss/scores/fake"]).mean())
                    one["real"] = float(softplus(-scores["Loss/scores/real"]).mean())
                elif phase == "Gmain":
                    one["generator"] = float(kept["Loss/G/loss"])
                elif phase == "Dreg":
                    one["r1"] = float(kept["Loss/D/reg"])
                else:
                    one["path length"] = float(kept["Loss/G/reg"])
            torch.randn_like = drawn
            found.append(one)
        self.seconds["compile and first steps"] = time.perf_counter() - begun
        return {"losses": found}


def about() -> dict:
    """Versions and threads."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}


def main() -> None:
    """Builds the phase that the command line names and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--peer", required=True, help="checkout of stylegan2-ada-pytorch")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--weights", required=True, help="the file that our side wrote")
    given, answers = parser.parse_args(), take_output()
    sys.path.insert(0, given.peer)
    torch.set_num_threads(1)
    worker = Worker(WORKLOADS[given.workload], given.variant, given.weights)
    serve({"first": worker.first, "run": worker.run, "losses": worker.losses, "about": about}, answers)


if __name__ == "__main__":
    main()
