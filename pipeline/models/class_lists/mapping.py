"""The classes of a network in a data set that has other ones: added, removed, renamed, merged or in another order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

NONE = -1  # place of a class that the data set doesn't have


@dataclass(frozen=True)
class ClassMap:
    """Which class of a data set each class of a network is."""

    known: tuple[str, ...]
    """Names of the network's classes, by the index of the logit."""

    classes: tuple[str, ...]
    """Names of the data set's classes, by label."""

    renamed: Mapping[str, str] = field(default_factory=dict)
    """{name that the network knows: name since}; several names that have become one are merged. A line counts only for
    a name that the data set doesn't have, and may lead to the next line. Lines about other names are ignored."""

    @cached_property
    def places(self) -> npt.NDArray[np.int64]:
        """int64 [len(known)]: the label of each of the network's classes, NONE for one that the data set lacks."""
        return np.array([self._labels.get(self.name_since(name), NONE) for name in self.known], dtype=np.int64)

    @cached_property
    def _labels(self) -> dict[str, int]:
        return {name: label for label, name in enumerate(self.classes)}

    def name_since(self, name: str) -> str:
        """Returns the name that a class has now, the same one if it wasn't renamed."""
        passed = set[str]()
        while name not in self._labels and name in self.renamed and name not in passed:
            passed.add(name)
            name = self.renamed[name]
        return name

    def sources(self, label: int) -> list[str]:
        """Returns the names of the network's classes that the class `label` is made of; none for a new one."""
        return [self.known[number] for number in np.flatnonzero(self.places == label)]

    @property
    def is_same(self) -> bool:
        """Whether the network has exactly the data set's classes, in the same order."""
        return self.known == self.classes

    @property
    def has_changed(self) -> bool:
        """Whether any class was added, removed, renamed or merged; the order alone doesn't count."""
        return bool(self.other_names or self.has_other_classes)

    @property
    def has_other_classes(self) -> bool:
        """Whether any class was added, removed or merged; other names and another order alone don't count."""
        return bool(self.added or self.removed or self.merged)

    @property
    def shared(self) -> npt.NDArray[np.int64]:
        """int64: the labels of classes that the network knows, ascending."""
        return np.unique(self.places[self.places != NONE])

    @property
    def added(self) -> tuple[str, ...]:
        """Classes of the data set that the network doesn't know."""
        return tuple(name for label, name in enumerate(self.classes) if label not in self.places)

    @property
    def removed(self) -> tuple[str, ...]:
        """Classes of the network that the data set doesn't have, under any name."""
        return tuple(name for name, place in zip(self.known, self.places, strict=True) if place == NONE)

    @property
    def other_names(self) -> dict[str, str]:
        """{name that the network knows: another name now} of the classes that aren't merged with others."""
        alone = {label: found for label in self.shared.tolist() if len(found := self.sources(label)) == 1}
        return {old[0]: self.classes[label] for label, old in alone.items() if old[0] != self.classes[label]}

    @property
    def merged(self) -> dict[str, list[str]]:
        """{name now: names that the network knows} of the classes that several have become."""
        found = {self.classes[label]: self.sources(label) for label in self.shared.tolist()}
        return {name: old for name, old in found.items() if len(old) > 1}

    @property
    def answers(self) -> tuple[str, ...]:
        """Names of all answers that the network may give: the data set's classes, then those that it lacks."""
        return (*self.classes, *(f"{name} (removed)" for name in self.removed))
