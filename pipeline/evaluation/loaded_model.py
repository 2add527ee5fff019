"""A trained model in plain PyTorch: load it from a run and predict images in this process, without Ray."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.config.choices import TestViews
from pipeline.core.errors import SourceError
from pipeline.dataset.image_codec import rgb_pixels
from pipeline.evaluation.batch_predict.decode_task import decode_images
from pipeline.evaluation.inference import view_logits
from pipeline.evaluation.inputs import StrPath, absolute_uri
from pipeline.evaluation.predictions import UNIT_ROWS
from pipeline.loader.decode import CropGeometry, best_decoder, resize_and_crop
from pipeline.loader.normalise import Normalise
from pipeline.loader.transform import Transform, evaluation_transform
from pipeline.models.device.settings import evaluation_settings
from pipeline.models.load import TrainedModel, find_model, load_net
from pipeline.storage import files

Pixels = npt.NDArray[np.uint8]
OneImage = Image.Image | str | os.PathLike[str] | Pixels | Tensor


@dataclass(frozen=True)
class ImagePredictions:
    """Predictions of N images by a model with C classes.

    classes: the C class names. probabilities: float32 [N, C], in the order of `classes`. indices: int64 [N], the most
    probable class of each image.
    """

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]

    @property
    def names(self) -> list[str]:
        """The most probable class of each image, by name."""
        return [self.classes[index] for index in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """Returns, for each image, (class, probability) of the `count` most probable classes, best first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :count]
        return [
            [(self.classes[index], float(line[index])) for index in best]
            for line, best in zip(self.probabilities, order, strict=True)
        ]


class LoadedModel:
    """A trained network on a device, with everything that turns images into predictions.

    net: the network in evaluation mode; it maps float32 [N, 3, S, S] to logits [N, C]. normalise: maps uint8 images to
    the network's input. transform: decodes, resizes and crops. classes: names of the C classes. recipe: of the run.
    views: test views of each image.
    """

    def __init__(self, trained: TrainedModel, device: torch.device, views: TestViews) -> None:
        self.classes, self.recipe, self.device, self.views = trained.classes, trained.recipe, device, views
        self.net: nn.Module = load_net(trained, device)
        self.normalise: nn.Module = Normalise(trained.recipe.pixel_mean, trained.recipe.pixel_std).to(device)
        self.transform: Transform = evaluation_transform(trained.recipe, best_decoder())

    def predict(self, images: OneImage | Iterable[OneImage], batch_size: int = UNIT_ROWS) -> ImagePredictions:
        """Returns class probabilities of images, which are resized, cropped and normalised as in an evaluation.

            model.predict("cat.jpg").names
            model.predict([Image.open("a.png"), Image.open("b.png")]).probabilities

        images: one image or several of any size: PIL images, paths or URIs of files, uint8 arrays [H, W, 3] (RGB), or
        one uint8 tensor [N, 3, H, W]. batch_size: images that are in memory at a time, after resizing.

        Paths are decoded as a data set's images are, so their predictions are those of an evaluation, to the last bit
        where the batches are the same (`UNIT_ROWS` images in the same order on the same device), else to rounding.
        Pixels (PIL images, arrays, tensors) are resized by torchvision. For PNG files the result is the same; for JPEG
        files the pixels differ within the tolerance of the decoders (`pipeline.loader.decode.MAX_ERROR`), so give
        paths where it matters. Raises SourceError for a file that cannot be read or decoded, TypeError for other types,
        and ValueError for pixels of a wrong shape or dtype.
        """
        parts = [np.empty((0, len(self.classes)), np.float32)]
        for batch in _batched(_as_list(images), batch_size):
            pixels = torch.from_numpy(self.preprocess(batch)).permute(0, 3, 1, 2)
            with evaluation_settings(), torch.inference_mode():
                logits = view_logits(self.net, self.normalise(pixels), self.views)
                parts.append(logits.softmax(dim=1).cpu().numpy())
        probabilities = np.concatenate(parts)
        return ImagePredictions(self.classes, probabilities, probabilities.argmax(axis=1))

    def preprocess(self, images: Sequence[OneImage]) -> Pixels:
        """Returns uint8 [N, S, S, 3]: the images resized and cropped as the network is evaluated, not normalised."""
        size = self.transform.size_px
        pixels = np.empty((len(images), size, size, 3), dtype=np.uint8)
        encoded = [number for number, image in enumerate(images) if isinstance(image, str | os.PathLike)]
        if encoded:
            uris = [absolute_uri(images[number]) for number in encoded]  # type: ignore[arg-type]
            decoded, errors = decode_images([_read(uri) for uri in uris], uris, self.transform)
            for uri, error in zip(uris, errors, strict=True):
                if error:
                    raise SourceError(f"{uri}: {error}")
            pixels[encoded] = decoded
        for number, image in enumerate(images):
            if not isinstance(image, str | os.PathLike):
                shown = _as_pixels(image)
                crop = CropGeometry.centre_crops(size, self.transform.resize_px, np.array([shown.shape[:2]]))
                pixels[number] = resize_and_crop(shown, crop, 0)
        return pixels


def load_model(run: StrPath, device: str | torch.device | None = None, views: TestViews | None = None) -> LoadedModel:
    """Returns the model of a finished run, ready to predict images in this process.

        model = load_model("runs/digits")
        result = model.predict(["a.png", "b.png"])
        print(result.names, result.probabilities.max(axis=1))

    run: a run, RUN/checkpoints/STEP, or a version in a registry. device: of the network, by default "cuda" if there is
    a GPU, else "cpu". views: test views of each image; None takes the recipe's. Raises CheckpointError if the run isn't
    finished or its weights are damaged, and ClusterError if the installed torch has no code for the GPU.
    """
    trained = find_model(absolute_uri(run), "run")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadedModel(trained, chosen, views or trained.recipe.test_views)


def _as_list(images: Any) -> list[Any]:
    if isinstance(images, np.ndarray | Tensor):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, Image.Image | str | os.PathLike) or not isinstance(images, Iterable):
        return [images]
    return list(images)


def _batched(images: list[Any], size: int) -> Iterator[list[Any]]:
    for first in range(0, len(images), size):
        yield images[first : first + size]


def _read(uri: str) -> bytes:
    if files.kind(uri) != "file":
        raise SourceError(f"{uri}: no such file; give the path or URI of one image, or use `predict` for a folder")
    return files.read_bytes(uri)


def _as_pixels(image: Any) -> Pixels:
    """Returns uint8 [H, W, 3]. Raises TypeError for other types and ValueError for a wrong shape or dtype."""
    if isinstance(image, Image.Image):
        return rgb_pixels(image)
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a tensor of shape {tuple(image.shape)} must be [3, H, W], or [N, 3, H, W] for several")
        image = image.permute(1, 2, 0).cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{type(image).__name__} is no image; give a path, a PIL image, or uint8 pixels")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an array of {image.dtype} {list(image.shape)} must be uint8 [H, W, 3], in RGB")
    return image
