"""The class of every command. Options of mergekit's commands: what to do instead, where somebody types one."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

from eutectic.cli import arguments

INSTEAD = {
    "--cuda": "write --device cuda",
    "--random-seed": "write --seed",
    "--out-shard-size": "write --shard-size",
    "--num-threads": "write --threads",
    "--read-to-gpu": "write --device cuda",
    "--low-cpu-memory": "write --memory SIZE, which is kept",
    "--gpu-rich": "write --device cuda",
    "--multi-gpu": "write --device cuda:N: one GPU computes",
    "--copy-tokenizer": "leave it out: the tokenizer is copied; `tokenizer_source` in the recipe says whose",
    "--no-copy-tokenizer": "leave it out, and delete the tokenizer's files from OUT",
    "--lazy-unpickle": "leave it out: weights are streamed, and nothing is unpickled",
    "--async-write": "leave it out: it is done so",
    "--safe-serialization": "leave it out: safetensors are written",
    "--clone-tensors": "leave it out: tied tensors are written once",
    "--trust-remote-code": "leave it out: no code of a model is run",
    "--allow-crimes": "leave it out: what does not fit together is refused",
    "--write-model-card": "leave it out: `eutectic cite OUT` prints the papers, and eutectic.json what was merged",
    "--transformers-cache": "leave it out: HF_HOME names the cache",
    "--lora-merge-cache": "merge the adapter into its model first",
    "--lora-merge-dtype": "merge the adapter into its model first",
    "--resume": "leave it out: the same command resumes by itself",
    "--overwrite": "write --replace",
    "--force": "write --replace",
}


class Command(TyperCommand):
    """A command that says what to write instead of mergekit's options, and drops the words "Value error"."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, whose options problems are told in."""
        arguments.know(self)
        return super().invoke(ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, as the base class reads them."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # Typer has a `click` of its own from some version on: the error is told by what it carries.
            if (message := getattr(error, "message", "")).startswith("Value error, "):
                error.message = message.removeprefix("Value error, ")  # type: ignore[attr-defined]
            if instead := INSTEAD.get(getattr(error, "option_name", "")):
                error.possibilities = []  # type: ignore[attr-defined]
                error.message = f"{error.message}; {instead}"  # type: ignore[attr-defined]
            raise
