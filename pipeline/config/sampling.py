"""Configuration of sampling: which training rows an epoch holds, and how often, and which of a batch are trained on."""

from dataclasses import dataclass

from pipeline.config.choices import check_finite
from pipeline.config.expressions import parse_expression
from pipeline.config.model_names import check_model
from pipeline.config.shares import parse_shares
from pipeline.core.errors import RecipeError


@dataclass(frozen=True)
class Sampling:
    """Which training rows an epoch holds, and how often each. Without arguments, every row once.

    All fields together give each row an expected count; `pipeline.loader.sampling.counts` says how often it comes then.
    With r a row's repeat factor, w its weight and W the sum of r * w over its class, the expected count is in
    proportion to r * w * W^-class_balance, and an epoch holds share * (sum of r) rows, rounded. Rows that don't pass
    `where` have none. Evaluation isn't sampled. Raises RecipeError, with the field, for values that can't work.
    """

    where: str | None = None
    """Condition that a training row must fulfil, such as "width >= 200 and class != 'tench'". The default, None, takes
    all rows. Columns are those of the data set: class, label, key, height, width, bytes, brightness and others."""

    class_balance: float = 0.0
    """How far classes are balanced, in [0, 1]. The default, 0, leaves them as they are; 1 expects equally many rows of
    each class; 0.5 is the square root between them (Kang et al., arXiv 1910.09217)."""

    weights: str | None = None
    """Relative weight of each row: an expression of columns, such as "1 + 2 * (width < 100)", or a .csv file with the
    columns key and weights. The epoch keeps its size. The default, None, weighs all rows equally."""

    repeat: str | None = None
    """Expected number of times that each row comes in an epoch: an expression of columns, or a .csv file with the
    columns key and repeat. Fractions are for some epochs. The epoch grows with it. The default, None, means once."""

    repeat_below: float = 0.0
    """Share of all rows, in [0, 1), below which a class is repeated: by sqrt(repeat_below / share of the class) (repeat
    factor sampling, Gupta et al., arXiv 1908.03195, for one label an image). The default, 0, repeats none."""

    share: float = 1.0
    """Length of an epoch, as a share of the rows that it would hold otherwise; above 0. With 0.1, and without weights,
    ten epochs hold each row once. The default is 1."""

    shares: str | None = None
    """Shares of a mixture's sources in every batch, such as "photos=0.7, drawings=0.3"; in proportion, so 7 and 3 are
    the same. "photos=1, drawings=0; 5000: photos=1, drawings=1" changes them linearly up to step 5,000. The default,
    None, takes each source as often as it has rows. `image-pipeline mix` makes a mixture."""

    def __post_init__(self) -> None:
        check_finite("sampling.", vars(self))
        if not 0 <= self.class_balance <= 1:
            raise RecipeError(f"sampling.class_balance={self.class_balance} must lie in [0, 1]")
        if not 0 <= self.repeat_below < 1:
            raise RecipeError(f"sampling.repeat_below={self.repeat_below} must lie in [0, 1)")
        if not 0 < self.share <= 1000:
            raise RecipeError(f"sampling.share={self.share} must lie in (0, 1000]")
        for name in ("where", "weights", "repeat"):
            text = getattr(self, name)
            if text is not None and not (name != "where" and is_table(text)):
                parse_expression(f"sampling.{name}", text)
        if self.shares is not None:
            parse_shares("sampling.shares", self.shares)

    @property
    def is_active(self) -> bool:
        """Whether epochs are other than every row once."""
        return self != Sampling()

    @property
    def tables(self) -> dict[str, str]:
        """The files of values for rows, by field."""
        named = {name: getattr(self, name) for name in ("repeat", "weights")}
        return {name: text for name, text in named.items() if text is not None and is_table(text)}


@dataclass(frozen=True)
class ProxyFilter:
    """Trains on the hardest images of each batch: those with the highest loss of a small network, the proxy.

    As in airbench96_faster (Jordan, github.com/KellerJordan/cifar10-airbench). Before the first step the proxy is
    trained on the run's own batches and augmentation, for as many epochs, by the recipe's optimiser, rates and loss. In
    each step it keeps the images with the highest loss, and learns from these. The kept rows are part of the order from
    then on: they are written to the run's folder, and are the same for any number of workers and when the run is
    resumed. Images with wrong labels are hard, too: leave it out for data that may have many. Raises RecipeError for
    values that can't work.
    """

    model: str
    """Network of the proxy: one of `MODELS`, or "timm:NAME"."""

    keep: float = 0.5
    """Share of each batch that is trained on, in (0, 1). The default is 0.5."""

    update_every_steps: int = 4
    """Steps for each update of the proxy, 1 or more; in the others it only tells losses. The default is 4."""

    def __post_init__(self) -> None:
        check_finite("proxy_filter.", vars(self))
        check_model(self.model, "proxy_filter.model")
        if not 0 < self.keep < 1:
            raise RecipeError(f"proxy_filter.keep={self.keep} must lie in (0, 1); proxy_filter=none keeps all")
        if self.update_every_steps < 1:
            raise RecipeError(f"proxy_filter.update_every_steps={self.update_every_steps} must be 1 or more")

    def num_kept(self, batch_size: int) -> int:
        """Returns how many images of a batch are trained on: the share, rounded, and one at least."""
        return max(1, round(self.keep * batch_size))


def is_table(text: str) -> bool:
    """Whether the text names a file of values for rows, rather than an expression."""
    return text.strip().lower().split("?")[0].endswith(".csv")
