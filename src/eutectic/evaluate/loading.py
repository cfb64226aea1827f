"""source → module in evaluation mode, with its tokenizer: through transformers, or a factory of the user's own."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from eutectic.checkpoint import MemorySource, Source
from eutectic.checkpoint.companions import companions
from eutectic.checkpoint.vocabulary import are_apart, tokens_of
from eutectic.errors import CheckpointError, Problem, RecipeError, listed
from eutectic.evaluate.content import digest_of_bytes, digest_of_json, files_of
from eutectic.lazy import LazyModule
from eutectic.plan.tokenizers import how_tokens_differ
from eutectic.run.merged import MergedSource
from eutectic.run.refusals import sources_in

if TYPE_CHECKING:
    import torch
else:
    torch = LazyModule("torch")

Kind = Literal["causal", "encoder", "saved", "any"]
_AUTO = {"causal": "AutoModelForCausalLM", "encoder": "AutoModel"}
# A model's own Python code is never run, and nothing is fetched.
_SAFE: Mapping[str, Any] = {"trust_remote_code": False, "local_files_only": True}
_TOKENIZER = ("tokenizer", "vocab", "merges", "spiece", "sentencepiece")
_BELONG = "do config.json and the weights belong together? `eutectic inspect` shows the shapes"
_FACTORY = "in Python, `module=` says how to make one (a function without arguments)"


class LiveSource(MemorySource):
    """A live module, evaluated as it is: where it lies, with what its forward pass does."""

    def __init__(self, label: str, module: torch.nn.Module) -> None:
        super().__init__(label, module)
        self.module = module


class Loader:
    """Makes a module of a source, and keeps the last one: several tasks load a model once.

    The next source of the same architecture and names is copied into the module that is there, so a search over
    merges builds it once. A module is good until the next is asked for; whoever gets
    one leaves its tensors alone.
    """

    def __init__(self, module: Callable[[], Any] | None = None, tokenizer: Any = None) -> None:
        """Loads nothing yet.

        Args:
            module: makes the module that sources are loaded into, without arguments; None: `transformers` makes it.
            tokenizer: a tokenizer of `transformers`, or its folder, for all sources; None: each source's own.

        Raises `RecipeError` (E905) where `module` is no function.
        """
        if module is not None and (not callable(module) or isinstance(module, torch.nn.Module)):
            message = f"must be a function that makes a module, without arguments, not a {type(module).__name__}"
            hint = "weights are loaded into what it makes: `lambda: copy.deepcopy(net)` leaves a module alone"
            raise RecipeError(Problem("E905", message, "module", hint))
        self._factory = module
        self._tokenizer = tokenizer
        self._tokenizers: dict[str, Any] = {}
        # By the source's id; the source is kept, so that no other gets its id.
        self._vocabularies: dict[int, tuple[Source, dict[str, int]]] = {}
        self._kept: tuple[Source, Any] | None = None
        self._built: tuple[Any, torch.nn.Module] | None = None

    @contextmanager
    def module(
        self, source: Source, kind: Kind = "any", *, device: str = "cpu", dtype: str | None = None
    ) -> Iterator[torch.nn.Module]:
        """The source as a module in evaluation mode, without gradients.

        Args:
            source: the weights.
            kind: `causal` language model, `encoder`, what was `saved` as config.json names it, or `any` module that the
                factory makes.
            device: where it is to be; a live module stays where it is.
            dtype: of its arithmetic; None: as stored.

        Raises `CheckpointError` (E905) for weights that do not fit the module, and what reading them raises.
        """
        module = source.module if isinstance(source, LiveSource) else self._loaded(source, kind, device, dtype)
        training = {part: part.training for part in module.modules()}
        module.eval()
        try:
            with torch.inference_mode():
                yield module
        finally:
            for part, was in training.items():
                part.training = was

    def identity(self, source: Source) -> Any:
        """What decides a score beside the weights and their files: plain data, or None where nothing can tell.

        A live module (its forward pass may have been changed), a function that makes one, and a tokenizer given as an
        object cannot be told from another.
        """
        objects = self._tokenizer is not None and not _is_path(self._tokenizer)
        if isinstance(source, LiveSource) or self._factory is not None or objects:
            return None
        files = _folder_files(self._tokenizer) if self._tokenizer is not None else {}
        return {name: digest_of_bytes(data) for name, data in files.items()}

    def forget(self) -> None:
        """Lets the module go, and its memory."""
        self._kept = self._built = None
        self._vocabularies.clear()

    def tokenizer(self, source: Source) -> Any:
        """The tokenizer of a source.

        Raises `CheckpointError` (E906) where there is none or it cannot be read, and for a merge of models whose tokens
        have other numbers, unless its recipe says whose tokenizer to take.
        """
        if self._tokenizer is not None and not _is_path(self._tokenizer):
            return self._tokenizer
        if self._tokenizer is not None:
            return self._read_tokenizer(_folder_files(self._tokenizer), source.label)
        if isinstance(source, MergedSource) and source.plan.tokenizer is None:
            self._refuse_apart(sources_in(source.plan))
        return self._read_tokenizer(files_of(source), source.label)

    def config(self, source: Source, kind: Kind) -> Any:
        """The model's config. Raises `CheckpointError` (E905) where there is none or `transformers` has no such model.

        A module that the factory makes, or a live one, has the one that it carries, if any.
        """
        if isinstance(source, LiveSource):
            return getattr(source.module, "config", None)
        if self._factory is not None:
            return None
        return self._architecture(source, kind)[0]

    def check_module(self, source: Source) -> None:
        """Raises `RecipeError` (E905) where nothing says what module a source is."""
        if not isinstance(source, LiveSource) and self._factory is None:
            raise RecipeError(Problem("E905", f"nothing says what module {source.label!r} is", hint=_FACTORY))

    def _loaded(self, source: Source, kind: Kind, device: str, dtype: str | None) -> torch.nn.Module:
        wanted = (kind, device, dtype)
        if self._kept and self._kept[0] is source and self._kept[1] == wanted and _is_fixed(source):
            assert self._built is not None
            return self._built[1]
        self._kept = None
        files = files_of(source) if self._factory is None else {}
        specs = sorted((name, spec.dtype, spec.shape) for name, spec in source.specs.items())
        key = [wanted, specs, dict(source.ties), files.get("config.json", b"").decode("utf-8", "replace")]
        if self._built is not None and self._built[0] == key and self._built[1].state_dict().keys() >= set(source):
            _refill(self._built[1], source)
        else:
            self._built = None
            make = self._own if self._factory else self._transformers
            self._built = (key, make(source, kind, dtype).to(device))
        self._kept = (source, wanted)
        return self._built[1]

    def _own(self, source: Source, _kind: Kind, dtype: str | None) -> torch.nn.Module:
        assert self._factory is not None
        module: torch.nn.Module = self._factory()
        if not isinstance(module, torch.nn.Module):
            message = f"the function made a {type(module).__name__}, and no module"
            raise RecipeError(Problem("E905", message, "module"))
        try:
            module.load_state_dict(dict(source))
        except RuntimeError as error:
            message = f"{source.label!r} does not fit the module: {' '.join(str(error).split())}"
            raise CheckpointError(Problem("E905", message, hint="`module=` must make what was saved")) from error
        return module if dtype is None else module.to(getattr(torch, dtype))

    def _transformers(self, source: Source, kind: Kind, dtype: str | None) -> torch.nn.Module:
        config, made = self._architecture(source, kind)
        if dtype == "float64":
            config._experts_implementation = "eager"  # the grouped product of experts knows no float64
        try:
            with quiet():
                module, report = made.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(source),
                    dtype=dtype or "auto",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are told here
                )
        except (RuntimeError, ValueError, KeyError, TypeError, ImportError) as error:
            message = f"{source.label!r} does not fit {made.__name__}: {str(error).splitlines()[0]}"
            raise CheckpointError(Problem("E905", message, hint=_BELONG)) from error
        if report["mismatched_keys"]:
            # Where heads are missing as well, this is why.
            other = [f"{name} is {list(has)} and not {list(of)}" for name, has, of in sorted(report["mismatched_keys"])]
            message = f"{source.label!r} does not fit {made.__name__} as its config.json has it: {listed(other)}"
            raise CheckpointError(Problem("E905", message, hint=_BELONG))
        # Sentences are pooled here, not by the head for a first token, which many encoders are saved without.
        missing = sorted(name for name in report["missing_keys"] if kind != "encoder" or "pooler." not in name)
        if missing:
            message = f"{source.label!r} lacks tensors of {made.__name__}: {listed(missing)}"
            raise CheckpointError(Problem("E905", message, hint="they would be random numbers"))
        found: torch.nn.Module = module
        return found

    def _architecture(self, source: Source, kind: Kind) -> tuple[Any, Any]:
        """The config, and the class that `transformers` has for it."""
        if kind == "any":
            self.check_module(source)
        text = files_of(source).get("config.json")
        if text is None:
            message = f"{source.label!r} has no config.json beside its weights"
            raise CheckpointError(Problem("E905", message, hint=_FACTORY))
        library = transformers_module()
        try:
            data = json.loads(text)
            with quiet():
                config = library.AutoConfig.for_model(data["model_type"]).from_dict(data)
                with torch.device("meta"):
                    made = _saved(library, data) if kind == "saved" else _made(library, kind, config)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            message = f"transformers makes no {kind} model of the config.json of {source.label!r}: {_said(error)}"
            hint = "a model with Python code of its own is never run; " + _FACTORY
            raise CheckpointError(Problem("E905", message, hint=hint)) from error
        return config, made

    def _refuse_apart(self, sources: Sequence[Source]) -> None:
        for source in sources:
            if id(source) not in self._vocabularies:
                self._vocabularies[id(source)] = (source, tokens_of(files_of(source)))
        known = [(source.label, tokens) for source in sources if (tokens := self._vocabularies[id(source)][1])]
        for label, tokens in known[1:]:
            if tokens != known[0][1] and are_apart(known[0][1], tokens):
                how = how_tokens_differ(known[0][1], tokens)
                message = f"the vocabularies of {known[0][0]!r} and {label!r} differ: {how}"
                hint = "a mixture of them has no common tokenizer; `tokenizer_source` in a recipe says which to take"
                raise CheckpointError(Problem("E906", message, hint=hint))

    def _read_tokenizer(self, files: Mapping[str, bytes], label: str) -> Any:
        if not any(name.lower().startswith(_TOKENIZER) for name in files):
            hint = "copy the tokenizer's files beside the weights; in Python, give `tokenizer=`"
            raise CheckpointError(Problem("E906", f"{label!r} has no tokenizer beside its weights", hint=hint))
        key = digest_of_json({name: digest_of_bytes(data) for name, data in files.items()})
        if key not in self._tokenizers:
            self._tokenizers[key] = _tokenizer_of(files, label)
        return self._tokenizers[key]


def _tokenizer_of(files: Mapping[str, bytes], label: str) -> Any:
    library = transformers_module()
    # Only these files, so that no Python code lies beside them.
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            if "/" not in name:
                with open(os.path.join(folder, name), "wb") as file:
                    file.write(data)
        try:
            with quiet():
                return library.AutoTokenizer.from_pretrained(folder, **_SAFE)
        except Exception as error:  # the readers of two libraries, with exceptions of their own
            message = f"the tokenizer of {label!r} cannot be read: {_said(error) or type(error).__name__}"
            raise CheckpointError(Problem("E906", message)) from error


def _said(error: Exception) -> str:
    """What another library says, in a line: transformers lists hundreds of kinds of models behind it."""
    return shorten(str(error).strip().partition("\n")[0], 160, placeholder=" …")


def _made(library: Any, kind: Kind, config: Any) -> Any:
    """The class that a model of a kind has."""
    return type(getattr(library, _AUTO[kind]).from_config(config))


def _saved(library: Any, config: Mapping[str, Any]) -> Any:
    """The class that a config names. Raises `ValueError` where it names none of the library's models."""
    names = config.get("architectures") or [None]
    found = getattr(library, str(names[0]), None)
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise ValueError(f"it has no model called {names[0]!r}")
    return found


