"""The one training loop: seeded, resumable to the bit, and knowing nothing of what it trains."""

import hashlib
import os
import re
import time
from dataclasses import asdict, dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from transformers import PreTrainedModel

from data.train.recipe import Recipe, Stage

BETAS = (0.9, 0.98)
"""Of AdamW: squares of gradients are averaged over some fifty steps, as runs have hundreds or thousands."""
CLIP = 1.0
"""Largest norm of a gradient."""


@dataclass
class State:
    """Where a run stands: what a checkpoint holds besides weights and optimiser."""

    stage: int = 0
    step: int = 0
    """Within the stage."""
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    """Of every step of every stage."""


def fit(
    recipe: Recipe,
    seed: int,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    every_seconds: float = 20.0,
    steps: int | None = None,
    console: Console | None = None,
) -> tuple[PreTrainedModel, State]:
    """Train a recipe from its seed, or go on from `checkpoint` if that file exists.

    The data and the dropout of a step depend on the seed, the stage and the step alone, so a run that was
    killed and resumed ends with exactly the weights of one that was not.

    Args:
        recipe: what to train.
        seed: of the initial weights, the data and dropout.
        device: as in torch.
        checkpoint: written every `every_seconds` and on Ctrl-C; a kill never leaves half a file.
        every_seconds: between two checkpoints.
        steps: stop after so many steps in all (for tests).
        console: where progress is shown; None for silence.

    Raises:
        RuntimeError: the loss is not finite.
        ValueError: the checkpoint is damaged or of another recipe, or a stage has nothing to train.
    """
    torch.manual_seed(seed)  # of the initial weights; each step then sets its own
    model: Any = recipe.build().train()
    model.to(device)
    fingerprint = _fingerprint(recipe, seed, model)
    state, saved = State(), None
    if checkpoint and checkpoint.exists():
        saved = _read(checkpoint, fingerprint)
        model.load_state_dict(saved["model"])
        state = State(**saved["state"])
    total = min(sum(stage.steps for stage in recipe.stages), steps or 10**12)
    began = time.perf_counter() - state.seconds  # as if it had never stopped: the card tells all its minutes
    optimizer: torch.optim.AdamW | None = None

    def save() -> None:
        state.seconds = time.perf_counter() - began
        if checkpoint and optimizer:
            content = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "state": asdict(state),
            }
            _write(checkpoint, content | {"fingerprint": fingerprint})

    with Progress(console=console, disable=console is None) as progress:
        task = progress.add_task("starting", total=total, completed=len(state.losses))
        try:
            for index in range(state.stage, len(recipe.stages)):
                stage = recipe.stages[index]
                if index > state.stage:
                    state.stage, state.step = index, 0
                # Each stage has an optimiser of its own: moments from another loss, or of parameters that are
                # frozen now, would push its first steps the wrong way.
                optimizer = _optimizer(model, stage)
                if saved and index == saved["state"]["stage"]:
                    optimizer.load_state_dict(saved["optimizer"])
                while state.step < stage.steps and len(state.losses) < total:
                    state.losses.append(_step(model, optimizer, stage, (seed, index, state.step), device))
                    state.step += 1
                    done = f"step {len(state.losses)} of {total}, loss {state.losses[-1]:6.3f}"
                    progress.update(task, advance=1, description=done)
                    if time.perf_counter() - began - state.seconds > every_seconds:
                        save()
        except KeyboardInterrupt:  # not after an error: then the last checkpoint is the good one
            save()
            raise
    save()
    return model.eval(), state


def learning_rate(stage: Stage, step: int) -> float:
    """Linear warm-up over `stage.warmup` steps, then a cosine from `stage.lr` to 0."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    return stage.lr * (1 + cos(pi * (step - stage.warmup) / max(1, stage.steps - stage.warmup))) / 2


def _optimizer(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """AdamW on the parameters that the stage trains; vectors (biases, norms) are not decayed."""
    model.zero_grad()  # what is frozen now must not count in the norm of the gradient
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(re.search(stage.trains, name) is not None)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"trains={stage.trains!r} is found in no parameter's name: nothing would be trained")
    # Decay pulls towards 0, which is no neutral place for the gain of a norm.
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=stage.lr, betas=BETAS)


def _step(
    model: PreTrainedModel,
    optimizer: torch.optim.AdamW,
    stage: Stage,
    key: tuple[int, int, int],
    device: str,
) -> float:
    """One update; `key` = (seed, stage, step) decides its data and its dropout."""
    # Both generators start anew here, so that a checkpoint needs no generator's state.
    rng = np.random.default_rng(key)
    torch.manual_seed(int(rng.integers(2**63)))
    step = key[2]
    batch = {name: tensor.to(device) for name, tensor in stage.batch(rng, step / stage.steps).items()}
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(stage, step)
    loss = stage.loss(model, batch)
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss is {loss.item()} in stage {key[1] + 1} at step {step}: try a lower lr")
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    return loss.item()


def _fingerprint(recipe: Recipe, seed: int, model: PreTrainedModel) -> str:
    """Of what decides how a run goes on, as far as it is data."""
    # A function's name would not tell that its code has changed; the test of the first losses does.
    stages = [{k: v for k, v in vars(stage).items() if not callable(v)} for stage in recipe.stages]
    return hashlib.sha256(repr((seed, stages, model.config.to_json_string())).encode()).hexdigest()


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)  # at once: a kill leaves the old checkpoint or the new one, whole


def _read(path: Path, fingerprint: str) -> dict[str, Any]:
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)  # runs no code from the file
    except Exception as error:
        raise ValueError(f"{path} cannot be read ({error}); start anew with --no-resume") from None
    if saved.get("fingerprint") != fingerprint:
        raise ValueError(f"{path} was written by another version of this recipe; start anew with --no-resume")
    return saved
