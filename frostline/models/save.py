"""Saved means read back (law 8), in the layout of a Hugging Face folder.

``config.json``               the architecture's configuration; under ``frostline`` the card: name, arguments, labels, preprocessing
``model.safetensors``         every parameter and buffer
``preprocessor_config.json``  for images, as ``transformers`` reads it; for text the tokenizer's files
``manifest.json``             name, shape, dtype and BLAKE2b hash of every tensor, and one hash over all of them

:func:`save_model` writes a folder beside the final one, fsyncs it, reads it again, compares every tensor and the outputs on
given rows bit by bit, and only then renames it into place. What fails leaves nothing behind.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frostline.data.preprocess import ImagePreprocess
from frostline.device import device_of
from frostline.errors import ModelError, RunError
from frostline.files import separate, sync_folder
from frostline.models import hf_module
from frostline.models.build import build
from frostline.models.card import Saved, card_from_dict, card_to_dict, read_json
from frostline.models.image_processor import image_processor_config
from frostline.models.model import Model, evaluating, lay_out, logits_of
from frostline.models.output import passed_through
from frostline.models.own_module import adopt
from frostline.models.weights import read_weights

Rebuild = Callable[[nn.Module, dict[str, Any]], nn.Module]
"""(module, card.arguments["adapt"]) → the module with its adapters in place; comes from frostline.adapt, to the right of here."""

_GPU_ROUNDS = 2e-2
_RANDOM = {f"{kind}{law}_" for kind in ("", "kaiming_", "xavier_", "trunc_") for law in ("normal", "uniform")}  # of torch.nn.init
_PROBES = ("A text to compare the tokenizers by: it's 3.14, isn't it?", "用来比较分词器的一句话，ＡＢＣ１２３。", "")


def save_model(model: Model, folder: str | Path, check_inputs: dict[str, Tensor] | None = None, rebuild: Rebuild | None = None) -> None:
    """Write ``model`` to ``folder`` and prove that it can be read. Raises RunError naming what differs; nothing is then left.

    ``check_inputs``: rows on which both must give the same outputs. ``rebuild`` puts adapters back; without it an adapted
    module is read into a copy of itself.
    """
    if any(isinstance(part.__dict__.get("kept"), nn.Module) for part in model.module.modules()):
        raise ModelError("save_model: got a merged adapter, which a reader would add again. Use: unmerge(module) or merge_into_base(model)")
    folder = Path(folder)
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)
        _write(model, temporary)
        sync_files(temporary)
        _compare(model, _read_again(model, temporary, rebuild), check_inputs)
        put_in_place(temporary, folder)
    except OSError as error:
        raise RunError(
            f"model folder {str(folder)!r} could not be written: {error.strerror or error}. Free space or choose another folder with --out"
        ) from error
    except ModelError as error:
        raise RunError(f"model folder {str(folder)!r} was not written, because what was saved does not read back: {error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def load_model(folder: str | Path, module: nn.Module | None = None, rebuild: Rebuild | None = None, saved: Saved | None = None) -> Model:
    """What :func:`save_model` wrote, in evaluation mode. Raises ModelError for anything missing, unknown, damaged or of another size.

    ``module``: for a network that was handed over, a fresh one of its class. ``rebuild``: puts adapters in place. ``saved``: what
    :func:`read_saved` gave, where it is read already.
    """
    saved, folder = saved or read_saved(folder), saved_folder(folder)
    card = saved.card
    state = _read_tensors(folder)
    if hf_module.is_native(card):
        _refuse_larger(card, state, folder)
        module = hf_module.load_native(card, {name: tensor.clone() for name, tensor in state.items()})
        hf_module.read_generation(module, folder)
    else:
        module = _filled(_skeleton(saved, state, folder, module, rebuild), state, folder)
    for name in (*saved.blocks, *saved.head, *filter(None, (saved.body, saved.output))):
        if name not in dict(module.named_modules()):
            raise ModelError(
                f"{folder / 'config.json'}: frostline names the module {name!r}, which the network does not have. Save the model again"
            )
    if saved.channels_last:
        lay_out(module, channels_last=True)
    names = {"blocks": saved.blocks, "head": saved.head, "body": saved.body, "output": saved.output}
    return Model(module=module.eval(), card=card, **names)  # type: ignore[arg-type]


def read_saved(folder: str | Path) -> Saved:
    """What a saved model says of itself, its weights left unread. Raises ModelError where that is missing or damaged."""
    folder = saved_folder(folder)
    config = hf_config(folder)
    saved = card_from_dict(config.pop("frostline"), folder)
    if saved.card.name == "transformers" and "config" not in saved.card.arguments:
        saved.card.arguments["config"] = config
    return saved


def saved_folder(folder: str | Path) -> Path:
    """The model's folder: ``folder`` itself, or ``model`` in a run's. Raises ModelError where neither holds a saved model."""
    folder = Path(folder)
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file() and (place / "manifest.json").is_file():
            return place
    raise ModelError(
        f"{str(folder)!r} holds no saved model, expected config.json and manifest.json there or in model/. Give a run's folder"
    )


def hf_config(folder: Path) -> dict[str, Any]:
    """config.json of a saved model. Raises ModelError where it has no card."""
    config = read_json(folder / "config.json")
    if "frostline" not in config:
        raise ModelError(
            f"{str(folder / 'config.json')!r} has no key 'frostline', expected one: it was not saved by frostline. "
            "Give it a task: fl.load(FOLDER, task=data.task)"
        )
    return config


def _write(model: Model, folder: Path) -> None:
    values = card_to_dict(model, _is_channels_last(model.module))
    config: dict[str, Any] = {"model_type": "frostline", "architectures": [type(model.module).__name__]}
    _write_tensors(model, folder)
    if hf_module.is_native(model.card):
        config = read_json(folder / "config.json")
        del values["arguments"]["config"]  # the rest of the file is that
    _write_json(folder / "config.json", {**config, "frostline": values})
    if isinstance(model.card.preprocess, ImagePreprocess):
        _write_json(folder / "preprocessor_config.json", image_processor_config(model.card.preprocess))
    else:
        with hf_module.quiet():
            model.card.preprocess.tokenizer.save_pretrained(folder)
    _write_json(folder / "manifest.json", manifest_of(read_weights(folder / "model.safetensors")))


def _write_tensors(model: Model, folder: Path) -> None:
    """All parameters and buffers. The format knows no sharing, so tied ones are written once, under the first name; those of a
    module that was handed over under each, since nobody knows whether the next one of its class is tied.

    An architecture of ``transformers`` writes itself, and its config.json, under the names that its checkpoints have.
    """
    from safetensors.torch import save_file

    if hf_module.is_native(model.card):
        with hf_module.quiet():
            model.module.save_pretrained(folder, max_shard_size="1000GB")  # type: ignore[operator]
        return
    tied = {} if model.card.name == "custom" else tied_names(model.module)
    state = separate({name: tensor for name, tensor in model.module.state_dict().items() if name not in tied})
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def tied_names(module: nn.Module) -> dict[str, str]:
    """The later names of a parameter that has several, each with its first one."""
    first: dict[int, str] = {}
    names = [(name, first.setdefault(id(parameter), name)) for name, parameter in module.named_parameters(remove_duplicate=False)]
    return {name: own for name, own in names if name != own}


def manifest_of(state: dict[str, Tensor]) -> dict[str, Any]:
    """Name, shape, dtype and hash of every tensor, and a hash over all that."""
    names = sorted(state)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets the interpreter go
        hashes = list(pool.map(lambda name: _hash(state[name]), names))
    tensors = [
        {"name": name, "shape": list(state[name].shape), "dtype": str(state[name].dtype).removeprefix("torch."), "hash": found}
        for name, found in zip(names, hashes)
    ]
    total = hashlib.blake2b(json.dumps(tensors, sort_keys=True).encode(), digest_size=32).hexdigest()
    return {"version": 1, "algorithm": "blake2b-256", "tensors": tensors, "total": total}


def _hash(tensor: Tensor) -> str:
    return hashlib.blake2b(_bytes(tensor).numpy().data, digest_size=32).hexdigest()


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _identical(first: Tensor, second: Tensor) -> bool:
    """Bit by bit, so that a NaN equals itself."""
    return first.shape == second.shape and first.dtype == second.dtype and torch.equal(_bytes(first), _bytes(second))


def _same_outputs(first: Tensor, second: Tensor) -> bool:
    """To the last bit, but for a GPU, which may choose another way to multiply the second time."""
    if _identical(first, second) or first.device.type == "cpu":
        return _identical(first, second)
    return first.shape == second.shape and bool((first - second).abs().max() <= _GPU_ROUNDS * first.abs().max())


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """model.safetensors, each tensor as the manifest says."""
    expected = read_json(folder / "manifest.json")
    state = read_weights(folder / "model.safetensors")
    found = manifest_of(state)
    if found == expected:
        return state
    fix = "Copy the folder again, or save the model again"
    try:
        listed = {entry["name"]: entry for entry in expected["tensors"]}
    except (KeyError, TypeError) as error:
        raise ModelError(
            f"{str(folder / 'manifest.json')!r} is damaged: got {str(expected)[:40]!r}, expected a list of tensors. {fix}"
        ) from error
    for entry in found["tensors"]:
        if entry != listed.get(entry["name"]):
            raise ModelError(
                f"{str(folder / 'model.safetensors')!r}: tensor {entry['name']!r} is not the one in manifest.json: "
                f"the file was damaged or changed. {fix}"
            )
    missing = sorted(set(listed) - set(state)) or ["total"]
    raise ModelError(f"{str(folder / 'model.safetensors')!r} lacks {missing[0]!r}, which manifest.json lists. {fix}")


def _skeleton(saved: Saved, state: dict[str, Tensor], folder: Path, module: nn.Module | None, rebuild: Rebuild | None) -> nn.Module:
    """The network that the tensors belong to. Its size is checked on the meta device before memory is taken."""
    card, adapt = saved.card, saved.card.arguments.get("adapt")
    if module is None and card.name != "custom":
        _refuse_larger(card, state, folder)
    with _WithoutRandomWeights():
        made = build(card) if module is None else adopt(module, card.schema)
    if adapt is None or (module is not None and rebuild is None):
        return made
    if rebuild is None or not isinstance(adapt, dict):
        raise ModelError(
            f"{str(folder)!r} holds adapters {adapt!r}, which need frostline.adapt to be put in place. Load it "
            f"with: fl.load({str(folder)!r})"
        )
    return rebuild(made, adapt)


class _WithoutRandomWeights(TorchFunctionMode):
    """Within, weights are zeros: each will be read from the file, and drawing a hundred million takes seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") not in _RANDOM:
            return func(*args, **(kwargs or {}))
        with torch.no_grad():
            return (args[0] if args else kwargs["tensor"]).zero_()  # within any bounds, for those that draw until they are


