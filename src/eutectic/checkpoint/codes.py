"""What `eutectic explain` says of the problems that reading a model and writing an output can have."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "C200": (
        "no such model",
        "The reference is neither an existing path nor a hub id. Paths are looked for from the current folder, then "
        "from the recipe's folder; a hub id has the form `org/name` or `org/name@revision`. Check the spelling.",
    ),
    "C201": (
        "no weights found",
        "The folder or hub repository exists, but holds none of `model.safetensors`, `pytorch_model.bin`, their "
        "`.index.json`, or a single other safetensors file. Shards need the index that came with them. If the weights "
        "lie in a subfolder, name that folder.",
    ),
    "C202": (
        "several sets of weights",
        "The folder holds more than one model, for example a single file beside the index of an older, sharded save. "
        "Programs differ in which one they load, so neither is guessed. Name the file or the index you mean as the "
        "model, or move the other one away.",
    ),
    "C204": (
        "not a checkpoint that can be read",
        "Models are read from safetensors files and from torch's zip files (.bin, .pt, .pth), alone or sharded in a "
        "folder. GGUF and other formats must be converted to safetensors first.",
    ),
    "C205": (
        "LoRA adapters are not read yet",
        "The reference names a LoRA adapter, alone or added to a model with `+`. Merge the adapter into its base "
        "model first (PEFT's `merge_and_unload`), save the result and name that folder.",
    ),
    "C206": (
        "index and shards disagree",
        "A shard that the index names is missing, lacks a tensor that the index places there, or holds one that it "
        "does not. Most often a download stopped half-way or two saves were mixed in one folder. Download the model "
        "again into an empty folder. Shards that the index does not name are left alone.",
    ),
    "C207": (
        "the index is broken",
        "The `.index.json` is not JSON, names a key twice, has no `weight_map` from tensor names to file names, or "
        "names a file of another kind. Download it again or save the model anew.",
    ),
    "C208": (
        "a path that leaves the model's folder",
        "A name in the index, or a link in the folder, leads to a file elsewhere on this machine. A model is data "
        "and has no say over which files are read, so this is refused. Links within the folder, and those of the "
        "Hugging Face cache into the same repository, are followed. If you made the link yourself, name the real "
        "folder or copy the file.",
    ),
    "C209": (
        "URLs are not fetched",
        "A model is named by a path or a hub id; an address in a recipe would let its author choose what your "
        "machine connects to. Download the model and name its folder.",
    ),
    "C210": (
        "the file is cut short",
        "The file is too short for the header it announces: an unfinished download, an empty placeholder such as a "
        "Git LFS pointer, or not a safetensors file at all. Download it again.",
    ),
    "C211": (
        "the header is too large",
        "A safetensors header of more than 10 MB (some 80,000 tensors in one file) takes a reader seconds and "
        "hundreds of megabytes before the first tensor. Save the model in several shards.",
    ),
    "C212": (
        "the header is not what safetensors prescribes",
        "The header must be one JSON object, beginning with `{`, in UTF-8, with no key twice and no numbers but "
        "natural ones. Looser files are understood differently by different readers. Download or save it again.",
    ),
    "C213": (
        "an entry of the header is malformed",
        "Each tensor has exactly a dtype, a shape and two offsets, and the bytes between the offsets must be what "
        "dtype and shape need. The metadata may map only strings to strings. Download or save the file again.",
    ),
    "C214": (
        "unknown dtype",
        "The header names a dtype that is not read here, perhaps a newer or a packed one. Convert the tensor to "
        "bfloat16, float16 or float32 and save the model again.",
    ),
    "C215": (
        "the tensors do not fill the file",
        "The tensors of a safetensors file follow each other without a hole or an overlap up to its last byte. This "
        "one was cut short, was written wrongly, or hides something. Download it again.",
    ),
    "C216": (
        "not a tensor name",
        "A tensor's name is 1 to 4096 printable characters. Others could forge a terminal's output, look like "
        "another name, or cannot be stored. Rename the tensor and save the model again.",
    ),
    "C220": (
        "an input changed while it was being read",
        "A file of the model has another size, time or identity than when its header was read. What was read so far "
        "may belong to two models, so nothing of it is kept as finished. Let nothing write to the models while they "
        "are merged, then run the same command again.",
    ),
    "C221": (
        "a file cannot be read",
        "The operating system refused, or the file ended too early; its own words stand in the message. Check "
        "permissions, the disk and the network mount. Pipes, devices and folders are not read as weights. Every file "
        "of every model is open during a merge: many models of many shards may need a higher `ulimit -n`.",
    ),
    "C222": (
        "read after close",
        "The Source was closed before this tensor was read. Read inside the block that opened it, or open it again.",
    ),
    "C240": (
        "not a tensor",
        "A live model may hold dense torch tensors and numpy arrays of the dtypes that checkpoints have. Sparse, "
        "quantised and meta tensors, complex numbers and other objects are not merged: leave them out or convert.",
    ),
    "C250": (
        "huggingface_hub is not installed",
        "Hub ids need the optional package: `pip install 'eutectic[hub]'`. Folders and files need nothing.",
    ),
    "C251": (
        "no such hub model",
        "The hub knows no model of this name, no such revision, or hides a private one from this account. Check the "
        "spelling of `org/name@revision`; for a private model log in with `hf auth login`.",
    ),
    "C252": (
        "no access to a gated hub model",
        "The owner asks for agreement first. Accept the conditions on the model's page, then log in on this machine "
        "with `hf auth login`.",
    ),
    "C253": (
        "not in the local cache",
        "The hub may not be asked (HF_HUB_OFFLINE) or cannot be reached, and the cache lacks the model or part of "
        "its weights. Download it where there is a network, with `hf download org/name`, or name a folder.",
    ),
    "C254": (
        "the hub could not be asked",
        "The hub or the network failed; the client's own words stand in the message. Try again later: what was "
        "downloaded is kept.",
    ),
    "C260": (
        "no statistics",
        "The folder named under `statistics` has no statistics.json. `eutectic collect` measures statistics of a model "
        "and writes them to a folder of their own.",
    ),
    "C261": (
        "broken statistics.json",
        "The file that says what was measured is no JSON or lacks what a merge needs to know. Collect the statistics "
        "again.",
    ),
    "W401": (
        "the output exists",
        "A merge never writes into an existing folder. Choose another name, or pass `--replace`: the old folder stays "
        "until the new one is complete, and is then removed; a folder that holds files which no merge wrote is never "
        "replaced, and if OUT.partial is such a folder nothing is begun. The very same merge finds its own output and "
        "is done, if it was made from the very files that the models have now (by path, size, time and inode) and its "
        "weights are all there. Models in memory never count. A recipe that `eutectic learn` wrote is not looked into: "
        "the same command again is refused, or with `--replace` learns anew.",
    ),
    "W402": (
        "another run is writing this output",
        "Two runs into one folder would mix two models. Wait for the other run, or choose another name. If it was "
        "killed, the lock went with it; this message means that it lives.",
    ),
    "W403": (
        "unfinished work of another merge",
        "OUT.partial holds the work of another recipe, other models or other options. Run that command again to finish "
        "it, or pass `--replace` to discard it.",
    ),
    "W404": (
        "not enough disk space",
        "The whole size of the output is known before the merge starts, and the disk has less. Nothing was left "
        "behind. Free some space, or write to another disk.",
    ),
    "W405": (
        "the output cannot be written",
        "The operating system refused. What was finished is kept in OUT.partial; the same command resumes when the "
        "cause is mended.",
    ),
    "W406": (
        "the output would overwrite an input",
        "The output folder is, contains, or lies within one of the models that are merged. Choose another name.",
    ),
    "W407": (
        "interrupted",
        "The merge was stopped by a signal. Finished tensors are kept in OUT.partial; the same command goes on from "
        "there, and the result is the same as without the interruption.",
    ),
    "W408": (
        "standard output cannot be written",
        "What a command says goes to standard output, and the file or device behind it refused: a full disk above all. "
        "A merge, and everything else that makes files, goes on to its end all the same, so that no work is lost for "
        "the words about it; then the exit code is 1. A pipe whose reader has gone away (`eutectic plan r.yml | head`) "
        "is no problem and is passed over in silence.",
    ),
}
