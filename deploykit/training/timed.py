"""A training that ends in good order when its time is over, on a CPU or a GPU."""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import swa_utils

from deploykit.data import sources
from deploykit.errors import OptionError
from deploykit.training import loops

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Pace:
    """How long and how fast a network learns."""

    steps: int
    """At most."""
    seconds: float | None = None
    """At most; None: as long as the steps take."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.03
    """Share of the course in which the rate rises."""
    final: float = 0.01
    """Of the learning rate, at the end."""
    decay: float = 0.998
    """Of the averaged weights, each step."""
    limit: float = 5.0
    """Of the norm of all gradients."""
    tell: float = 20.0
    """Seconds between two lines about the loss."""

    def done(self, step: int, spent: float) -> float:
        """Return how much of the course is over after so many steps and seconds, 0 to 1."""
        timed = spent / self.seconds if self.seconds else 0.0
        return min(1.0, max(step / self.steps, timed))

    def rate(self, done: float) -> float:
        """Return the learning rate at a share of the course: a rise, then a cosine."""
        parts = 10_000
        at, rise = round(done * parts), max(1, round(self.warmup * parts))
        return self.learning_rate * loops.rate(at, parts, warmup=rise, final=self.final)


def parser(
    about: str | None, output: Path | None, *, score: str = "", **defaults: float
) -> argparse.ArgumentParser:
    """Return a parser of what such a training is told; a script adds what it alone is told.

    about: what the script's help begins with. output: where the checkpoint goes. score: name of
    what `run` prints of a checkpoint, where it may be asked to. defaults: such as images and
    batch_size.
    """
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, default=output, help="the checkpoint")
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    made.add_argument("--seconds", type=float, default=3400.0, help="when to end, images included")
    made.add_argument("--steps", type=int, default=10**6, help="when to end at the latest")
    made.add_argument("--images", type=int, help="that are made")
    made.add_argument("--batch-size", type=int)
    made.add_argument("--processes", type=int, default=3, help="that make images")
    made.add_argument("--seed", type=int, default=1)
    made.set_defaults(**defaults)
    if score:
        about_score = f"print the {score} of this checkpoint only"
        made.add_argument("--score", type=Path, help=about_score)
    return made


def run(
    options: argparse.Namespace,
    train: Callable[[argparse.Namespace], nn.Module],
    held_out: str,
    names: Sequence[str] = (),
) -> None:
    """Train and save a checkpoint and say what it took, or print what the one of `--score` scores.

    held_out: the images it is scored on, as SOURCE:LOCATION. names: of the classes, saved too.
    """
    if options.score is not None:
        print(json.dumps(loops.score(options.score, sources.dataset(held_out)), indent=1))  # noqa: T201 - what was asked for
        return
    started = time.perf_counter()
    network = train(options)
    named = {"names": list(names)} if names else {}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": loops.half(network.state_dict()), **named}, options.output)
    spent = {"wall_seconds": time.perf_counter() - started, "cpu_seconds": time.process_time()}
    print(json.dumps({k: round(seconds) for k, seconds in spent.items()}), flush=True)  # noqa: T201 - what a long training says


def device(name: str) -> torch.device:
    """Return what `--device` names: cpu, cuda, or auto, a GPU where there is one.

    Raises: OptionError for another name, or a GPU that is not there.
    """
    present = torch.cuda.is_available()
    if name not in {"auto", "cpu", "cuda"} or (name == "cuda" and not present):
        raise OptionError(f"--device {name}", expected="auto, cpu or cuda, where there is a GPU")
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if present and name != "cpu" else "cpu")


def fit(
    network: nn.Module,
    batch: Callable[[], tuple[Any, Any]],
    loss: Callable[[Any, Any], Tensor],
    pace: Pace,
) -> nn.Module:
    """Return the network, where its weights are, with them averaged over the training.

    batch: Gives inputs and truth of the next step, at the same place; inputs that are several are a
    tuple. loss: Of what the network returns. Says the mean loss now and then.
    """
    average = copy.deepcopy(network).eval()
    network.train()
    learner = loops.optimizer(network, pace.learning_rate, pace.weight_decay)
    step, told, losses, started = 0, 0.0, [], time.perf_counter()
    while (done := pace.done(step, time.perf_counter() - started)) < 1:
        for group in learner.param_groups:
            group["lr"] = pace.rate(done)
        inputs, truth = batch()
        found = network(*inputs) if isinstance(inputs, tuple) else network(inputs)
        value = loss(found, truth)
        learner.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        nn.utils.clip_grad_norm_(network.parameters(), pace.limit)
        learner.step()
        follow(average, network, min(pace.decay, (1 + step) / (10 + step)))
        losses.append(value.detach())
        step += 1
        spent = time.perf_counter() - started
        if spent - told >= pace.tell or pace.done(step, spent) >= 1:
            mean = float(torch.stack(losses).mean())
            print(f"step {step} {mean:.4f} {done:.0%} {spent:.0f} s", flush=True)  # noqa: T201 - what a long training says
            told, losses = spent, []
    return average


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the averaged weights and statistics towards the network's, all in one step."""
    kept, new = (
        [v for v in (*each.parameters(), *each.buffers()) if v.is_floating_point()]
        for each in (average, network)
    )
    swa_utils.get_ema_multi_avg_fn(decay)(kept, new, 0)  # type: ignore[no-untyped-call]  # torch leaves it bare
