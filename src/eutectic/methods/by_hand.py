"""A method called by hand: its signature, and what it is given → tensors and values that it takes, or every problem."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eutectic.errors import NumericError, Problem, RecipeError, did_you_mean, several
from eutectic.kernels.outer_products import not_outer_products
from eutectic.kernels.random import Rng
from eutectic.lazy import LazyModule

if TYPE_CHECKING:
    import numpy
    import torch
    from torch import Tensor

    from eutectic.methods.registry import Method
else:
    numpy = LazyModule("numpy")
    torch = LazyModule("torch")

_STACK = "stack the models: torch.stack([a, b])"


def signature_of(method: Method) -> inspect.Signature:
    """That of the function, whose tensors are positional when the method is called."""
    signature = inspect.signature(method.function)
    first = [one.kind for one in signature.parameters.values()].count(inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = [
        one.replace(kind=inspect.Parameter.POSITIONAL_ONLY) if number < first else one
        for number, one in enumerate(signature.parameters.values())
    ]
    return signature.replace(parameters=found)


def shown(method: Method) -> str:
    """`<method ties(deltas, /, *, weight=1.0, …)>`: what it takes and its defaults."""
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in signature_of(method).parameters.values()]
    return f"<method {method.name}{inspect.Signature(plain)}>"


def taken(
    method: Method, tensors: Any, statistics: Sequence[Any], parameters: Mapping[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """The tensors, and the parameters by the function's own names. Raises `RecipeError` (R142) with every problem.

    A stack may be a numpy array, a number anything with `tolist`. A parameter may have its name in recipes (`lambda`).
    """
    if isinstance(tensors, numpy.ndarray) and tensors.dtype in (numpy.float16, numpy.float32, numpy.float64):
        tensors = torch.from_numpy(tensors.copy())
    given, problems = _named(method, parameters)
    values = _value_faults(method, given, len(tensors)) if getattr(tensors, "ndim", 0) else []
    problems = [*_tensor_faults(method, tensors), *problems, *values]
    if not problems:
        missing = [name for name, param in method.params.items() if param.required and name not in given]
        problems = [Problem("R142", "has no default and must be given", f"{method.name}.{name}") for name in missing]
    if problems := problems or _statistics_faults(method, tensors, statistics):
        raise RecipeError(problems)
    return tensors, {method.keywords[name]: value for name, value in given.items()}


def refuse_values(method: Method, tensors: Tensor, statistics: Sequence[Any]) -> None:
    """Raises `NumericError` (N501, N505, N506) with every model's tensor or statistics that a merge would refuse."""
    if torch.compiler.is_compiling():
        return
    given = [one for one in statistics if one is not None]
    names = list(inspect.signature(method.function).parameters)
    problems = []
    for name, stack in zip(names, [tensors, *given], strict=False):
        if name == names[0] and not _seen(~_finite(stack)):
            continue
        for number, one in enumerate(stack):
            if fault := _fault_of(_wide(one), method.statistics if name != names[0] else ""):
                problems.append(Problem(*fault[:2], f"{method.name}.{name}[{number}]", fault[2]))
    if problems:
        raise NumericError(problems)


def _fault_of(tensor: Tensor, kind: str) -> tuple[str, str, str] | None:
    """Code, message and advice for a tensor, or for statistics of a kind, that a merge would refuse."""
    if _seen(~_finite(tensor)):
        bad = int((~torch.isfinite(tensor)).sum())
        mend = "collect the statistics again" if kind else "mend the model"
        return "N501", f"{several(bad, 'value', 'is', 'are')} NaN or infinite", mend
    if kind == "fisher" and _seen((tensor < 0).any()):
        bad = int((tensor < 0).sum())
        hint = "a Fisher information is a mean of squares: collect the statistics again"
        return "N505", f"{several(bad, 'value', 'is', 'are')} negative", hint
    if kind == "gram" and _seen(_finite(tensor)):
        side = tensor.shape[-1]
        if why := not_outer_products(tensor.cpu().double().numpy().reshape(-1, side, side)):
            return "N506", why, "collect the statistics again"
    return None