def _refuse_larger(card: Any, state: dict[str, Tensor], folder: Path) -> None:
    held = sum(tensor.numel() * (2 if tensor.dtype == torch.uint8 else 1) for tensor in state.values())  # two weights of 4 bits to a byte
    config = card.arguments.get("config", {})
    if not isinstance(config, dict):
        raise ModelError(
            f"{folder / 'config.json'}: frostline.arguments.config got {str(config)[:40]!r}, expected an object. Save the model again"
        )
    for name, value in {**card.arguments, **config}.items():
        if name in ("depth", "num_hidden_layers") and (not isinstance(value, int) or value > len(state)):
            raise ModelError(
                f"{folder / 'config.json'}: {name} got {value!r}, but the file holds {len(state)} tensors. Save the model again"
            )
    layers = hf_module.claimed_layers(config)
    if layers > 2 * len(state) + 100:  # some architectures (ALBERT) use one layer's weights many times
        raise ModelError(
            f"{folder / 'config.json'} describes {layers!r} layers, but the file holds {len(state)} tensors. Save the model again"
        )
    with torch.device("meta"), _WithoutRandomWeights():  # some are drawn there by what only PyTorch's compiler brings along
        claimed = sum(parameter.numel() for parameter in build(card).parameters())
    if claimed > held:
        raise ModelError(
            f"{folder / 'config.json'} describes a network of {claimed!r} numbers, model.safetensors holds {held!r}. Save the model again"
        )


