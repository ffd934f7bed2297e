"""The peer's side of the benchmark: the official BigGAN-PyTorch modules, driven in the order of their training loop.

Nothing of that code is in this repository. `--peer` names a checkout; its `BigGAN.py` (with `layers.py` and
`sync_batchnorm`) and `losses.py` are imported as they are. Its `utils.py` and `train_fns.py` are not: they need
data-set libraries and a GPU, and what a step needs of them is the order of updates and the running average, which
follow below.

Runs in a Python that has PyTorch. Variants: "eager" is the code as it is; "fused" passes fused=True to Adam; "compile"
also puts both networks through torch.compile. Channels-last is no variant: the official spectral norm takes views that
such weights refuse.
"""

import argparse
import copy
import sys
import time

STARTED = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from lines import peak_bytes, serve, take_output, timed  # noqa: E402
from workloads import BETA2, EMA, EPS, LR_D, LR_G, NORM_EPS, SPECTRAL_EPS, WORKLOADS, Workload  # noqa: E402

VARIANTS = ("eager", "fused", "compile")
IMAGES = 256


def official_options(workload: Workload) -> dict:
    """Arguments of the official networks for a workload."""
    names = {
        "dim_z": workload.z_dim,
        "shared_dim": 128,
        "G_shared": True,
        "hier": True,
        "resolution": workload.resolution,
    }
    names |= {f"{side}_ch": workload.width for side in "GD"} | {f"{side}_attn": workload.attention for side in "GD"}
    names |= {"n_classes": workload.classes, "G_lr": LR_G, "D_lr": LR_D, "G_B2": BETA2, "D_B2": BETA2, "adam_eps": EPS}
    return names | {"SN_eps": SPECTRAL_EPS, "BN_eps": NORM_EPS, "skip_init": True}


def hoist(network: torch.nn.Module) -> None:
    """Divides every weight with spectral norm by its singular value once and lets the layers use it as it is.

    A user who freezes a network can do so too, and our side does it (`gantransfer.models.layers.normalised`).
    """
    with torch.no_grad():
        for layer in network.modules():
            if hasattr(layer, "W_"):
                layer.weight.copy_(layer.W_())
                layer.W_ = lambda layer=layer: layer.weight