def _finite(tensor: Tensor) -> Tensor:
    """Whether every value is finite: extremes are one pass without a copy, and NaN is both."""
    if not tensor.numel():
        return torch.tensor(True)
    return torch.isfinite(torch.stack(torch.aminmax(_wide(tensor)))).all()


def _wide(tensor: Tensor) -> Tensor:
    """Its values, in a dtype that can be compared: eight bits cannot."""
    return tensor.detach().float() if tensor.itemsize == 1 else tensor.detach()


def _seen(test: Tensor) -> bool:
    """Whether a test holds; False where it has no value yet: under `vmap`, in a trace, on `meta`."""
    try:
        return bool(test)
    except RuntimeError:
        return False


def _named(method: Method, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """Values by recipe name, numbers plain, and a problem for each that the method does not have."""
    keywords, given, problems = method.keywords, {}, []
    for keyword, value in parameters.items():
        name = next((name for name, own in keywords.items() if keyword in (name, own)), None)
        if name is None:
            hint = did_you_mean(keyword, keywords.values()) or f"known: {', '.join(keywords.values())}"
            problems.append(Problem("R142", f"{method.name} has no parameter {keyword!r}", method.name, hint))
        elif name in given:
            problems.append(Problem("R142", "is given twice", f"{method.name}.{name}"))
        else:
            given[name] = value.tolist() if hasattr(value, "tolist") else value
    return given, problems


def _value_faults(method: Method, given: Mapping[str, Any], models: int) -> list[Problem]:
    found = []
    for name, value in given.items():
        why = None
        if (param := method.params.get(name)) is not None:
            why = param.fault_of(value, models)
        elif name == "scope" and value not in method.scopes:
            why = f"must be one of {', '.join(method.scopes)}, not {value!r}"
        elif name == "rng" and not isinstance(value, Rng):
            why = f"must be an Rng, not {value!r}"
        found += [Problem("R142", why, f"{method.name}.{name}")] if why else []
    if not found and (why := method.fault(given, models)):
        found.append(Problem("R142", why, method.name))
    return found


def _tensor_faults(method: Method, tensors: Any) -> list[Problem]:
    if not hasattr(tensors, "is_floating_point") or not tensors.is_floating_point() or tensors.dim() < 1:
        kind = f"a {type(tensors).__name__}"
        if (dtype := getattr(tensors, "dtype", None)) is not None:
            kind += f" of {str(dtype).removeprefix('torch.')}" + ("" if tensors.ndim else " without axes")
        message = f"{method.space} must be a stacked tensor of floats, not {kind}"
        return [Problem("R142", message, method.name, _STACK)]
    least, most = method.models
    if len(tensors) < least or (most is not None and len(tensors) > most):
        wanted = several(least, "model") if least == most else f"{least} or more models"
        return [Problem("R142", f"takes {wanted}, not {len(tensors)}", method.name)]
    return []


def _statistics_faults(method: Method, tensors: Tensor, given: Sequence[Any]) -> list[Problem]:
    if len(given) != bool(method.statistics):
        wanted = f"the {method.statistics} statistics of the models" if method.statistics else "no statistics"
        return [Problem("R142", f"takes {wanted} as its second argument", method.name)]
    if not given or given[0] is None:
        return []
    shape = tuple(tensors.shape[1:])
    wanted_shape = shape if method.statistics == "fisher" else (*shape[:-2], *shape[-1:], *shape[-1:])
    found = [tuple(one.shape) for one in given[0]]
    if found == [wanted_shape] * len(tensors):
        return []
    message = f"weights of {shape} go with statistics of {wanted_shape}, one a model, not {found}"
    return [Problem("R142", message, method.name)]
