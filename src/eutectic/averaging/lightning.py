"""A callback for Lightning's `Trainer` that averages the module's weights while it trains."""

from __future__ import annotations

from typing import Any

from eutectic.averaging.missing import MissingLibraryError
from eutectic.averaging.running import WeightAverage

try:
    from lightning.pytorch import Callback
except ImportError:
    raise MissingLibraryError("lightning", "Lightning") from None


class AveragingCallback(Callback):
    """Averages weights after each optimiser step, validates the average, and leaves it in the module at the end.

        trainer = Trainer(..., callbacks=[AveragingCallback(start=1000, period=100)])
        trainer.fit(module, loader)

    While the module is validated it has the average's weights, so that what is logged is the average's. Checkpoints
    hold the module's own weights, and the average as the callback's state; `fit(ckpt_path=...)` goes on with both.
    `average` is the `WeightAverage`, once fitting has begun.

    Args:
        validate: validate the average; False to validate the module's own weights.
        apply: leave the average in the module when fitting has ended.
        bn_loader: batches to compute batch normalisation statistics from before that.
        options: arguments of `WeightAverage`; steps are the Trainer's.
    """

    def __init__(self, *, validate: bool = True, apply: bool = True, bn_loader: Any = None, **options: Any) -> None:
        self.average: WeightAverage | None = None
        self._validate, self._apply, self._bn_loader, self._options = validate, apply, bn_loader, options
        self._loaded: dict[str, Any] | None = None
        self._seen = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = WeightAverage(pl_module, **self._options)
        if self._loaded is not None:
            # Lightning restores callbacks before the module is where it will train.
            self.average.load_state_dict(self._loaded)
            self._loaded = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        # Only now does a resumed Trainer know its step.
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        # Gradients may be accumulated over several batches.
        while self._seen < trainer.global_step:
            self._running().step()
            self._seen += 1

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self._validate and trainer.state.fn == "fit" and self._running().collected:
            self._running().swap_in()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        # Lightning's own checkpoints are written after this.
        if self.average is not None:
            self.average.swap_out()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        average = self._running()
        average.swap_out()
        if self._apply:
            average.finish(self._bn_loader)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict or None

    def _running(self) -> WeightAverage:
        assert self.average is not None, "fitting has begun"
        return self.average