def _is_fixed(source: Source) -> bool:
    """Whether its tensors stay what they are: those of files do, tensors in memory may have been changed since."""
    inputs = sources_in(source.plan) if isinstance(source, MergedSource) else [source]
    return all(one.files() is not None for one in inputs)


def _is_path(thing: Any) -> bool:
    return isinstance(thing, str | os.PathLike)


def _folder_files(folder: Any) -> dict[str, bytes]:
    return companions(os.path.expanduser(os.fspath(folder)), None).files


def _refill(module: torch.nn.Module, source: Source) -> None:
    """Copies other weights into a module that was made of a source with the same names, dtypes and shapes."""
    there = module.state_dict()
    with torch.no_grad():
        for name in source:
            there[name].copy_(source[name])


def transformers_module() -> Any:
    """The library. Raises `RecipeError` (E910) where it is not installed."""
    return needed("transformers", "transformers")


def needed(package: str, extra: str) -> Any:
    """A package that an extra brings. Raises `RecipeError` (E910) where it is not installed."""
    try:
        return import_module(package)
    except ImportError as error:
        hint = f"pip install 'eutectic[{extra}]'"
        raise RecipeError(Problem("E910", f"this task needs the package {package}", hint=hint)) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress bars and reports of `transformers`."""
    logging: Any = import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # CRITICAL
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
