"""Networks that are made without random weights."""

from __future__ import annotations

import torch
from torch import nn

from deploykit.networks import unset
from deploykit.recipes.recipe import RECIPES


def test_parameters_are_not_drawn_at_random_and_all_else_is_as_ever() -> None:
    weight, norm = (nn.Parameter(torch.full(shape, 7.0)) for shape in ((2, 3), (2,)))
    random, expected = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    with unset.Unset():
        nn.init.kaiming_uniform_(weight, a=1)
        nn.init.kaiming_normal_(weight)
        nn.init.xavier_normal_(weight)
        assert nn.init.normal_(tensor=weight) is weight
        nn.init.zeros_(norm)
        buffer = nn.init.normal_(torch.empty(1000), generator=random)
    assert weight.eq(7).all()
    assert norm.eq(0).all()
    assert torch.equal(buffer, torch.empty(1000).normal_(generator=expected))


def test_nothing_is_drawn_and_the_generator_stays_where_it_was() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with unset.Unset():
        nn.Conv2d(3, 4, 3), nn.MultiheadAttention(8, 2), nn.Embedding(3, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_on_paper_a_network_has_the_names_shapes_and_types_that_it_has_in_memory() -> None:
    recipe = RECIPES.load("faster_rcnn")
    with unset.on_paper():
        found = recipe.network("mobilenet_v3_large_fpn", 5).state_dict()
    expected = recipe.network("mobilenet_v3_large_fpn", 5).state_dict()
    assert all(value.is_meta for key, value in found.items() if key.endswith("weight"))
    assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
        k: (v.shape, v.dtype) for k, v in expected.items()
    }
