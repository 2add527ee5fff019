"""A trained network for a data set with other classes: its answers under their names, its weights to start from."""

import torch
from torch import Tensor, nn

from pipeline.config.recipe import Recipe
from pipeline.models.class_lists.mapping import NONE, ClassMap
from pipeline.models.factory import recipe_model
from pipeline.models.load import TrainedModel, load_net
from pipeline.models.pretrained.fit import tame
from pipeline.models.tensor_file import Tensors

_UNKNOWN_MARGIN = 30.0  # of the logits of unknown classes below the least one: a share of e^-30 at most


class MappedClasses(nn.Module):
    """A network that gives a logit for each of `ClassMap.answers`.

    A merged class has the sum of the probabilities of its classes. One that the network doesn't know has a logit far
    below all others, so that it is never the answer.
    """

    def __init__(self, net: nn.Module, class_map: ClassMap) -> None:
        super().__init__()
        self.net, self.num_answers = net, len(class_map.answers)
        removed = iter(range(len(class_map.classes), self.num_answers))
        places = [next(removed) if place == NONE else place for place in class_map.places.tolist()]
        self._sources = {place: [n for n, other in enumerate(places) if other == place] for place in sorted({*places})}

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, 3, S, S]. Returns logits, float32 [N, number of answers]."""
        logits: Tensor = self.net(images).float()
        unknown = logits.amin(dim=1, keepdim=True) - _UNKNOWN_MARGIN
        columns = [unknown[:, 0]] * self.num_answers
        for place, sources in self._sources.items():
            columns[place] = logits[:, sources[0]] if len(sources) == 1 else logits[:, sources].logsumexp(dim=1)
        return torch.stack(columns, dim=1)


def carry_over(model: TrainedModel, class_map: ClassMap, recipe: Recipe, seed: int) -> Tensors:
    """Returns the weights of a trained network as the first ones of a network for the classes of a data set.

    Of all layers that have a row for each class, as the last one has, a class that the network knows keeps its row, a
    merged one gets the mean of its rows, and a new one the row that a new network would begin with. recipe: of the
    network that is to be trained. seed: of the new rows.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = recipe_model(recipe, len(class_map.classes))
        names = _names_by_class(recipe, len(class_map.classes))
        for module in {name.rpartition(".")[0] for name in names}:
            tame(net.get_submodule(module))
    weights, fresh = load_net(model).state_dict(), net.state_dict()
    places = torch.from_numpy(class_map.places)
    for name in names & weights.keys():
        rows = fresh[name].clone()
        if weights[name].shape[1:] != rows.shape[1:]:  # of another network: whoever loads the weights says so
            continue
        for label in class_map.shared.tolist():
            rows[label] = weights[name][places == label].mean(dim=0)
        weights[name] = rows
    return {name: tensor.contiguous() for name, tensor in weights.items()}


def _names_by_class(recipe: Recipe, num_classes: int) -> set[str]:
    """Returns the names of the tensors of a recipe's network that have a row for each class.

    They are those whose shape depends on the number of classes: networks of timm have one head, several, or a
    convolution as their last layer.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        one, other = (recipe_model(recipe, number).state_dict() for number in (num_classes, num_classes + 1))
    return {name for name, tensor in one.items() if tensor.shape != other[name].shape}
