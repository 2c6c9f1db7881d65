"""An adapter as a folder of its own, in PEFT's format (law 8: strict both ways, whole or not at all, with a hash of its base).

``adapter_config.json``          what the ``peft`` package reads
``adapter_model.safetensors``    the adapter's tensors, and those of the head and of ``modules_to_save``
``manifest.json``                name, shape, dtype and hash of the adapter's tensors and of the base's; ours, PEFT passes over it

What is loaded goes onto the base that it was trained on: where the manifest says otherwise, the first tensor that differs is named.
A folder that PEFT wrote has no manifest; then names and shapes have to fit. The base's hash is not compared where one of the
two was kept in few bits, since these are other numbers for the same weights.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frostline.adapt import lora, parked, virtual
from frostline.adapt.lora_layers import DEFAULT
from frostline.adapt.peft_keys import PREFIX, PROMPT, config_of, places_of, recipe_values, settings_from, tensors_of
from frostline.adapt.rebuild import rebuild
from frostline.adapt.settings import in_place, note, note_modules
from frostline.adapt.targets import let_learn
from frostline.adapt.vera import PROJECTIONS
from frostline.adapt.wrapper import replace, wrappers
from frostline.errors import FrostlineError, ModelError, RunError
from frostline.files import separate
from frostline.models.card import read_json
from frostline.models.model import Model
from frostline.models.save import manifest_of, put_in_place, sync_files
from frostline.models.weights import read_weights

_CONFIG, _WEIGHTS, _MANIFEST = "adapter_config.json", "adapter_model.safetensors", "manifest.json"


def save_adapter(model: Model, folder: str | Path, name: str | None = None) -> None:
    """Write one adapter with the head and ``modules_to_save`` that are its own. ``name``: the one that is switched on, where not given.

    Raises ModelError for one that was never trained or holds NaN, RunError where the disk refuses.
    """
    from safetensors.torch import save_file

    if any("kept" in part.__dict__ for part in model.module.modules()):
        raise ModelError("save_adapter: got a merged adapter, whose base is hidden, expected one beside its base. Use: unmerge(module)")
    name = _chosen(model, name)
    config = config_of(model, name)
    tensors = separate(tensors_of(model, name))
    _check_content(tensors, "save_adapter")
    _check_trained(tensors)
    manifest = {"adapter": manifest_of(tensors), "base": manifest_of(base_state(model)), "kept_in": _kept_in(model)}
    folder, temporary = Path(folder), None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        temporary.chmod(0o755)
        save_file(tensors, temporary / _WEIGHTS, metadata={"format": "pt"})
        for file, content in ((_CONFIG, config), (_MANIFEST, manifest)):
            (temporary / file).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        sync_files(temporary)
        assert manifest_of(read_weights(temporary / _WEIGHTS)) == manifest["adapter"], "what was written reads back otherwise"
        put_in_place(temporary, folder)
    except OSError as error:
        raise RunError(
            f"adapter folder {str(folder)!r} could not be written: {error.strerror or error}. Free space or choose another folder"
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            shutil.rmtree(temporary, ignore_errors=True)


def load_adapter(model: Model, folder: str | Path, name: str = DEFAULT) -> None:
    """Put a folder's adapter onto ``model``: the first one as "default", switched on; further ones under a ``name``, not switched on.

    Raises ModelError for one that does not fit; then the model computes what it did before.
    """
    folder = Path(folder)
    config, tensors = read_json(folder / _CONFIG), dict(read_weights(folder / _WEIGHTS))
    _check_content(tensors, str(folder))
    first, before = in_place(model) is None, model.recipe
    if first and name != DEFAULT:
        raise ModelError(
            f"load_adapter: got the name {name!r} for the first adapter of {model.card.name!r}, which is always called 'default', expected "
            "names for those that follow. Use: load_adapter(model, folder)"
        )
    model.recipe = model.recipe.with_values({"adapt.modules_to_save": _modules_of(config, model)}) if first else model.recipe
    try:
        settings = _put_in_place(model, folder, config, tensors, name if not first else None)
    except FrostlineError:
        model.recipe = before
        raise
    if first:
        present = model.card.arguments.get("adapt", {})
        note(model, {**settings, **{key: present[key] for key in ("base", "quantized") if key in present}})
        model.recipe = model.recipe.with_values({"adapt": recipe_values(settings)})
        note_modules(model, model.recipe.adapt)
    else:
        kept = {key: settings[key] for key in ("rank", "alpha", "ranks", "alphas", "rslora", "dora", "init", "dropout", "seed")}
        present = model.card.arguments["adapt"]
        present["adapters"] = {**present.get("adapters", {}), name: kept}
    let_learn(model, model.recipe.adapt, {*parked.learning_names(model), *virtual.learning_names(model.module)})


def _put_in_place(model: Model, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], name: str | None) -> dict[str, Any]:
    """Check, build the layers (beside those that are there for a ``name``), fill them; the settings that made them."""
    manifest = read_json(folder / _MANIFEST) if (folder / _MANIFEST).is_file() else None
    if manifest is not None:
        _check_manifest(model, manifest, tensors, folder)
    for key in [key for key in tensors if key.endswith(".base_layer.weight")]:
        _check_base_copy(model, key, tensors.pop(key), folder)
    settings = settings_from(config, tensors, model)
    if name is None:
        rebuild(model.module, settings)
    else:
        _add(model, name, settings, folder)
    try:
        model.recipe.with_values({"adapt": recipe_values(settings)})  # refuses what a recipe could not hold
        _fill(model, name or DEFAULT, tensors, folder)
    except FrostlineError:
        _take_out(model, name)
        raise
    return settings


def _modules_of(config: dict[str, Any], model: Model) -> list[str]:
    """The modules of this model that a configuration's ``modules_to_save`` means; PEFT lists names that a model may not have."""
    wanted = config.get("modules_to_save") or []
    if not isinstance(wanted, list) or not all(isinstance(name, str) for name in wanted):
        raise ModelError(f"adapter_config.json: got modules_to_save {wanted!r}, expected a list of names. Copy the folder again")
    names = [name for name, _ in model.module.named_modules() if name]
    return [name for name in names if any(name == end or name.endswith(f".{end}") for end in wanted) and name not in model.head]


