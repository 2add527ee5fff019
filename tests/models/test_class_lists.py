"""A network whose classes aren't those of the data: names, answers, and the rows of its last layers."""

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config.presets import make_recipe
from pipeline.config.recipe import Recipe
from pipeline.models.class_lists import network
from pipeline.models.class_lists.mapping import ClassMap
from pipeline.models.class_lists.network import MappedClasses, carry_over
from pipeline.models.factory import recipe_model
from pipeline.models.load import TrainedModel

OLD = ("ant", "bee", "cow", "dog")
NEW = ("animal", "ant", "dog", "owl", "wasp")
MAP = ClassMap(OLD, NEW, {"bee": "insect", "insect": "wasp", "elk": "owl", "dog": "owl"})


def test_names_follow_the_lines_of_those_that_the_data_set_lacks() -> None:
    assert MAP.places.tolist() == [1, 4, -1, 2]  # the line about dog doesn't count: it is there
    assert MAP.added == ("animal", "owl")
    assert MAP.removed == ("cow",)
    assert MAP.other_names == {"bee": "wasp"}
    assert MAP.shared.tolist() == [1, 2, 4]
    assert MAP.answers == (*NEW, "cow (removed)")
    assert not ClassMap(("b", "a"), ("a", "b")).has_changed
    assert ClassMap(("a",), ("b",), {"a": "c", "c": "a"}).removed == ("a",)  # a circle ends


def test_a_merged_class_has_the_probability_of_its_classes_and_an_unknown_one_none() -> None:
    merged = ClassMap(OLD, ("ant", "mammal", "owl"), {"cow": "mammal", "dog": "mammal"})
    assert merged.merged == {"mammal": ["cow", "dog"]}
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    before = logits.softmax(1)
    after = MappedClasses(nn.Flatten(), merged)(logits).softmax(1)
    expected = torch.stack([before[:, 0], before[:, 2] + before[:, 3], torch.zeros(50), before[:, 1]], 1)
    assert torch.allclose(after, expected, atol=1e-6)


def test_without_merged_classes_the_answers_are_those_of_before_under_their_names() -> None:
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    answers = MappedClasses(nn.Flatten(), MAP)(logits).argmax(1).numpy()
    names = {"bee": "wasp", "cow": "cow (removed)"}
    expected = [names.get(OLD[place], OLD[place]) for place in logits.argmax(1).tolist()]
    assert [MAP.answers[place] for place in answers] == expected


def carried(
    recipe: Recipe, class_map: ClassMap, monkeypatch: pytest.MonkeyPatch, seed: int = 3
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns the weights of a network, and those that a network for other classes starts from."""
    torch.manual_seed(0)
    net = recipe_model(recipe, len(class_map.known))
    for buffer in net.buffers():
        if buffer.is_floating_point():
            buffer.uniform_()
    monkeypatch.setattr(network, "load_net", lambda model: net)
    model = TrainedModel("", recipe, class_map.known, "", "", 0.0)
    return net.state_dict(), carry_over(model, class_map, recipe, seed)


MODELS = (
    "seed-cnn", "fast-resnet", "resnet18", "timm:resnet10t",
    "timm:resnetv2_18",  # whose last layer is a convolution
    "timm:deit_tiny_distilled_patch16_224",  # with two last layers
)  # fmt: skip
LARGE = ("airbench94", "alexnet", "densenet121", "vgg11_bn", "timm:crossvit_9_240", "timm:tf_efficientnet_lite0")


@pytest.mark.parametrize("name", [*MODELS, *(pytest.param(name, marks=pytest.mark.long) for name in LARGE)])
def test_each_class_keeps_its_row_whatever_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    size = 32 if not name.startswith("timm:") else {"timm:crossvit_9_240": 240}.get(name, 224)
    recipe = make_recipe("seed-cnn", model=name, image_size_px=size)
    class_map = ClassMap(("a", "b", "c", "d"), ("a", "cd", "e", "f", "g"), {"c": "cd", "d": "cd", "b": "f"})
    old, new = carried(recipe, class_map, monkeypatch)
    assert old.keys() == new.keys()
    by_class = [key for key in old if old[key].shape != new[key].shape]
    assert by_class
    for key in by_class:
        assert new[key].shape == (5, *old[key].shape[1:])
        assert torch.equal(new[key][0], old[key][0])
        assert torch.equal(new[key][3], old[key][1])
        assert torch.allclose(new[key][1], old[key][2:].mean(0))
        assert key.endswith("bias") or not torch.equal(new[key][2], new[key][4])
    assert all(torch.equal(old[key], new[key]) for key in old if key not in by_class)
    recipe_model(recipe, 5).load_state_dict(new)


def test_as_many_classes_in_another_order_are_not_mistaken_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    class_map = ClassMap(("a", "b", "c"), ("b", "c", "d"))
    recipe = make_recipe("seed-cnn")
    old, new = carried(recipe, class_map, monkeypatch)
    last = list(old)[-1].rpartition(".")[0] + ".weight"
    assert torch.equal(new[last][:2], old[last][1:])
    assert not torch.equal(new[last][2], old[last][0])
    again, other = (carried(recipe, class_map, monkeypatch, seed)[1][last] for seed in (3, 4))
    assert torch.equal(again, new[last])
    assert not torch.equal(other[2], new[last][2])
    assert np.isfinite(new[last].numpy()).all()
