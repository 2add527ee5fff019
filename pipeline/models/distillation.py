"""Knowledge distillation: a network learns from the labels and from what another one makes of the same images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.recipe import Recipe
from pipeline.core.errors import CheckpointError
from pipeline.models.load import check_classes, find_model, load_net


def distillation_losses(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """logits: float [N, C] of both. Returns float [N]: T^2 KL(softmax(teacher / T) || softmax(student / T)).

    Source: Hinton, Vinyals and Dean, arXiv 1503.02531; T^2 keeps the gradient's size as T grows.
    """
    student, teacher = (F.log_softmax(each / temperature, dim=1) for each in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


class Teacher(nn.Module):
    """A finished run's network, which takes the student's normalised images and isn't trained."""

    scale: Tensor
    shift: Tensor

    def __init__(self, run: str, classes: tuple[str, ...], student: Recipe) -> None:
        """run: URI of a finished run. Raises CheckpointError if there is none, or it knows other classes."""
        super().__init__()
        model = find_model(run, "teacher")
        check_classes(model, classes, "teacher")
        recipe = model.recipe
        self.net = load_net(model)
        self.eval().requires_grad_(False)
        own, other = (torch.tensor((each.pixel_mean, each.pixel_std)).view(2, 1, 3, 1, 1) for each in (student, recipe))
        self.register_buffer("scale", own[1] / other[1])
        self.register_buffer("shift", (own[0] - other[0]) / other[1])
        size = student.image_size_px
        try:
            with torch.inference_mode():
                self(torch.zeros(1, 3, size, size))
        except RuntimeError as error:
            text = " ".join(str(error).split())[:100]
            raise CheckpointError(f"teacher={run}: {recipe.model} takes no images of {size} px ({text})") from error

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, S, S], normalised for the student. Returns logits float [N, C]."""
        logits: Tensor = self.net(torch.addcmul(self.shift, images, self.scale)).float()
        return logits
