"""A callback for the `Trainer` of transformers that averages the model's weights while it trains."""

from __future__ import annotations

import os
import warnings
from typing import Any

from eutectic.averaging.missing import MissingLibraryError
from eutectic.averaging.running import WeightAverage
from eutectic.errors import Problem, RecipeError

try:
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import TrainerCallback
except ImportError:
    raise MissingLibraryError("transformers", "transformers") from None

# In each checkpoint, for a resumed run.
STATE = "weight_average.safetensors"


class AveragingCallback(TrainerCallback):
    """Averages weights after each optimiser step, evaluates the average, and leaves it in the model at the end.

        trainer = Trainer(..., callbacks=[AveragingCallback(decay=0.999)])
        trainer.train()
        trainer.save_model("averaged")

    While the Trainer evaluates, the model has the average's weights, so that scores are the average's. Its checkpoints
    hold the model's own weights and beside them the state of the average; a run that is resumed from the output folder
    goes on with both. `average` is the `WeightAverage`, once training has begun.

    Args:
        evaluate: evaluate the average; False to evaluate the model's own weights.
        apply: leave the average in the model when training has ended.
        bn_loader: batches to compute batch normalisation statistics from before that.
        options: arguments of `WeightAverage`; steps are the Trainer's.
    """

    def __init__(self, *, evaluate: bool = True, apply: bool = True, bn_loader: Any = None, **options: Any) -> None:
        self.average: WeightAverage | None = None
        self._evaluate, self._apply, self._bn_loader, self._options = evaluate, apply, bn_loader, options
        self._hook: Any = None
        # Whether the Trainer is about to evaluate. Another callback may run the model for purposes of its own, and the
        # Trainer might save it afterwards.
        self._due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if args.load_best_model_at_end:
            message = "load_best_model_at_end would load a checkpoint without the average"
            raise RecipeError(Problem("T706", message, hint="set it to False: the model gets the average at the end"))
        average = WeightAverage(model, **self._options)
        if average.first > state.max_steps:
            message = f"the average would start at step {average.first}, and training ends at step {state.max_steps}"
            place = "start" if average.start else "period"
            raise RecipeError(Problem("T706", message, place, "start it earlier, often after 75 % of the steps"))
        self._let_go()  # of a training that broke off
        self.average = average
        if state.global_step:
            self._resume(os.path.join(args.output_dir, f"checkpoint-{state.global_step}", STATE), state.global_step)
        if self._evaluate:
            self._hook = model.register_forward_pre_hook(lambda module, _: self._follow(module.training))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._due = False
        self._running().swap_out()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._running().step()
        self._due = control.should_evaluate

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._due = control.should_evaluate

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # The next thing may be a checkpoint, which is to hold the model's own weights, or another set to evaluate.
        if self.average is not None:
            self.average.swap_out()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero or args.save_only_model:
            return
        saved = self._running().state_dict()
        numbers = {name: str(saved[name]) for name in ("steps", "collected", "statistics_at")}
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if not os.path.isdir(folder):
            return  # a hyperparameter search saves elsewhere, and is never resumed
        save_file(
            {name: value.contiguous() for name, value in saved["values"].items()}, os.path.join(folder, STATE), numbers
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        average = self._running()
        self._let_go()
        if self._apply:
            average.finish(self._bn_loader)

    def _running(self) -> WeightAverage:
        assert self.average is not None, "training has begun"
        return self.average

    def _follow(self, training: bool) -> None:
        """Gives the model the average's weights where it is evaluated, and its own where it trains."""
        average = self._running()
        if training:
            average.swap_out()
        elif self._due and average.collected and not average.is_swapped_in:
            average.swap_in()

    def _let_go(self) -> None:
        if self.average is not None:
            self.average.swap_out()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _resume(self, path: str, step: int) -> None:
        average = self._running()
        average.steps = step
        if not os.path.exists(path):
            warnings.warn(f"there is no {path}: the average starts anew at step {step}", stacklevel=2)
            return
        with safe_open(path, "pt") as file:
            numbers = {name: int(text) for name, text in (file.metadata() or {}).items()}
            names = file.keys()
            average.load_state_dict({**numbers, "values": {name: file.get_tensor(name) for name in names}})
