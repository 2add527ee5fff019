"""The loss of each sample, by name."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.choices import LossName


def sample_losses(
    name: LossName,
    logits: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    threshold: float = 0.0,
    mixed: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Returns float [N], the loss of each sample. logits: float [N, C]; labels: int64 [N].

    cross-entropy: -sum_c q_c log softmax(logits)_c. mse: the mean over classes of (softmax(logits) - q)^2, which the
    TensorFlow tutorial offers as an alternative. binary-cross-entropy: the mean over classes of
    -q_c log s_c - (1 - q_c) log(1 - s_c), with s = sigmoid(logits) (Wightman et al., arXiv 2110.00476). q is the
    one-hot target, smoothed with a = label_smoothing to (1 - a) onehot + a / C (Szegedy et al., arXiv 1512.00567,
    section 7).

    mixed: of samples that are made of two images, (weight of the own label, float [N]; labels of the other image, int64
    [N]). threshold: of binary-cross-entropy: mixed targets above it are 1, and the others 0; 0 leaves them.
    """
    if name == "binary-cross-entropy":
        target = _target(logits, labels, label_smoothing)
        if mixed is not None:
            weight = mixed[0][:, None]
            target = weight * target + (1 - weight) * _target(logits, mixed[1], label_smoothing)
        if threshold:
            target = (target > threshold).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=1)
    losses = _of_labels(name, logits, labels, label_smoothing)
    if mixed is None:
        return losses
    weight, partner_labels = mixed
    return weight * losses + (1 - weight) * _of_labels(name, logits, partner_labels, label_smoothing)


def _of_labels(name: LossName, logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    if name == "cross-entropy":
        return F.cross_entropy(logits, labels, label_smoothing=label_smoothing, reduction="none")
    return (logits.softmax(dim=1) - _target(logits, labels, label_smoothing)).square().mean(dim=1)


def _target(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    num_classes = logits.shape[1]
    # Not by torch's one_hot, which reads the largest label.
    own = torch.arange(num_classes, device=logits.device) == labels[:, None]
    return own.to(logits.dtype) * (1 - label_smoothing) + label_smoothing / num_classes
