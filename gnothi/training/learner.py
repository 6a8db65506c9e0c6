"""The only training loop."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gnothi import distributed, schedules
from gnothi.contracts import Carry, Step, Views
from gnothi.randomness import seeded
from gnothi.training import checkpoint, health, optimisers, parallel, state
from gnothi.training.journal import Journal
from gnothi.training.objective import Objective
from gnothi.training.optimisers import OptimiserSpec
from gnothi.training.signals import Interrupted, listening
from gnothi.training.spec import TrainingSpec


class Learner:
    """Trains any Objective on any batches.

    Args:
        objective: what is minimised.
        batches: step number -> this process's Views.
        spec: durations and portions.
        optimiser: with its rates resolved.
        total: steps of the run.
        per_epoch: steps of an epoch.
        seed: of everything random.
        folder: the run's; None keeps nothing.
        sample: [M, C, S, S] normalised images for health; None measures none.
        evaluate: called on marked steps with (method, step); gives fields of metrics lines.
        sinks: hear every line of metrics too.
    """

    def __init__(
        self,
        objective: Objective,
        batches: Callable[[int], Views],
        *,
        spec: TrainingSpec,
        optimiser: OptimiserSpec,
        total: int,
        per_epoch: int,
        seed: int,
        folder: Path | None = None,
        sample: Tensor | None = None,
        evaluate: Callable[[nn.Module, Step], list[dict[str, Any]]] | None = None,
        sinks: Sequence[Callable[[dict[str, Any]], None]] = (),
    ) -> None:
        self.objective, self.batches, self.spec, self.optimiser_spec = objective, batches, spec, optimiser
        self.total, self.seed, self.folder, self.per_epoch = total, seed, folder, per_epoch
        self.sample, self.evaluate = sample, evaluate
        self.journal = Journal(folder, per_epoch, sinks)
        if spec.channels_last:
            objective.to(memory_format=torch.channels_last)
        self.module: Any = parallel.wrap(objective, spec)
        self.optimiser = optimisers.build(optimiser, objective, objective.method.groups())
        self.warm_up = schedules.steps(optimiser.warm_up, per_epoch, total, setting="optimiser.warm_up") / total
        kinds = ("log_every", "health_every", "evaluate_every", "checkpoint_every")
        self.every = {k: schedules.interval(getattr(spec, k), per_epoch, total, setting=f"training.{k}") for k in kinds}
        self.number, self.seconds = 0, 0.0

    def fit(self) -> None:
        """Train to the last step.

        Raises:
            RunError: a term is not finite.
            Interrupted: SIGINT or SIGTERM came; a checkpoint was written first.
        """
        with listening() as asked:
            while self.number < self.total:
                began = time.monotonic()
                self.step()
                stop = asked()
                if stop or self._marked("checkpoint_every"):
                    self.save()
                self.seconds += time.monotonic() - began
                self.journal.progress.update(self.number)
                if stop and self.number < self.total:
                    raise Interrupted(f"stopped after step {self.number} of {self.total}; go on with --resume", stop)

    def step(self) -> None:
        """One step, and what is marked to follow it."""
        began = time.monotonic()
        step = Step(self.seed, self.number, self.total)
        views = self.objective.draw(self.batches(self.number), step)
        terms, carries = self._backward(views, step)
        norm = self._clip()
        for p in self.objective.frozen(step):
            p.grad = None
        rates = optimisers.set_rates(self.optimiser, self.optimiser_spec, step.progress, self.warm_up)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.objective.after_step({k: distributed.merge(c) for k, c in carries.items()}, step)
        self.number += 1
        self.journal.note(terms | {"gradient_norm": norm}, time.monotonic() - began)
        if self._marked("log_every"):
            self._log(step, rates, len(views.index) * distributed.world())
        with parallel.whole(self.objective) if self._marked("health_every") or self._marked("evaluate_every") else contextlib.nullcontext():
            if self._marked("health_every") and self.sample is not None:
                values = health.measure(self.objective.method, self.sample, step) | health.diagnose(self.objective, views, step)
                self.journal.refuse(values, self.number)
                self.journal.write("health", self.number, self.seconds, values)
            if self._marked("evaluate_every") and self.evaluate is not None:
                for line in self.evaluate(self.objective.method, step):
                    self.journal.write("evaluation", self.number, self.seconds, line)

    def _backward(self, views: Views, step: Step) -> tuple[dict[str, Tensor], dict[str, Carry]]:
        """Objective and its gradient, a micro-batch at a time; carries of micro-batches merge."""
        n, parts = len(views.index), self.spec.accumulate
        terms: dict[str, Tensor] = {}
        carries: dict[str, Carry] = {}
        for i in range(parts):
            last = i == parts - 1 or not isinstance(self.module, DistributedDataParallel)
            with contextlib.nullcontext() if last else self.module.no_sync():
                part = views if parts == 1 else views.rows(slice(i * n // parts, (i + 1) * n // parts))
                with seeded(self.seed, "forward", step.number, distributed.rank(), i):
                    total, said, carried = self.module(part, step)
                self._check(said)
                (total / parts).backward()
            terms = {k: terms.get(k, 0) + v / parts for k, v in said.items()}
            carries = {k: carries[k] + c if k in carries else c for k, c in carried.items()}
        return terms, carries

    def _check(self, terms: dict[str, Tensor]) -> None:
        """Stop at a term that is not finite: at once on a CPU, at the next line of metrics elsewhere, where a look costs a wait."""
        if next(iter(terms.values())).device.type == "cpu":
            values = distributed.mean(torch.stack([v.double() for v in terms.values()]))  # all processes stop, not one
            self.journal.refuse(dict(zip(terms, values.tolist(), strict=True)), self.number + 1)

    def _clip(self) -> Tensor:
        """Clip gradients, and give their norm as it was before."""
        grads = [[p.grad for p in part.parameters() if p.grad is not None] for part in self.objective.parts()]
        norms = [distributed.full(torch.nn.utils.get_total_norm(g)) for g in grads if g]
        norm = torch.stack([n.square() for n in norms]).sum().sqrt()
        if norm.device.type == "cpu":
            self.journal.refuse({"gradient_norm": float(norm)}, self.number + 1)
        if self.spec.clip is not None and self.spec.clip_kind == "global":
            scale = (self.spec.clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([distributed.own(g) for part in grads for g in part], scale)
        elif self.spec.clip is not None:
            for g in (g for part in grads for g in part):
                distributed.own(g).mul_((self.spec.clip / (distributed.full(g.norm()) + 1e-6)).clamp(max=1.0))
        return norm

    def _marked(self, name: str) -> bool:
        return self.number % self.every[name] == 0 or self.number == self.total

    def _log(self, step: Step, rates: tuple[float, float], images: int) -> None:
        """Write the means since the last line."""
        line = self.journal.means(self.number, images, getattr(self.batches, "waited", 0.0))
        weights = self.objective.weights(step)
        line |= {"loss": sum(weights.get(k, 0.0) * v for k, v in line["terms"].items()), "weights": weights, "lr": rates[0], "weight_decay": rates[1]}
        if (momentum := self.objective.method.space.momentum(step)) is not None:
            line["momentum"] = momentum
        self.journal.write("train", self.number, self.seconds, line)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return state.of(self.objective, self.optimiser, self.journal.sums(self.number))

    def save(self) -> None:
        """Write a checkpoint."""
        tensors = {} if self.folder is None else self.state()  # of what is sharded every process gives its part
        broken = state.broken(self.batches)
        if self.folder is not None and distributed.rank() == 0:
            about = {"total": self.total, "per_epoch": self.per_epoch, "seed": self.seed, "seconds": round(self.seconds, 3), "broken": broken}
            checkpoint.write(self.folder, self.number, tensors, about, self.spec.keep)
        distributed.barrier()

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint: as if the run had never stopped."""
        tensors, about = checkpoint.read(path)
        self.journal.window = state.restore(tensors, self.objective, self.optimiser)
        self.number, self.seconds = about["step"], about["seconds"]
        if distributed.rank() == 0 and hasattr(self.batches, "broken"):  # the others add what they meet
            self.batches.broken.update({k: tuple(v) for k, v in about["broken"].items()})
        self.journal.cut(self.number)
        distributed.barrier()
