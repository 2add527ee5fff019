"""The loader for a training loop of one's own: exact batches in one process or under torch.distributed, without Ray."""

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch

from pipeline.config.choices import OnCorrupt
from pipeline.config.presets import make_recipe, with_changes
from pipeline.config.recipe import Recipe, check_batch
from pipeline.config.recipe_json import recipe_to_json
from pipeline.config.sampling import Sampling
from pipeline.core.errors import CheckpointError, RecipeError
from pipeline.dataset import manifest
from pipeline.dataset.cache_folder import resolve_cache
from pipeline.loader.batch import Batch
from pipeline.loader.decode import best_decoder, check_decoder
from pipeline.loader.device.copy_ahead import copied_ahead
from pipeline.loader.functions import BatchFunction, MappedTransform, SampleFunction, map_batch, map_samples
from pipeline.loader.normalise import Normalise
from pipeline.loader.resident import ResidentSplit, load_resident, resident_batches
from pipeline.loader.row_groups.estimate import check_cache_size
from pipeline.loader.sample_order import training_order
from pipeline.loader.samplers import EvaluationSampler, Sampler, TrainSampler
from pipeline.loader.sampling.columns import SplitColumns
from pipeline.loader.sampling.plan import expected_counts, passing_rows
from pipeline.loader.sampling.tables import table_digests
from pipeline.loader.streaming.plan import StreamPlan
from pipeline.loader.streaming.threads import thread_source
from pipeline.loader.torch_dataset import LoaderDataset, Sample, samples_of
from pipeline.loader.transform import Transform, evaluation_transform, training_transform
from pipeline.storage import files

