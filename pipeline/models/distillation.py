"""Knowledge distillation: a student learns from the labels and from a teacher's logits on the same images."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.recipe import Recipe
from pipeline.core.errors import CheckpointError
from pipeline.models.load import check_classes, find_model, load_net


def distillation_losses(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Returns float [N]: T^2 KL(softmax(teacher / T) || softmax(student / T)), with T the temperature.

    logits, teacher_logits: float [N, C]. Source: Hinton, Vinyals and Dean, arXiv 1503.02531, section 2; the factor T^2
    keeps the size of the gradient when T changes.
    """
    student, teacher = (F.log_softmax(each / temperature, dim=1) for each in (logits, teacher_logits))
    return temperature**2 * F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1)


class Teacher(nn.Module):
    """The frozen network of a finished run, which takes images normalised for the student.

    It undoes the student's normalisation and applies the teacher's, in one multiply-add.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, run: str, classes: tuple[str, ...], student: Recipe) -> None:
        """run: URI of a finished run, trained on the same classes. student: the recipe that is being trained.

        Raises CheckpointError if there is no such run, its classes differ, or its network can't take images of the
        student's size.
        """
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
        try:  # here, and not in the first step, which comes after minutes of start-up
            with torch.inference_mode():
                self(torch.zeros(1, 3, size, size))
        except RuntimeError as error:
            text = " ".join(str(error).split())[:100]
            raise CheckpointError(f"teacher={run}: {recipe.model} takes no images of {size} px ({text})") from error

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, S, S], normalised for the student. Returns logits, float32 [N, C]."""
        logits: Tensor = self.net(torch.addcmul(self.shift, images, self.scale)).float()
        return logits