def _filled(module: nn.Module, state: dict[str, Tensor], folder: Path) -> nn.Module:
    """Strict both ways: names, shapes and dtypes. What is tied may stand in the file once."""
    own = module.state_dict()
    state = state | {name: state[first] for name, first in tied_names(module).items() if name not in state and first in state}
    for name in (*own, *state):
        mine, theirs = (f"{tuple(t.shape)} {t.dtype}" if t is not None else "nothing" for t in (own.get(name), state.get(name)))
        if mine != theirs:
            raise ModelError(
                f"{str(folder / 'model.safetensors')!r}: {name!r} is {theirs} in the file and {mine} in the network. "
                "Give the network that was saved, or save it again"
            )
    module.load_state_dict(state)
    return module


def _read_again(model: Model, folder: Path, rebuild: Rebuild | None) -> Model:
    if model.card.name == "custom" or ("adapt" in model.card.arguments and rebuild is None):
        return load_model(folder, module=copy.deepcopy(model.module))  # the adapters are in it already
    return load_model(folder, rebuild=rebuild)


def _compare(model: Model, again: Model, check_inputs: dict[str, Tensor] | None) -> None:
    """Raises ModelError naming the first thing that differs."""
    mine, theirs = model.module.state_dict(), again.module.state_dict()
    for name in (*mine, *theirs):
        if name not in mine or name not in theirs or not _identical(mine[name], theirs[name]):
            raise ModelError(f"tensor {name!r} is not the same after reading")
    for what in ("schema", "pretrained", "source"):
        if getattr(model.card, what) != getattr(again.card, what):
            raise ModelError(f"{what} {getattr(model.card, what)!r} is read back as {getattr(again.card, what)!r}")
    read = again.card.preprocess.to_dict()
    names = [(made.blocks, made.head, made.body, made.output) for made in (model, again)]
    if model.card.preprocess.to_dict() != read or names[0] != names[1]:
        raise ModelError(f"preprocessing, blocks, head or output are not the same after reading: {read!r}, {names[1]!r}")
    if not isinstance(model.card.preprocess, ImagePreprocess):
        _compare_tokenizers(model, again)
    if check_inputs is not None:
        again.module.to(device_of(model.module))
        first, second = _outputs(model, check_inputs), _outputs(again, check_inputs)
        if not _same_outputs(first, second):
            raise ModelError(f"outputs on the {len(first)} rows of the check are not the same after reading")