_RECIPE = "resnet50"  # where none is given: its crops, flips, normalisation and shuffling
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
    seed and the epoch alone; the batches are bit for bit those of a training run with the same recipe and seed. Each
    rank gets its part of each global batch, whatever the number of ranks.

        from pipeline import Loader

        train = Loader("data/flowers", global_batch_size=64, size_px=160, device="cuda")
        val = Loader("data/flowers", split="val", size_px=160, device="cuda")
        normalise = train.normalise.to("cuda")
        for epoch in range(10):
            for batch in train:  # len(train) steps
                loss = cross_entropy(model(normalise(batch.images)), batch.labels)
                ...
                checkpoint["loader"] = train.state_dict()  # resumes in the middle of an epoch
            for batch in val:  # every row once, without augmentation
                ...

    A batch has `.images`, uint8 [N, 3, S, S]; `.labels`, int64 [N]; `.keys`, uint64 [N], hashes of the rows' keys; and
    `.rows`, int64 [N], row numbers in the split. `batch.to(device)` moves it. N is at most the recipe's
    `global_batch_size` divided by the number of ranks, and one row less in some batches, since no row is dropped or
    repeated to fill the last batch.

    Erasing, cutout, MixUp and CutMix change whole batches on the device; apply them with
    `pipeline.models.batch_transforms.transform_batch` if your recipe has them.

    Attributes: uri, split, seed and recipe, as given; classes, the class names, indexed by label; num_rows, rows of the
    split; normalise, a module that converts images to normalised float32; epoch, the epoch that the next loop yields,
    from 0.
    """

    def __init__(
        self,
        dataset: str | os.PathLike[str] | HasUri,
        recipe: Recipe | str | None = None,
        split: str = "train",
        *,
        size_px: int | None = None,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        device: torch.device | str | None = None,
        on_corrupt: OnCorrupt = "stop",
        where: str | None = None,
        cache: str | None = None,
        cache_size: str | int | None = None,
        **changes: Any,
    ) -> None:
        """Opens a split; nothing is decoded before the first loop.

        dataset: path or URI of an ingested data set, or an opened one. recipe: a Recipe, the name of a preset
        (`pipeline.recipes`), or the path of a .json file with one; without it, random resized crops and flips for
        training, a centre crop for evaluation. split: "train" is shuffled and augmented; any other split comes in
        order, without augmentation. size_px: side S of the images. seed: of order and augmentation. rank, world_size:
        of this process; without them, torch.distributed's when the loop begins, or one process. device: where batches
        arrive, before they are asked for; None leaves them on the host. on_corrupt: "stop" raises DatasetError at an
        image whose bytes have changed or can't be decoded; "quarantine" leaves it out and lists it in `batch.corrupt`.
        where: condition of the rows that come, such as "width >= 200"; of training rows it is the recipe's
        `sampling.where`. cache: a folder of this machine into which what will be read of object storage is
        fetched ahead, and kept. cache_size: the most that it holds, such as "20GB" or bytes; None for what the disk
        has, but 2 GiB. changes: fields of the recipe to change, such as `global_batch_size=64`, or
        `sampling={"class_balance": 1.0}`.

        Raises DatasetError for a data set or split that isn't there, and RecipeError for a recipe, field or rank that
        isn't.
        """
        if isinstance(changes.get("sampling"), Mapping):
            changes |= {f"sampling.{name}": value for name, value in changes.pop("sampling").items()}
        if split == "train" and where is not None:
            changes["sampling.where"] = where
        location = dataset if isinstance(dataset, (str, os.PathLike)) else dataset.uri
        self.uri = files.absolute(os.fspath(location))
        self.recipe = _recipe(recipe, size_px, changes)
        self.split, self.seed = split, seed
        self._data = data = manifest.load(self.uri)
        self._rows, self._digest, self.classes = data.split(split), data.digest, data.classes
        self._selected = None  # rows that are evaluated, of a split that isn't trained on; None for all
        if where is not None and not self._trains:
            self._selected = passing_rows(SplitColumns(self.uri, data, split, self._rows.rows), where, "where")
        self.num_rows = self._rows.rows if self._selected is None else len(self._selected)
        self._where = where
        self.normalise = Normalise(self.recipe.pixel_mean, self.recipe.pixel_std)
        self._epoch, self._done = 0, 0  # global batches of this epoch that the loop has been given
        self._place = _checked_place(rank, world_size)
        self._device = None if device is None else torch.device(device)
        self._on_corrupt, self._decoder, self._cache = on_corrupt, best_decoder(), resolve_cache(cache, cache_size)
        sampled = self.recipe.sampling if self._trains else Sampling()  # evaluation isn't sampled
        if self._trains and self.recipe.proxy_filter is not None:
            raise RecipeError("proxy_filter: only a training run can choose images by a proxy; set proxy_filter=none")
        expected = expected_counts(self.uri, data, sampling=sampled)
        self._order = training_order(self.recipe, self._rows.row_group_rows, seed, expected)
        self._sampling_tables = table_digests(sampled)
        self._resident: ResidentSplit | None = None
        self._sample_functions: list[SampleFunction] = []
        self._batch_functions: list[BatchFunction] = []

    def map_samples(self, function: SampleFunction) -> "Loader":
        """Applies a function to each image after the augmentation of the recipe, and returns the loader itself.

        function: takes an image, uint8 [3, S, S], and a torch.Generator that depends on (seed, epoch, key of the row)
        alone; returns an image of the same shape and type. It is called in the decoding threads.
        """
        self._sample_functions.append(function)
        return self

    def map_batches(self, function: BatchFunction) -> "Loader":
        """Applies a function to each batch once it is on its device, and returns the loader itself.

        function: takes a batch and a torch.Generator on its device, which depends on (seed, epoch, key of the batch's
        first row) alone; returns a batch, as by `dataclasses.replace(batch, images=...)`. It is called in the loop.
        """
        self._batch_functions.append(function)
        return self

    def samples(self) -> Iterator[Sample]:
        """Yields (image, label) of each row of the rest of the current epoch. A state counts whole batches."""
        for batch in self:
            yield from samples_of(batch)

    def as_dataset(self, samples: bool = False) -> LoaderDataset:
        """Returns the loader as a torch IterableDataset of batches, or of samples, for DataLoader(num_workers=0)."""
        return LoaderDataset(self, samples)

    @property
    def epoch(self) -> int:
        """The epoch that the next loop yields, from 0. To set it begins that epoch from its start."""
        return self._epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch, self._done = epoch, 0

    @property
    def _trains(self) -> bool:
        return self.split == "train"

    def __len__(self) -> int:
        """Returns the number of batches of an epoch: on every rank the same in training, in evaluation this rank's."""
        return self._order.steps_per_epoch if self._trains else len(self._evaluation_sampler(0))

    def __iter__(self) -> Iterator[Batch]:
        """Yields the rest of the current epoch: all of it, unless a loop was left or a state was loaded in its middle.

        Raises RecipeError if the global batch is too small for the number of ranks, or the cache for what a step reads.
        """
        world_size, _ = self._world()
        if self._trains:
            check_batch(self.recipe, world_size, self._order.num_rows)
            check_cache_size(self._cache, self.uri, self._data, self.recipe, world_size)
        sampler, stride = self._sampler(), 1 if self._trains else world_size
        if not len(sampler):  # more ranks than batches of evaluation
            self.epoch += 1
        first, last = self._done, len(sampler) - 1
        with closing(self._batches(sampler)) as batches:
            for batch in batches:
                # Before the batch is given out: a state that is saved in the loop's body counts it as done.
                self._done = first + (batch.index + 1) * stride
                if batch.index == last:
                    self.epoch += 1
                yield map_batch(batch, self._batch_functions, self.seed)

    def _world(self) -> tuple[int, int]:
        """Returns the number of ranks and this process's rank: as given, else torch.distributed's, else (1, 0)."""
        distributed = torch.distributed
        if self._place is None and distributed.is_available() and distributed.is_initialized():
            return distributed.get_world_size(), distributed.get_rank()
        return self._place or (1, 0)

    def _sampler(self) -> Sampler:
        if not self._trains:
            return self._evaluation_sampler(self._done)
        world_size, rank = self._world()
        steps = self._order.steps_per_epoch
        first = self.epoch * steps + self._done
        return TrainSampler(self._order, (self.epoch + 1) * steps, first, world_size, rank)

    def _evaluation_sampler(self, done: int) -> EvaluationSampler:
        """Returns the sampler of what is left when `done` batches are, of all ranks."""
        world_size, rank = self._world()
        size = min(self.recipe.global_batch_size, _EVALUATION_ROWS)
        first_row = min(done * size, self.num_rows)
        return EvaluationSampler(self.num_rows - first_row, size, world_size, rank, first_row, self._selected)

    def _batches(self, sampler: Sampler) -> Generator[Batch]:
        if self._trains:
            transform = training_transform(self.recipe, self.seed, self._decoder)
        else:
            transform = replace(evaluation_transform(self.recipe, self._decoder), seed=self.seed)
        if self.recipe.residency == "resident":
            yield from self._resident_batches(sampler, transform)
            return
        transform = MappedTransform.of(transform, self._sample_functions)
        plan = StreamPlan(self.uri, self._rows, sampler, transform, self._on_corrupt, self._cache, goes_on=True)
        if self._device is None:
            yield from thread_source(plan)(lambda: False)
            return
        source = thread_source(plan, pinned=self._device.type == "cuda")
        for batch in copied_ahead(source, self._device):
            yield batch.to(self._device)

    def _resident_batches(self, sampler: Sampler, transform: Transform) -> Iterator[Batch]:
        if self._resident is None:
            resident = load_resident(self.uri, self._rows, transform, on_corrupt=self._on_corrupt)
            self._resident = resident.to(self._device or torch.device("cpu"))
        for batch in resident_batches(self._resident, sampler, transform):
            if self._sample_functions:
                map_samples([*batch.images], self._sample_functions, self.seed, batch.epochs, batch.keys)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Returns the position and what it depends on, as JSON values; the same on every rank in training.

        Saved in the loop's body, it counts the current batch as done. In evaluation, save rank 0's.
        """
        fields = asdict(self.recipe) | recipe_to_json(self.recipe)  # nested fields that came later are left out
        settings = {"dataset": self._digest, "split": self.split, "seed": self.seed}
        settings |= {name: fields[name] for name in _BATCH_FIELDS}
        if not self._trains:
            settings["where"] = self._where
        if self._sampling_tables:
            settings["sampling_tables"] = self._sampling_tables
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
        self._epoch, self._done = state["epoch"], state["done"]


def _json(value: Any) -> Any:
    """Returns a value as it comes back from JSON, where tuples are lists."""
    if isinstance(value, (list, tuple)):
        return [_json(each) for each in value]
    return {name: _json(each) for name, each in value.items()} if isinstance(value, dict) else value


def _recipe(recipe: Recipe | str | None, size_px: int | None, changes: dict[str, Any]) -> Recipe:
    changes = changes if size_px is None else {"image_size_px": size_px, **changes}
    if isinstance(recipe, Recipe):
        return with_changes(recipe, **changes)
    return make_recipe(recipe or _RECIPE, **changes)


def _checked_place(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Returns (world size, rank), or None where neither is given. Raises RecipeError."""
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise RecipeError(f"rank={rank}, world_size={world_size}: give both, and a rank from 0 to world_size - 1")
    return world_size, rank
