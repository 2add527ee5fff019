"""The limits for models in use: when a candidate is promoted or dropped, and when a champion goes back."""

from dataclasses import dataclass

from pipeline.core.errors import RecipeError

LABELS_AFTER_RETURN = 100
"""Least number of labelled images before a candidate is promoted after a return. A guess, not measured."""


@dataclass(frozen=True)
class LiveRule:
    """The limits for models in use. The defaults are rules of thumb, not measured. Raises RecipeError for bad values.

    The tests hold at `level` however often a review looks (`anytime.py`).
    """

    min_images: int = 500
    """Least number of different images before a candidate is promoted, or a model judged by its disagreement, latency
    or failures; 1 or more."""

    max_disagreement: float = 0.25
    """Largest share of images, in [0, 1], that a candidate classifies otherwise than the champion. The gain of its
    certified accuracy comes on top: a model that is 40 points better gives at least as many other answers."""

    max_latency_ratio: float = 2.0
    """Largest ratio of the candidate's seconds an image to the champion's; 1 or more. One answers after the other, so
    the load of the machine counts, though only the fastest tenth of the images does."""

    max_failures: float = 0.01
    """Largest share of usable images, in [0, 1], for which a model gives no answer."""

    window_images: int = 5000
    """Number of the newest images by which failures, disagreement and latency are judged; `min_images` if that is more.
    """

    min_labels: int = 0
    """Least number of labelled images before a candidate is promoted; 0 promotes without labels."""

    live_level: float = 0.05
    """Significance level, in (0, 0.5), at which live accuracy speaks against a model: of all tests and reviews
    together.
    """

    max_fall: float = 0.05
    """Largest fall of the champion's live accuracy below its certified accuracy, in [0, 1]. The champion goes back if
    its accuracy is lower for certain."""

    return_disagreement: float = 0.5
    """Largest share of images, in [0, 1], that a champion classifies otherwise than the version before, with the gain
    as for `max_disagreement`, and not below it."""

    def __post_init__(self) -> None:
        for name in ("max_disagreement", "max_failures", "max_fall", "return_disagreement"):
            if not 0 <= getattr(self, name) <= 1:
                raise RecipeError(f"{_flag(name)}={getattr(self, name):g} must lie in [0, 1]")
        if not 0 < self.live_level < 0.5:
            raise RecipeError(f"live-level={self.live_level:g} must lie in (0, 0.5)")
        if self.window_images < 1:
            raise RecipeError(f"window-images={self.window_images} must be 1 or more")
        if self.min_images < 1 or self.min_labels < 0:
            name = "min_images" if self.min_images < 1 else "min_labels"
            raise RecipeError(f"{_flag(name)}={getattr(self, name)} must be {int(name == 'min_images')} or more")
        if self.max_latency_ratio < 1:
            raise RecipeError(f"max-latency-ratio={self.max_latency_ratio:g} must be 1 or more")
        if self.return_disagreement < self.max_disagreement:
            raise RecipeError(
                f"return-disagreement={self.return_disagreement:g} is below max-disagreement="
                f"{self.max_disagreement:g}: a candidate would be promoted and taken back; raise the former"
            )


def _flag(name: str) -> str:
    return name.replace("_", "-")
