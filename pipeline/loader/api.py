"""The loader for a training loop of one's own: exact batches in one process or under torch.distributed, without Ray."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import torch

from pipeline.config.choices import OnCorrupt
from pipeline.config.presets import make_recipe, with_changes
from pipeline.config.recipe import Recipe, check_batch
from pipeline.config.sampling import Sampling
from pipeline.core.errors import CheckpointError
from pipeline.dataset import manifest
from pipeline.loader.batch import Batch
from pipeline.loader.decode import best_decoder, check_decoder
from pipeline.loader.normalise import Normalise
from pipeline.loader.resident import ResidentSplit, load_resident, resident_batches
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import EvaluationSampler, Sampler, TrainSampler
from pipeline.loader.sampling.columns import SplitColumns
from pipeline.loader.sampling.plan import expected_counts, passing_rows
from pipeline.loader.sampling.tables import table_sha256
from pipeline.loader.streaming.threads import local_batches
from pipeline.loader.transform import evaluation_transform, training_transform
from pipeline.storage import files

_EVALUATION_ROWS = 250  # rows of an evaluation batch, at most
# Fields of a recipe that decide the batches of training.
_BATCH_FIELDS = (
    "image_size_px", "global_batch_size", "repeats", "augment", "residency", "shuffle_window_row_groups",
    "shuffle_run_rows", "sampling", "size_ramp", "evaluate_size_px", "evaluate_resize_px",
)  # fmt: skip


class HasUri(Protocol):
    """A data set that has been opened, such as `pipeline.dataset.Dataset`."""

    @property
    def uri(self) -> str:
        """Path or URI of the data set."""


class Loader:
    """Batches of a data set for your own training loop, decoded by threads of this process ahead of the loop.

    Each `for` loop over a loader is one epoch. Every row comes exactly once per epoch, in an order that depends on the
    seed and the epoch alone; the batches are bit for bit those of a training run with the same recipe and seed. Under
    torch.distributed each rank gets its part of each global batch: set up the process group before the loop, nothing
    else.

        from pipeline import Loader

        train = Loader("data/flowers", "resnet50", global_batch_size=64, image_size_px=160)
        val = Loader("data/flowers", "resnet50", split="val", image_size_px=160)
        for epoch in range(10):
            for batch in train:  # len(train) steps
                images, labels = train.normalise(batch.images), batch.labels
                loss = cross_entropy(model(images), labels)
                ...
                checkpoint["loader"] = train.state_dict()  # resumes in the middle of an epoch
            for batch in val:  # every row once, without augmentation
                ...

    A batch has `.images`, uint8 [N, 3, S, S]; `.labels`, int64 [N]; and `.rows`, int64 [N], row numbers in the split.
    `batch.to(device)` moves it. N is at most the recipe's `global_batch_size` divided by the number of ranks, and one
    row less in some batches, since no row is dropped or repeated to fill the last batch.

    Erasing, cutout, MixUp and CutMix change whole batches on the device; apply them with
    `pipeline.models.batch_transforms.transform_batch` if your recipe has them.

    Attributes: uri, split, seed and recipe, as given; classes, the class names, indexed by label; num_rows, rows of the
    split; normalise, a module that converts images to normalised float32 (`normalise.to(device)` does so on a GPU);
    epoch, the epoch that the next loop yields, from 0.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str] | HasUri,
        recipe: Recipe | str,
        split: str = "train",
        *,
        seed: int = 0,
        on_corrupt: OnCorrupt = "stop",
        where: str | None = None,
        **changes: Any,
    ) -> None:
        """Opens a split; nothing is decoded before the first loop.

        dataset: path or URI of an ingested data set, or an opened one. recipe: a Recipe, the name of a preset
        (`pipeline.recipes`), or the path of a .json file with one. split: "train" is shuffled and augmented; any other
        split comes in order, without augmentation. seed: of order and augmentation. on_corrupt: "stop" raises
        DatasetError at an image whose bytes have changed or can't be decoded; "quarantine" leaves it out and lists it
        in `batch.corrupt`. where: condition of the rows that come, such as "width >= 200"; of training rows it is the
        recipe's `sampling.where`. changes: fields of the recipe to change, such as `global_batch_size=64`, or
        `sampling={"class_balance": 1.0}`.

        Raises DatasetError for a data set or split that isn't there, and RecipeError for a recipe or field that isn't.
        """
        if isinstance(changes.get("sampling"), Mapping):
            changes |= {f"sampling.{name}": value for name, value in changes.pop("sampling").items()}
        if split == "train":
            changes["sampling.where"] = changes.get("sampling.where") if where is None else where
        location = dataset if isinstance(dataset, (str, os.PathLike)) else dataset.uri
        self.uri = files.absolute(os.fspath(location))
        self.recipe = make_recipe(recipe, **changes) if isinstance(recipe, str) else with_changes(recipe, **changes)
        self.split, self.seed = split, seed
        data = manifest.load(self.uri)
        self._rows, self._digest, self.classes = data.split(split), data.digest, data.classes
        self._selected = None  # rows that are evaluated, of a split that isn't trained on; None for all
        if where is not None and not self._trains:
            self._selected = passing_rows(SplitColumns(self.uri, data, split, self._rows.rows), where, "where")
        self.num_rows = self._rows.rows if self._selected is None else len(self._selected)
        self._where = where
        self.normalise = Normalise(self.recipe.pixel_mean, self.recipe.pixel_std)
        self.epoch, self._done = 0, 0  # global batches of this epoch that the loop has been given
        self._on_corrupt, self._decoder = on_corrupt, best_decoder()
        sampled = self.recipe.sampling if self._trains else Sampling()  # evaluation isn't sampled
        expected = expected_counts(self.uri, data, sampling=sampled)
        self._order = training_order(self.recipe, self._rows.row_group_rows, seed, expected)
        self._resident: ResidentSplit | None = None

    @property
    def _trains(self) -> bool:
        return self.split == "train"

    def __len__(self) -> int:
        """Returns the number of batches of an epoch: on every rank the same in training, in evaluation this rank's."""
        return self._order.steps_per_epoch if self._trains else len(self._evaluation_sampler(0))

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the current epoch: all of it, unless a loop was left or a state was loaded in its middle.

        Raises RecipeError if the global batch is too small for the number of ranks.
        """
        world_size, _ = _world()
        if self._trains:
            check_batch(self.recipe, world_size, self._order.num_rows)
        sampler, stride = self._sampler(), 1 if self._trains else world_size
        if not len(sampler):  # more ranks than batches of evaluation
            self.epoch, self._done = self.epoch + 1, 0
        first, last = self._done, len(sampler) - 1
        for batch in self._batches(sampler):
            # Before the batch is given out: a state that is saved in the loop's body counts it as done.
            self._done = first + (batch.index + 1) * stride
            if batch.index == last:
                self.epoch, self._done = self.epoch + 1, 0
            yield batch

    def _sampler(self) -> Sampler:
        if not self._trains:
            return self._evaluation_sampler(self._done)
        world_size, rank = _world()
        steps = self._order.steps_per_epoch
        first = self.epoch * steps + self._done
        return TrainSampler(self._order, (self.epoch + 1) * steps, first, world_size, rank)

    def _evaluation_sampler(self, done: int) -> EvaluationSampler:
        """Returns the sampler of what is left when `done` batches are, of all ranks."""
        world_size, rank = _world()
        size = min(self.recipe.global_batch_size, _EVALUATION_ROWS)
        first_row = min(done * size, self.num_rows)
        return EvaluationSampler(self.num_rows - first_row, size, world_size, rank, first_row, self._selected)

    def _batches(self, sampler: Sampler) -> Iterator[Batch]:
        if self._trains:
            transform = training_transform(self.recipe, self.seed, self._decoder)
        else:
            transform = evaluation_transform(self.recipe, self._decoder)
        if self.recipe.residency == "stream":
            return local_batches(self.uri, self._rows, sampler, transform, self._on_corrupt)
        if self._resident is None:
            self._resident = load_resident(self.uri, self._rows, transform, on_corrupt=self._on_corrupt)
        return resident_batches(self._resident, sampler, transform)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position and what it depends on, as JSON values; the same on every rank in training.

        Saved in the loop's body, it counts the current batch as done. In evaluation, save rank 0's.
        """
        fields = asdict(self.recipe)
        settings = {"dataset": self._digest, "split": self.split, "seed": self.seed}
        settings |= {name: fields[name] for name in _BATCH_FIELDS}
        if not self._trains:
            settings["where"] = self._where
        if tables := self.recipe.sampling.tables:
            settings["sampling_tables"] = {name: table_sha256(name, uri) for name, uri in tables.items()}
        return {"epoch": self.epoch, "done": self._done, "decoder": self._decoder, "settings": settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where `state` was saved, in the middle of an epoch and with any number of ranks.

        Raises CheckpointError if data set, split, seed or recipe would give other batches, and ClusterError if this
        machine lacks the decoder that the saved run used, since other decoders give slightly different pixels.
        """
        ours = self.state_dict()["settings"]
        unsampled = {"sampling": asdict(Sampling()), "where": None}  # states of earlier versions don't say so
        for name, saved in ({name: unsampled[name] for name in unsampled if name in ours} | state["settings"]).items():
            if _json(ours.get(name)) != _json(saved):
                raise CheckpointError(
                    f"{name}={ours.get(name)!r} of this loader differs from {saved!r} of the saved state; make the "
                    "loader as it was when the state was saved"
                )
        check_decoder(state["decoder"])
        if state["decoder"] != self._decoder:
            self._decoder, self._resident = state["decoder"], None
        self.epoch, self._done = state["epoch"], state["done"]


def _json(value: Any) -> Any:
    """Returns a value as it comes back from JSON, where tuples are lists."""
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    return {name: _json(each) for name, each in value.items()} if isinstance(value, dict) else value


def _world() -> tuple[int, int]:
    """Returns the number of ranks and this process's rank, by torch.distributed; (1, 0) without it."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size(), distributed.get_rank()
    return 1, 0