def base_state(model: Model) -> dict[str, Tensor]:
    """The base's tensors under the names that they have without an adapter; not those that travel with the adapter."""
    places = sorted({f"{name}." for name, _ in wrappers(model.module)}, key=len, reverse=True)
    travelling = tuple(f"{name}." for name in parked.places(model))
    learning = {id(p) for place in travelling for p in model.module.get_submodule(place[:-1]).parameters()}
    found = {}
    for name, tensor in model.module.state_dict(keep_vars=True).items():
        if id(tensor) in learning:  # tied to one that travels: an output layer beside a learning embedding
            continue
        place = next((place for place in places if name.startswith(place)), None)
        if place is not None:
            inner = name.removeprefix(place)
            if not inner.startswith("base."):
                continue
            name = place + inner.removeprefix("base.")
        if name.startswith((f"{PROJECTIONS}.", *travelling)) or f".{virtual.NAME}." in f".{name}":
            continue
        found[name] = tensor.detach()
    return found


def _check_manifest(model: Model, manifest: dict[str, Any], tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        own, base = manifest["adapter"], {entry["name"]: entry for entry in manifest["base"]["tensors"]}
        described = {name: f"{entry['dtype']} {tuple(entry['shape'])}, hash {entry['hash'][:12]}" for name, entry in base.items()}
    except (KeyError, TypeError) as error:
        raise ModelError(f"{str(folder / _MANIFEST)!r} is damaged, expected lists of tensors. Copy the folder again") from error
    if manifest_of(tensors) != own:
        raise ModelError(
            f"{str(folder / _WEIGHTS)!r} is not what manifest.json describes: it was damaged or changed. Copy the folder again"
        )
    if manifest.get("kept_in") != "full" or _kept_in(model) != "full":
        return
    here = {entry["name"]: entry for entry in manifest_of(base_state(model))["tensors"]}
    for name in (*base, *here):
        if base.get(name) != here.get(name):
            mine = "missing" if name not in here else f"{here[name]['dtype']} {tuple(here[name]['shape'])}, hash {here[name]['hash'][:12]}"
            raise ModelError(
                f"{str(folder)!r} is an adapter for another base: {name!r} is {mine} in {model.card.name!r}, "
                f"expected {described.get(name, 'missing')}. Load the base that it was trained on"
            )


def _check_base_copy(model: Model, key: str, tensor: Tensor, folder: Path) -> None:
    """PEFT writes the weight of an embedding that is a target, too."""
    name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
    own = base_state(model).get(name)
    if own is None or own.shape != tensor.shape or not torch.equal(own.cpu().to(tensor.dtype), tensor):
        raise ModelError(f"{str(folder)!r} is an adapter for another base: {name!r} differs. Load the base that it was trained on")


def _add(model: Model, name: str, settings: dict[str, Any], folder: Path) -> None:
    present = in_place(model) or {}
    if settings["method"] != "lora" or present.get("method") != "lora" or name in (DEFAULT, *present.get("adapters", {})):
        raise ModelError(
            f"load_adapter: got {settings['method']!r} under the name {name!r}, but the model holds {present.get('method')!r} already. "
            "Several adapters have to be LoRA, each under a name of its own: load_adapter(model, folder, name=…)"
        )
    if set(settings["targets"]) != set(present["targets"]):
        differing = sorted(set(settings["targets"]) ^ set(present["targets"]))
        raise ModelError(f"load_adapter: {str(folder)!r} and the model's adapter have not the same targets, the first is {differing[0]!r}")
    lora.add(model.module, name, settings)
    parked.begin(model, name)


def _fill(model: Model, name: str, tensors: dict[str, Tensor], folder: Path) -> None:
    """Strict both ways: names and shapes."""
    here = places_of(model, name)
    if PROMPT in here and PROMPT in tensors and tensors[PROMPT].dim():  # PEFT keeps a second half for the decoder, and never uses it
        tensors[PROMPT] = tensors[PROMPT][: len(here[PROMPT])]
    for key in (*here, *tensors):
        mine, theirs = (_described(found.get(key)) for found in (here, tensors))
        if mine != theirs:
            raise ModelError(
                f"{str(folder / _WEIGHTS)!r}: {key!r} is {theirs} in the file and {mine} in the model. Load the base that it was trained on"
            )
    with torch.no_grad():
        for key, tensor in tensors.items():
            here[key].copy_(tensor)


def _described(tensor: Tensor | None) -> str:
    if tensor is None:
        return "'nothing'"
    return f"{tuple(tensor.shape)}" if tensor.is_floating_point() else f"{tuple(tensor.shape)} of {tensor.dtype}"


def _take_out(model: Model, name: str | None) -> None:
    """Undo what a load began: one adapter, or all of it."""
    for place, part in list(wrappers(model.module)):
        if name is None:
            replace(model.module, place, part.base)
        elif name in part.others:  # type: ignore[operator]
            part.others.pop(name)  # type: ignore[union-attr, operator]
    if name is not None:
        parked.forget(model, name)
        return
    virtual.take_out(model.module)
    if hasattr(model.module, PROJECTIONS):
        delattr(model.module, PROJECTIONS)


def _chosen(model: Model, name: str | None) -> str:
    """The adapter that is meant. Raises ModelError where there is none of that name, or not one that is on."""
    settings = in_place(model) or {}
    known, active = [DEFAULT, *settings.get("adapters", {})], settings.get("active", [DEFAULT])
    if name is None and len(active) == 1:
        return str(active[0])
    if name is None or name not in known:
        found = f"the adapters {active!r} switched on" if name is None else repr(name)
        raise ModelError(f"save_adapter: got {found}, expected one of {', '.join(known)}. Use: save_adapter(model, folder, {known[0]!r})")
    return name


def _check_content(tensors: dict[str, Tensor], where: str) -> None:
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ModelError(f"{where}: {key!r} holds NaN or infinite numbers, expected finite ones. Go back to an earlier checkpoint")


def _check_trained(tensors: dict[str, Tensor]) -> None:
    updates = [t for key, t in tensors.items() if key.endswith(("lora_B.weight", "lora_embedding_A", "vera_lambda_b"))]
    scales = [t for key, t in tensors.items() if key.endswith(".ia3_l")]
    if (updates and not any(bool(t.any()) for t in updates)) or (scales and all(bool((t == 1).all()) for t in scales)):
        raise ModelError("save_adapter: got an adapter that was never trained (it changes nothing), expected a trained one. Train it first")


def _kept_in(model: Model) -> str:
    return str(model.card.arguments.get("adapt", {}).get("base", "full"))
