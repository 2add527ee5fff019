"""Loss of each sample."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.config.choices import LossName


def sample_losses(name: LossName, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """logits: float [N, C], never softmaxed before; labels: int64 [N]. Returns float [N], a loss for each sample.

    cross-entropy: -sum_c q_c log softmax(logits)_c. mse: mean over classes of (softmax(logits) - q)^2, the
    tutorial's alternative. q is the one-hot target, smoothed as (1-a) onehot + a/C (Szegedy et al., 1512.00567).
    """
    if name == "cross-entropy":
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    num_classes = logits.shape[1]
    target = F.one_hot(labels, num_classes).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / num_classes
    return (logits.softmax(dim=1) - target).square().mean(dim=1)
