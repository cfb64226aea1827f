"""The callbacks in real training: transformers' Trainer and Lightning's."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from eutectic.averaging import WeightAverage
from eutectic.errors import RecipeError

STEPS, ROWS = 12, 8


def rows():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(STEPS * ROWS, 4, generator=generator)
    return x, x.sum(1, keepdim=True) + 0.5 * torch.randn(len(x), 1, generator=generator)


class Watched(nn.Module):
    """A small network that keeps what weights it was run with, by mode."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.ReLU())
        self.head = nn.Linear(6, 1)
        self.trained: list[torch.Tensor] = []
        self.evaluated: list[torch.Tensor] = []

    def forward(self, x, labels=None):
        (self.trained if self.training else self.evaluated).append(self.head.weight.detach().clone())
        out = self.head(self.body(x))
        return out if labels is None else {"loss": (out - labels).square().mean(), "logits": out}


def averages_of(weights, **options):
    """What a `WeightAverage` gives after each step of these weights of the head."""
    module = nn.Linear(6, 1, bias=False)
    average, found = WeightAverage(module, **options), []
    for weight in weights:
        with torch.no_grad():
            module.weight.copy_(weight)
        average.step()
        found.append(average.averaged()["weight"] if average.collected else None)
    return found


class TestTransformers:
    @pytest.fixture(autouse=True)
    def _library(self):
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")

    def trainer(self, model, folder, callback, **arguments):
        from transformers import Trainer, TrainingArguments

        x, y = rows()
        data = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
        chosen = {"save_strategy": "no", "learning_rate": 0.05, **arguments}
        settings = TrainingArguments(
            str(folder), per_device_train_batch_size=ROWS, per_device_eval_batch_size=len(data), num_train_epochs=1,
            report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", seed=5, **chosen,
        )  # fmt: skip
        evaluated = {"one": data[:8], "two": data[8:16]}
        return Trainer(model, settings, train_dataset=data, eval_dataset=evaluated, callbacks=[callback])

    def test_training_evaluation_and_end(self, tmp_path):
        from eutectic.averaging.transformers import AveragingCallback

        model, callback = Watched(), AveragingCallback(decay=0.8, start=3)
        self.trainer(model, tmp_path, callback, eval_strategy="steps", eval_steps=4).train()
        after = [*model.trained[1:], None]
        wanted = averages_of([weight for weight in after if weight is not None], decay=0.8, start=3)
        assert len(model.trained) == STEPS and len(model.evaluated) == 6  # two sets, three times
        for place, step in enumerate((4, 8)):
            for seen in model.evaluated[2 * place : 2 * place + 2]:
                torch.testing.assert_close(seen, wanted[step - 1])
        assert callback.average.collected == STEPS - 2 and not callback.average.is_swapped_in
        assert torch.equal(model.head.weight, callback.average.averaged()["head.weight"])
        assert torch.equal(model.evaluated[-1], model.head.weight)
        assert not model._forward_pre_hooks

    def test_the_models_own_weights_are_trained(self, tmp_path):
        from eutectic.averaging.transformers import AveragingCallback

        seen = []
        for callback in (AveragingCallback(decay=0.5), AveragingCallback(evaluate=False, apply=False)):
            model = Watched()
            self.trainer(model, tmp_path, callback, eval_strategy="epoch").train()
            seen.append(torch.stack(model.trained))
        assert torch.equal(*seen)
        assert not torch.equal(model.head.weight, callback.average.averaged()["head.weight"])
        assert torch.equal(model.evaluated[-1], model.head.weight)

    def test_another_callback_sees_and_saves_the_models_own_weights(self, tmp_path):
        from safetensors.torch import load_file
        from transformers import TrainerCallback

        from eutectic.averaging.transformers import AveragingCallback

        class Looking(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **_):
                model.eval()(torch.zeros(1, 4))
                model.train()

        model, callback = Watched(), AveragingCallback()
        trainer = self.trainer(model, tmp_path, callback, save_strategy="steps", save_steps=4)
        trainer.add_callback(Looking())
        trainer.train()
        assert torch.equal(torch.stack(model.trained[1:]), torch.stack(model.evaluated[:-1]))
        saved = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
        assert torch.equal(saved["head.weight"], model.trained[4])

    def test_a_resumed_run_goes_on(self, tmp_path):
        from eutectic.averaging.transformers import STATE, AveragingCallback

        whole, second = Watched(), Watched()
        settings = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 5}
        callback = AveragingCallback(start=2)
        self.trainer(whole, tmp_path, callback, **settings).train()
        folder = tmp_path / "checkpoint-5"
        assert (folder / STATE).exists()
        # The checkpoint holds the weights that were trained, not the average, although both were just evaluated.
        from safetensors.torch import load_file

        assert torch.equal(load_file(folder / "model.safetensors")["head.weight"], whole.trained[5])
        again = AveragingCallback(start=2)
        self.trainer(second, tmp_path, again, **settings).train(resume_from_checkpoint=str(folder))
        assert (again.average.steps, again.average.collected) == (12, 11)
        assert torch.equal(second.head.weight, whole.head.weight)
        os.remove(folder / STATE)
        with pytest.warns(UserWarning, match="the average starts anew at step 5"):
            third = AveragingCallback(start=2)
            self.trainer(Watched(), tmp_path, third, **settings).train(resume_from_checkpoint=str(folder))
        assert third.average.collected == 7

    def test_checkpoints_of_a_run_are_averaged_afterwards(self, tmp_path):
        import eutectic
        from eutectic.averaging.transformers import AveragingCallback

        model = Watched()
        callback = AveragingCallback(start=8, period=2, apply=False)
        self.trainer(model, tmp_path / "run", callback, save_strategy="steps", save_steps=2).train()
        made = eutectic.average(f"{tmp_path}/run/checkpoint-*", tmp_path / "out", last=3)
        with eutectic.open(made.path) as out:
            torch.testing.assert_close(out["head.weight"], callback.average.averaged()["head.weight"])

    def test_statistics(self, tmp_path):
        from eutectic.averaging.transformers import AveragingCallback

        model = Watched(norm=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="the batch normalisation")
            self.trainer(model, tmp_path, AveragingCallback(bn_loader=[rows()[0]])).train()
        inside = model.body[0](rows()[0])
        torch.testing.assert_close(model.body[1].running_mean, inside.mean(0))

    def test_an_average_that_would_never_start_is_refused(self, tmp_path):
        from eutectic.averaging.transformers import AveragingCallback

        with pytest.raises(RecipeError, match=r"T706 start: .* at step 13, and training ends at step 12"):
            self.trainer(Watched(), tmp_path, AveragingCallback(start=13)).train()
        with pytest.raises(RecipeError, match=r"T706 period: .* at step 13, and training ends at step 12"):
            self.trainer(Watched(), tmp_path, AveragingCallback(period=13)).train()

    def test_choosing_the_best_checkpoint_is_refused(self, tmp_path):
        from eutectic.averaging.transformers import AveragingCallback

        settings = {"save_strategy": "epoch", "eval_strategy": "epoch", "load_best_model_at_end": True}
        trainer = self.trainer(Watched(), tmp_path, AveragingCallback(), metric_for_best_model="one_loss", **settings)
        with pytest.raises(RecipeError, match="T706"):
            trainer.train()


