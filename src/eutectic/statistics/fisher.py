"""The diagonal of the Fisher information: means of squares of gradients by sample, taken at the layers themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from eutectic.errors import Problem, RecipeError, listed
from eutectic.lazy import LazyModule
from eutectic.statistics.batches import Batch
from eutectic.statistics.gradients import Call, gradients, rows_of_embedding, rule_of, squares
from eutectic.statistics.labels import Likelihood
from eutectic.statistics.layers import Names
from eutectic.statistics.model import Collector, Layout

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
else:
    torch = LazyModule("torch")


class _MixedError(Exception):
    """A layer has rows of which nothing tells the sample."""


class FisherCollector(Collector):
    """Mean over samples of the squared gradient of a sample's log-likelihood, for every parameter.

    Gradients by sample are made where they arise: from a layer's input and the gradient of its output, without ever
    making the gradient of the batch. A parameter that is used more than once (tied, or called again) has the sum over
    its uses squared. Parameters that are used outside of a layer of their own (class tokens, `nn.MultiheadAttention`)
    and layers whose rows are not those of the samples (experts) need one sample at a time, with plain autograd.

    Source: Matena & Raffel 2022, arXiv:2111.09832, eq. 2 to 4. Differs from the paper: where labels are drawn, once a
    sample (or a token), and not for every class; heads are covered too.
    """

    kind = "fisher"

    def __init__(self, module: nn.Module, names: Names, first: Batch, likelihood: Likelihood) -> None:
        """Runs the module on up to two samples, to see how its parameters are used.

        Args:
            module: in evaluation mode.
            names: of its parameters.
            first: a batch.
            likelihood: of an output.

        Raises `RecipeError` (F103, F107).
        """
        super().__init__()
        self._module, self._likelihood = module, likelihood
        self._names: dict[int, str] = {
            id(p): name for p in module.parameters() if p.is_floating_point() and (name := names(p)) is not None
        }
        self._parameters = {self._names[id(p)]: p for p in module.parameters() if id(p) in self._names}
        if not self._parameters:
            raise RecipeError(Problem("F107", "nothing to collect: it has no parameters", type(module).__name__))
        whole = [name for p in module.parameters() if not p.is_floating_point() and (name := names(p)) is not None]
        self.layout = Layout(
            units={name: {name: tuple(p.shape)} for name, p in self._parameters.items()},
            left_out=dict.fromkeys(names.missing, "not in the checkpoint")
            | dict.fromkeys(whole, "holds whole numbers"),
        )
        self._rules: dict[nn.Module, str] = {
            part: rule for part in module.modules() if self._own(part) and (rule := rule_of(part)) is not None
        }
        self._paths = {part: path for path, part in module.named_modules()}
        self._size = 0
        self._replaying = False
        self._calls: dict[str, list[Call]] = {}
        self._buffers: dict[str, Tensor] = {}
        self._rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._alone = ""
        self._survey(first)
        self.notes = (f"one sample at a time: {self._alone}",) if self._alone else ()

    def _own(self, part: nn.Module) -> dict[str, str]:
        """A module's own parameters: key → name."""
        return {key: name for key, p in part._parameters.items() if (name := self._names.get(id(p)))}

    # Surveying

    def _survey(self, first: Batch) -> None:
        """Drops rules that do not hold, and finds out whether samples must go one at a time."""
        # Two sizes: what has as many rows as there are samples by chance has as many when one is gone.
        for count in range(min(first.size, 2), 0, -1):
            few = first.head(count)
            handles = [part.register_forward_hook(self._look(few.size), with_kwargs=True) for part in self._rules]
            try:
                with torch.no_grad():
                    few.run(self._module)
            finally:
                for handle in handles:
                    handle.remove()
        tapped = {name for part in self._rules for name in self._own(part).values()}
        loose = [name for name in self._parameters if name not in tapped]
        if loose:
            self._alone = f"{listed(loose)} belong to no layer of a known kind"
        if not self._alone:
            self.counts = dict.fromkeys(self._parameters, 0)
            found = self._outside(first.head(1))
            if found:
                self._alone = f"{listed(found)} are used outside of their layers"
            self.counts = {}

    def _look(self, size: int) -> Any:
        def after(part: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                self._rules.pop(part, None)
            elif part in self._rules and not self._fits(part, args, kwargs, output, size):
                self._alone = f"the rows of {self._paths[part]} are not those of the samples"

        return after

    def _fits(self, part: nn.Module, args: Any, kwargs: Any, output: Tensor, size: int) -> bool:
        """Whether the samples lie along the first axis of a layer's input and output."""
        x = args[0] if args else next(iter(kwargs.values()))
        if self._rules[part] == "embedding" and len(x) == 1:
            return True  # positions, the same for all samples
        return x.dim() > 0 and output.dim() > 0 and len(x) == len(output) == size

    def _outside(self, sample: Batch) -> list[str]:
        """Parameters that get a gradient from elsewhere than their layers."""
        with self._tapped(1, dry=True):
            for value in self._likelihood(sample.run(self._module), sample, 0):
                torch.autograd.backward(value)
                break
            return [name for name, p in self._parameters.items() if p.grad is not None]

    # Collecting

    def _collect(self, batch: Batch) -> None:
        if not self._alone or batch.size == 1:
            try:
                self._run(batch, self.samples)
                return
            except _MixedError as error:
                self._alone = f"the rows of {error} are not those of the samples"
        for number in range(batch.size):
            self._run(batch.sample(number), self.samples + number)

    def _run(self, batch: Batch, first: int) -> None:
        with self._tapped(batch.size):
            values = list(self._likelihood(batch.run(self._module), batch, first))
            for left, value in enumerate(values, 1 - len(values)):
                self._watch("the log-likelihood", value.detach())
                torch.autograd.backward(value, retain_graph=left < 0)
                self._settle()
        for name in self.counts:
            self.counts[name] += batch.size

    @contextmanager
    def _tapped(self, size: int, dry: bool = False) -> Iterator[None]:
        """Layers that hand over their gradients, and leave the rest of the graph as it is."""
        before = [(p, p.requires_grad, p.grad) for p in self._module.parameters()]
        for p, _, _ in before:
            p.grad = None
            p.requires_grad_(self._names.get(id(p)) in self.counts)
        self._size = size
        self._calls, self._buffers, self._rows = {}, {}, {}
        handles = []
        for part in self._rules:
            if any(name in self.counts for name in self._own(part).values()):
                handles.append(part.register_forward_pre_hook(self._hide))
                handles.append(part.register_forward_hook(self._tap(dry), with_kwargs=True))
        try:
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for p, needed, gradient in before:
                p.requires_grad_(needed)
                p.grad = gradient
            # The inputs lead to the graph, and its hooks back here: a circle that no collector of garbage sees.
            self._calls, self._buffers, self._rows = {}, {}, {}

    def _hide(self, part: nn.Module, _: Any) -> None:
        """Within the layer its parameters get no gradient from autograd; any other use of them does, and is found."""
        if not self._replaying:
            for key in self._own(part):
                part._parameters[key].requires_grad_(False)  # type: ignore[union-attr]

    def _tap(self, dry: bool) -> Any:
        def after(part: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
            if self._replaying:
                return None
            for key, name in self._own(part).items():
                part._parameters[key].requires_grad_(name in self.counts)  # type: ignore[union-attr]
            if self._size > 1 and not self._fits(part, args, kwargs, output, self._size):
                raise _MixedError(self._paths[part])
            if self._rules[part] == "embedding" and len(output) < self._size:
                args = (args[0].expand(self._size, *args[0].shape[1:]),)
                output = output.expand(self._size, *output.shape[1:]).clone()
            if not output.requires_grad:
                # A clone, as what comes next may work in place, which a leaf does not allow.
                output = output.detach().requires_grad_().clone()
            call = Call(part, self._rules[part], args, kwargs, self._size)
            version = call.x._version
            for name in self._own(part).values():
                self._calls.setdefault(name, []).append(call)
            # No gradient arrives at what a module does without a graph: frozen by itself, or to be run again.
            if not dry and output.requires_grad:
                hooked: Any = output
                hooked.register_hook(lambda g: self._arrive(call, g.detach(), version))
            return output

        return after

    def _arrive(self, call: Call, g: Tensor, version: int) -> None:
        path = self._paths[call.module] or type(call.module).__name__
        own = {key: name for key, name in self._own(call.module).items() if name in self.counts}
        if call.x._version != version:
            message = f"the input of {path} was changed in place after the layer had it"
            raise RecipeError(Problem("F104", message, path, "such a model cannot be trained either"))
        self._watch(f"the gradient of {path}", g.sum(dtype=torch.float32))
        with torch.no_grad():
            if call.rule == "embedding":
                self._add_rows(own["weight"], call, g)
                return
            name = own.get("weight", "")
            if name and self._simple(name) and (found := squares(call, g)) is not None:
                self.sums[name] += found
                own.pop("weight")
            self._replaying = True
            try:
                for key, part, gradient in gradients(call, g) if own else ():
                    if key in own:
                        self._add(own[key], part, gradient)
            finally:
                self._replaying = False

    def _simple(self, name: str) -> bool:
        """Whether nothing is to be added to a parameter's gradient before it is squared."""
        return len(self._calls[name]) == 1 and not self._alone

    def _add(self, name: str, part: slice, gradient: Tensor) -> None:
        """Gradients of a dense layer, of the samples in `part`."""
        total = self.sums[name]
        if self._simple(name):
            _square_into(total, gradient)
        elif (looked_up := self._tied(name)) is not None and name not in self._buffers:
            # The rows that the embedding looked up wait for its own gradient; it comes last.
            for own, found in zip(range(part.start, part.stop), gradient, strict=True):
                rows = torch.unique(looked_up.x.reshape(self._size, -1)[own])
                self._rows.setdefault(name, []).append((rows, found[rows]))
                found[rows] = 0
            _square_into(total, gradient)
        else:
            self._buffer(name)[part] += gradient

    def _tied(self, name: str) -> Call | None:
        """The one embedding call of a parameter that is used by one linear layer beside it."""
        rules = {call.rule: call for call in self._calls[name]}
        both = len(self._calls[name]) == 2 and rules.keys() == {"embedding", "linear"} and not self._alone
        return rules["embedding"] if both else None

    def _add_rows(self, name: str, call: Call, g: Tensor) -> None:
        """Gradients of an embedding: of few rows."""
        total, waiting = self.sums[name], self._rows.pop(name, [])
        simple = self._simple(name) or len(waiting) == call.size
        for number, (rows, gradient) in enumerate(rows_of_embedding(call, g)):
            if simple:
                gradient = gradient + waiting[number][1] if waiting else gradient
                total.index_add_(0, rows, gradient.square_())
            else:
                self._buffer(name)[number].index_add_(0, rows, gradient)

    def _buffer(self, name: str) -> Tensor:
        if name not in self._buffers:
            total = self.sums[name]
            self._buffers[name] = torch.zeros((self._size, *total.shape), device=total.device)
        return self._buffers[name]

    def _settle(self) -> None:
        """After a backward pass: squares what waited for more, and what autograd has found."""
        for name in self.counts:
            parameter = self._parameters[name]
            if (gradient := parameter.grad) is not None:
                if not self._alone:
                    message = f"{name} is used outside of its layer, as it was not in the first sample"
                    raise RecipeError(Problem("F104", message, name))
                self._buffer(name)[0] += gradient.float()
                self._watch(f"the gradient of {name}", gradient.sum(dtype=torch.float32))
                parameter.grad = None
        for name, gradients_ in self._buffers.items():
            _square_into(self.sums[name], gradients_)
        for name, waiting in self._rows.items():
            for rows, gradient in waiting:
                self.sums[name].index_add_(0, rows, gradient.square())
        self._buffers, self._rows = {}, {}


def _square_into(total: Tensor, gradients_: Tensor) -> None:
    """Adds Σ g² over the first axis."""
    if len(gradients_) == 1:
        total.addcmul_(gradients_[0], gradients_[0])
    else:
        total += gradients_.square().sum(0)
