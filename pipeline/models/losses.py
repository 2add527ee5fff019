"""The loss of each sample, by name."""

from torch import Tensor
from torch.nn import functional as F

from pipeline.config.choices import LossName


def sample_losses(name: LossName, logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Returns float [N], the loss of each sample. logits: float [N, C]; labels: int64 [N].

    cross-entropy: -sum_c q_c log softmax(logits)_c. mse: the mean over classes of (softmax(logits) - q)^2, which the
    TensorFlow tutorial offers as an alternative. q is the one-hot target, smoothed with a = label_smoothing to
    (1 - a) onehot + a / C (Szegedy et al., arXiv 1512.00567, section 7).
    """
    if name == "cross-entropy":
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    num_classes = logits.shape[1]
    target = F.one_hot(labels, num_classes).to(logits.dtype) * (1 - label_smoothing) + label_smoothing / num_classes
    return (logits.softmax(dim=1) - target).square().mean(dim=1)