def _compare_tokenizers(model: Model, again: Model) -> None:
    for text in _PROBES:
        ids = [made.card.preprocess.tokenizer(text)["input_ids"] for made in (model, again)]  # type: ignore[union-attr]
        if ids[0] != ids[1]:
            raise ModelError(f"the tokenizer gives other ids after reading: {ids[0][:8]!r} and {ids[1][:8]!r} for {text!r}")
    for what in ("chat_template", "pad_token_id", "eos_token_id", "bos_token_id"):
        mine, theirs = (getattr(made.card.preprocess.tokenizer, what, None) for made in (model, again))  # type: ignore[union-attr]
        if mine != theirs:
            raise ModelError(f"the tokenizer's {what} {mine!r} is read back as {theirs!r}")


def _outputs(model: Model, inputs: dict[str, Tensor]) -> Tensor:
    """Logits in evaluation mode, of a vocabulary only at each row's end (law 6)."""
    inputs = {name: tensor.to(device_of(model.module)) for name, tensor in inputs.items()}
    with evaluating(model.module), torch.no_grad():
        if not model.output:
            return logits_of(model.module(**inputs))
        layer = model.module.get_submodule(model.output)
        with passed_through(model.module, layer):
            hidden: Tensor = logits_of(model.module(**inputs))
        return torch.cat([hidden.flatten(1), layer(hidden[:, -1])], dim=1)


def _is_channels_last(module: nn.Module) -> bool:
    """By the strides: a weight of one channel, or of 1 x 1, is contiguous in both layouts, and convolved by its strides all the same."""

    def strides(shape: torch.Size, layout: torch.memory_format) -> tuple[int, ...]:
        return torch.empty(shape, device="meta", memory_format=layout).stride()

    return any(
        parameter.stride() == strides(parameter.shape, torch.channels_last) != strides(parameter.shape, torch.contiguous_format)
        for parameter in module.parameters()
        if parameter.dim() == 4
    )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def sync_files(folder: Path) -> None:
    """Make the files of a folder, and the folder itself, durable."""
    for path in folder.rglob("*"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    sync_folder(folder)


def put_in_place(temporary: Path, folder: Path) -> None:
    """Rename; an older folder steps aside for the moment between two renames, and comes back if the second one fails."""
    older = folder.with_name(f".{folder.name}.older-{temporary.name.rpartition('.')[2]}")
    if folder.exists():
        os.rename(folder, older)
    try:
        os.rename(temporary, folder)
    except OSError:
        if older.exists():
            os.rename(older, folder)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(older, ignore_errors=True)
