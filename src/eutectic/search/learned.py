"""Learned soups: mixing weights that follow the gradient of a task's loss through the live mixture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from eutectic.checkpoint import Source
from eutectic.errors import CheckpointError, NumericError, Problem, RecipeError
from eutectic.evaluate import Classification, Perplexity, Settings, Task
from eutectic.evaluate.language import Language
from eutectic.evaluate.loading import Kind
from eutectic.evaluate.perplexity import windows_of
from eutectic.lazy import LazyModule
from eutectic.search.ingredients import Pot, Weights

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

# A mean loss over one batch, as a tensor with a gradient, of the module that it is given.
Loss = Callable[[Any], "torch.Tensor"]
# Digits of a weight, so that the recipe can be read.
_DIGITS = 6
_HALF = ("bfloat16", "float16")


class Options(Protocol):
    """What `learn` is told: by what to divide the model, passes over the data, and the rate."""

    @property
    def by(self) -> str:
        """`model` or `layer`."""

    @property
    def epochs(self) -> int:
        """Passes over the data."""

    @property
    def rate(self) -> float:
        """Of AdamW."""


def losses_of(task: Task, run: Settings, source: Source) -> tuple[Kind, Callable[[], Iterator[Loss]]]:
    """What module a task wants, and its loss batch by batch, anew for each epoch.

    Raises `RecipeError` (S804) for a task that has no gradient.
    """
    if isinstance(task, Classification):
        return "any", lambda: _of_classes(task, run)
    if isinstance(task, Perplexity):
        return "causal", _of_text(task, run, source)
    kind = getattr(task, "kind", type(task).__name__)
    hint = "use a perplexity task, or choose with method: greedy"
    raise RecipeError(Problem("S804", f"{task.name} ({kind}) has no loss with a gradient", "task", hint))


def learn(pot: Pot, task: Task, run: Settings, options: Options) -> Iterator[Weights]:
    """The weights after each epoch, those before the first (all equal) first.

    Each step mixes the ingredients as a live merge and takes the gradient of a batch's loss by the mixture's weights θ,
    and from it that by each coefficient: ∂L/∂cᵢ = ⟨∂L/∂θ, θᵢ⟩. So one module and its gradient are in memory, and not
    all ingredients.
    """
    parts = pot.parts(options.by)
    everyone = list(range(len(pot.models)))
    logits = torch.zeros((len(parts), len(everyone)), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.AdamW([logits], lr=options.rate, weight_decay=0.0)
    kind, losses = losses_of(task, run, pot.sources[0])
    yield _weights(parts, logits)
    for _ in range(options.epochs):
        for number, loss in enumerate(losses()):
            mixture = pot.mix(everyone, _weights(parts, logits))
            gradient = _gradient(mixture, loss, kind, run, task, number)
            by_share = _inner_products(pot, parts, gradient)
            optimiser.zero_grad()
            # The gradient by the logits, through the softmax.
            torch.softmax(logits, 1).backward(by_share)  # type: ignore[no-untyped-call]
            optimiser.step()
        yield _weights(parts, logits)


def _weights(parts: dict[str, list[str]], logits: torch.Tensor) -> Weights:
    shares = torch.softmax(logits.detach(), 1).tolist()
    return {part: [round(share, _DIGITS) for share in own] for part, own in zip(parts, shares, strict=True)}


def _gradient(
    mixture: Source, loss: Loss, kind: Kind, run: Settings, task: Task, number: int
) -> dict[str, torch.Tensor]:
    """∂L/∂θ by the name of the stored tensor."""
    halves = any(spec.dtype in _HALF for spec in mixture.specs.values())
    # A loss in half precision would hide small differences between ingredients.
    with run.loader.module(mixture, kind, device=run.device, dtype="float32" if halves else None) as module:
        with torch.inference_mode(False), torch.enable_grad():
            module.zero_grad(set_to_none=True)
            value = loss(module)
            if not torch.isfinite(value):
                message = f"the loss of batch {number + 1} is {float(value)} with {mixture.label}"
                raise NumericError(Problem("E908", message, task.name, "a smaller rate, or look at the ingredients"))
            value.backward()  # type: ignore[no-untyped-call]
        found = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            stored = mixture.ties.get(name, name)
            if parameter.grad is not None and stored in mixture.specs:
                found[stored] = parameter.grad.detach().double().cpu().reshape(-1)
        module.zero_grad(set_to_none=True)
    if not found:
        message = "no parameter of the module has the name of a stored tensor"
        raise CheckpointError(Problem("E905", message, task.name))
    return found


def _inner_products(pot: Pot, parts: dict[str, list[str]], gradient: dict[str, torch.Tensor]) -> torch.Tensor:
    """⟨∂L/∂θ, θᵢ⟩ over the tensors of each part; reads every ingredient once."""
    found = torch.zeros((len(parts), len(pot.sources)), dtype=torch.float64)
    for row, names in enumerate(parts.values()):
        for name in names:
            if name not in gradient:
                continue
            for i, source in enumerate(pot.sources):
                found[row, i] += torch.dot(gradient[name], source[name].double().reshape(-1))
    return found


def _of_classes(task: Classification, run: Settings) -> Iterator[Loss]:
    seen = 0
    for inputs, labels in task.loader:
        if run.limit is not None and seen >= run.limit:
            return
        seen += len(labels)

        def loss(module: Any, inputs: Any = inputs, labels: Any = labels) -> torch.Tensor:
            device = next(module.parameters()).device
            given = [inputs] if isinstance(inputs, torch.Tensor) else inputs
            if isinstance(given, list | tuple):
                found = module(*(one.to(device) for one in given))
            else:
                found = module(**{key: one.to(device) for key, one in given.items()})
            logits = getattr(found, "logits", found)
            return torch.nn.functional.cross_entropy(logits, torch.as_tensor(labels).to(device))

        yield loss


def _of_text(task: Perplexity, run: Settings, source: Source) -> Callable[[], Iterator[Loss]]:
    """Windows as the task reads them, in an order that the seed draws anew for each epoch."""
    language = Language(source, run)
    rows = []
    for number in run.chosen(len(task.documents)):
        tokens = [*language.start, *language.encode(task.documents[number])]
        first = max(1, len(language.start))
        rows += list(windows_of(tokens, task.block, task.stride or task.block, first))
    random = np.random.default_rng(run.seed)

    def batches() -> Iterator[Loss]:
        order = random.permutation(len(rows))
        for at in range(0, len(order), run.batch):
            yield _window_loss([rows[i] for i in order[at : at + run.batch]])

    return batches


def _window_loss(rows: Sequence[Any]) -> Loss:
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    # What cross_entropy passes over.
    wanted = torch.full_like(tokens, -100)
    for place, row in enumerate(rows):
        length = len(row.tokens)
        tokens[place, :length] = torch.tensor(list(row.tokens))
        mask[place, :length] = 1
        wanted[place, row.first : length] = tokens[place, row.first : length]

    def loss(module: Any) -> torch.Tensor:
        device = next(module.parameters()).device
        found = module(input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False).logits
        return torch.nn.functional.cross_entropy(
            found[:, :-1].flatten(0, 1).float(), wanted[:, 1:].flatten().to(device)
        )

    return loss