class Worker:
    """One step of the official code, and the answers to commands about it."""

    def __init__(self, workload: Workload, variant: str, hoisted: bool, weights: str):
        import BigGAN
        import losses

        self.workload, self.variant, self.hoisted, self.objective = workload, variant, hoisted, losses
        self.full = workload.trains == "full"
        self.make = lambda: (
            BigGAN.Generator(**official_options(workload)),
            BigGAN.Discriminator(**official_options(workload)),
        )
        self.joined = BigGAN.G_D
        begun = time.perf_counter()
        self.given = dict(np.load(weights))
        self.build()
        self.seconds = {"import": begun - STARTED, "prepare": time.perf_counter() - begun}

    def build(self) -> None:
        """Networks with the given weights, their optimizers and the running average, at the first step."""
        self.G, self.D = self.make()
        for letter, network in (("G", self.G), ("D", self.D)):
            state = {
                k.removeprefix(f"{letter}/"): torch.from_numpy(v)
                for k, v in self.given.items()
                if k.startswith(f"{letter}/")
            }
            network.load_state_dict(state)
            network.train(self.full)
            network.requires_grad_(self.full)
            if self.hoisted:
                hoist(network)
        self.G.shared.weight.requires_grad_(True)
        fused = {"fused": True} if self.variant != "eager" else {}
        adam = lambda parameters, rate: torch.optim.Adam(parameters, rate, betas=(0.0, BETA2), eps=EPS, **fused)
        self.optimizer_g = adam(self.G.parameters() if self.full else [self.G.shared.weight], LR_G)
        self.optimizer_d = adam(self.D.parameters(), LR_D) if self.full else None
        average = copy.deepcopy(self.G) if self.full else copy.deepcopy(self.G.shared)
        moving = self.G if self.full else self.G.shared
        self.pairs = list(zip(average.state_dict().values(), moving.state_dict().values(), strict=True))
        self.both = self.joined(self.G, self.D)
        if self.variant == "compile":
            self.both = torch.compile(self.both)
        rng = np.random.default_rng(0)
        size = (IMAGES, 3, self.workload.resolution, self.workload.resolution)
        self.images = torch.from_numpy(rng.integers(0, 256, size, np.uint8))
        self.labels = torch.from_numpy(rng.integers(0, self.workload.classes, IMAGES))

    def _update_d(self, z: torch.Tensor, c: torch.Tensor, reals: torch.Tensor, labels: torch.Tensor) -> tuple:
        self.D.requires_grad_(True)
        self.G.requires_grad_(False)
        self.optimizer_d.zero_grad()
        fake, real = self.both(z, c, reals, labels, train_G=False, split_D=False)
        loss_real, loss_fake = self.objective.discriminator_loss(fake, real)
        (loss_real + loss_fake).backward()
        self.optimizer_d.step()
        return loss_real.detach(), loss_fake.detach()

    def _update_g(self, z: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        if self.full:
            self.D.requires_grad_(False)
            self.G.requires_grad_(True)
        self.optimizer_g.zero_grad()
        loss = self.objective.generator_loss(self.both(z, c, train_G=True, split_D=False))
        loss.backward()
        self.optimizer_g.step()
        with torch.no_grad():
            for average, value in self.pairs:
                average.copy_(average * EMA + value * (1 - EMA))
        return loss.detach()

    def _steps(self, count: int) -> None:
        n = self.workload.batch
        draw = lambda: (torch.randn(n, self.workload.latent), torch.randint(self.workload.classes, (n,)))
        for _ in range(count):
            if self.full:
                chosen = torch.randint(IMAGES, (n,))
                self._update_d(*draw(), self.images[chosen].float() / 127.5 - 1, self.labels[chosen])
            self._update_g(*draw())

    def first(self) -> dict:
        """What is known after the first steps, which `losses` has run: seconds of their parts, operations, memory."""
        return {"seconds": self.seconds, "flops": self.flops(), "peak bytes": peak_bytes()}

    def flops(self) -> float | None:
        """Counted by PyTorch in convolutions and matrix products; a compiled network is not counted."""
        from torch.utils.flop_counter import FlopCounterMode

        if self.variant == "compile":
            return None
        with FlopCounterMode(display=False) as counter:
            self._steps(1)
        return float(counter.get_total_flops())

    def run(self, steps: int) -> dict:
        """Runs steps; returns seconds per step."""
        return timed(self._steps, steps)

    def losses(self) -> dict:
        """Losses of the first iterations, on the draws that came with the weights; a compiled network is compiled
        here.
        """
        begun = time.perf_counter()
        found, draws = (
            [],
            {name: torch.from_numpy(v) for name, v in self.given.items() if not name.startswith(("G/", "D/"))},
        )
        for i in range(len(draws["z_g"])):
            one = {}
            if self.full:
                reals = draws["reals"][i].permute(0, 3, 1, 2).contiguous()
                real, fake = self._update_d(draws["z_d"][i], draws["c_d"][i], reals, draws["real_labels"][i])
                one = {"real": float(real), "fake": float(fake)}
            found.append(one | {"generator": float(self._update_g(draws["z_g"][i], draws["c_g"][i]))})
        self.seconds["compile and first steps"] = time.perf_counter() - begun
        return {"losses": found}


def about() -> dict:
    """Versions and threads."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": "cpu"}


def main() -> None:
    """Builds the step that the command line names and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=WORKLOADS, required=True)
    parser.add_argument("--peer", required=True, help="checkout of BigGAN-PyTorch")
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument(
        "--hoisted", action="store_true", help="frozen weights are normalised once and not in every pass"
    )
    parser.add_argument("--weights", required=True, help="the file that our side wrote")
    given, answers = parser.parse_args(), take_output()
    sys.path.insert(0, given.peer)
    torch.set_num_threads(1)
    worker = Worker(WORKLOADS[given.workload], given.variant, given.hoisted, given.weights)
    serve({"first": worker.first, "run": worker.run, "losses": worker.losses, "about": about}, answers)


if __name__ == "__main__":
    main()