class TestLightning:
    @pytest.fixture(autouse=True)
    def _library(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("lightning.pytorch")

    def module(self, norm=False):
        from lightning.pytorch import LightningModule

        class Module(LightningModule):
            def __init__(self):
                super().__init__()
                self.net = Watched(norm)

            def forward(self, x):
                return self.net(x)

            def training_step(self, batch, _):
                return self.net(*batch)["loss"]

            def validation_step(self, batch, _):
                self.net(*batch)

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters(), lr=0.05)

        return Module()

    def fit(self, module, folder, callback, ckpt_path=None, **options):
        from lightning.pytorch import Trainer
        from lightning.pytorch.callbacks import ModelCheckpoint

        x, y = rows()
        data = list(zip(x.split(ROWS), y.split(ROWS), strict=True))
        loader = DataLoader(data, batch_size=None)
        saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1)
        trainer = Trainer(
            max_epochs=options.pop("epochs", 2), accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[callback, saver], **options,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(num_workers|isinstance|LeafSpec|does not have|fork)")
            trainer.fit(module, loader, DataLoader(data[:1], batch_size=None), ckpt_path=ckpt_path)
        return trainer

    def test_training_validation_and_end(self, tmp_path):
        from eutectic.averaging.lightning import AveragingCallback

        module, callback = self.module(), AveragingCallback(decay=0.8, start=3)
        self.fit(module, tmp_path, callback)
        net = module.net
        wanted = averages_of(net.trained[1:], decay=0.8, start=3)
        assert len(net.trained) == 2 * STEPS and len(net.evaluated) == 2 + 1
        assert torch.equal(net.evaluated[0], net.trained[0])  # Lightning's check before training
        torch.testing.assert_close(net.evaluated[1], wanted[STEPS - 1])
        assert torch.equal(net.evaluated[2], net.head.weight)
        assert callback.average.collected == 2 * STEPS - 2

    def test_an_average_that_never_started_costs_nothing(self, tmp_path):
        from eutectic.averaging.lightning import AveragingCallback

        module = self.module()
        with pytest.warns(UserWarning, match="no weights were collected in 24 steps"):
            self.fit(module, tmp_path, AveragingCallback(start=25))
        assert torch.equal(module.net.head.weight, module.net.evaluated[-1])

    def test_accumulated_gradients_are_one_step(self, tmp_path):
        from eutectic.averaging.lightning import AveragingCallback

        callback = AveragingCallback(validate=False, apply=False)
        module = self.module()
        self.fit(module, tmp_path, callback, accumulate_grad_batches=4)
        assert callback.average.collected == callback.average.steps == 2 * STEPS // 4
        assert not torch.equal(module.net.head.weight, callback.average.averaged()["net.head.weight"])

    def test_a_resumed_run_goes_on(self, tmp_path):
        from eutectic.averaging.lightning import AveragingCallback

        whole, second = self.module(), self.module()
        self.fit(whole, tmp_path, AveragingCallback(start=2))
        path = tmp_path / f"step={STEPS}.ckpt"
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert torch.equal(saved["net.head.weight"], whole.net.trained[STEPS])
        callback = AveragingCallback(start=2)
        self.fit(second, tmp_path / "again", callback, ckpt_path=path)
        assert (callback.average.steps, callback.average.collected) == (2 * STEPS, 2 * STEPS - 1)
        torch.testing.assert_close(second.net.head.weight, whole.net.head.weight)

    def test_an_error_gives_the_weights_back(self, tmp_path):
        from eutectic.averaging.lightning import AveragingCallback

        module, callback = self.module(), AveragingCallback()
        step = module.net.forward

        def fail(*arguments):
            if not module.net.training and callback.average.collected:
                raise ZeroDivisionError
            return step(*arguments)

        module.net.forward = fail
        with pytest.raises(ZeroDivisionError):
            self.fit(module, tmp_path, callback)
        assert not callback.average.is_swapped_in

    def test_statistics(self, tmp_path):
        from eutectic.averaging.lightning import AveragingCallback

        module = self.module(norm=True)
        self.fit(module, tmp_path, AveragingCallback(validate=False, bn_loader=[rows()[0]]))
        torch.testing.assert_close(module.net.body[1].running_mean, module.net.body[0](rows()[0]).mean(0))


@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_a_missing_library_is_named_with_its_extra(library):
    code = (
        f"import sys; sys.modules[{library!r}] = None; sys.modules['{library}.pytorch'] = None\n"
        "from eutectic.errors import EutecticError\n"
        f"try:\n    import eutectic.averaging.{library}\n"
        "except ImportError as error:\n    assert isinstance(error, EutecticError)\n    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("T705 ") and f"pip install 'eutectic[{library}]'" in said


def test_the_room_loads_no_torch():
    code = "import sys, eutectic.averaging; print({'torch', 'transformers', 'lightning'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
