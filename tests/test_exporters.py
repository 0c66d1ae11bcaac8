"""What holds for every shipped recipe, and what the official code of each says."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import deploykit
from deploykit.networks import reparam
from deploykit.pipeline import open_model
from deploykit.recipes.candidates import candidates
from deploykit.recipes.identity import Facts, found
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

SHIPPED = {name: RECIPES.load(name) for name in RECIPES.shipped()}
CLASSES = {"repvgg": 1000, "yolov6": 80}
SIDE = {"repvgg": 224, "yolov6": 640}


class Official(NamedTuple):
    """Exact figures of one variant, with the classes and the input size above."""

    deployed: int
    """Parameters of the deploy form. Published tables round them, with the classifier of
    RepVGG and the 34 constants `proj` and `proj_conv` of YOLOv6 included."""
    trained: int
    """Parameters of the trained form."""
    macs: int
    """Multiply-adds of the deploy form; the published GFLOPs of YOLOv6 are twice as many,
    and count a transposed convolution four times."""
    entries: int
    """Entries of the official state dict."""
    keys: str
    """Digest of its names and shapes: of the official code at 0.4.0 for v3, at 0.2.1 for v2 (in
    the layout of 0.4)."""


# Multiply-adds that the official graph spends on the mean of the 17 box bins, a 1x1 convolution
# there and a multiplication and a sum here: 8400 anchors at 640x640, 4 sides.
BIN_MEAN = 8400 * 4 * 17
# Biases that release 0.2 gave to the 3x3 convolutions of L, and that their norms made void.
L_BIASES = 18_496
OFFICIAL = {
    ("yolov6", "v2n"): Official(4317246, 4737566, 5520384000, 668, "1319b74647a97e89"),
    ("yolov6", "v2t"): Official(14970526, 16363166, 18157977600, 549, "bb89437e1a869844"),
    ("yolov6", "v2s"): Official(17220446, 18869022, 21932851200, 668, "da435acd46898bf7"),
    ("yolov6", "v2m"): Official(
        34286486, 37170358, 40734676800 - BIN_MEAN, 1152, "8305b7ed02a97898"
    ),
    ("yolov6", "v2l"): Official(
        58541067, 58589195 - L_BIASES, 71378286400 - BIN_MEAN, 867, "b96adccc92d9f527"
    ),
    ("yolov6", "v2l_relu"): Official(
        58541067, 63539723, 71378286400 - BIN_MEAN, 1887, "7412d7c1c14d338d"
    ),
    ("yolov6", "v3n"): Official(4646974, 5058270, 5658009600, 756, "f2876ff3eaf443aa"),
    ("yolov6", "v3s"): Official(18537310, 20147358, 22483353600, 756, "6906d15925de75ef"),
    ("yolov6", "v3m"): Official(
        34855958, 37740982, 42543470400 - BIN_MEAN, 1200, "8d953216b8fdeadd"
    ),
    ("yolov6", "v3l"): Official(
        59607563, 59638731, 74733729600 - BIN_MEAN, 915, "baf7f2fdd4a2eb31"
    ),
    ("repvgg", "a0"): Official(8309384, 9108968, 1361451008, 351, "7054adaf8f02e97a"),
    ("repvgg", "a1"): Official(12789864, 14092264, 2363967488, 351, "c917bb745a0e4711"),
    ("repvgg", "a2"): Official(25499944, 28210600, 5116951552, 351, "49f725218bd7d1bf"),
    ("repvgg", "b0"): Official(14339048, 15817960, 3057600512, 453, "e54f2d1abe7b105f"),
    ("repvgg", "b1"): Official(51829480, 57415016, 11815485440, 453, "8d8f62711f12d37a"),
    ("repvgg", "b1g2"): Official(41360104, 45782376, 8809742336, 453, "1299eb570f439433"),
    ("repvgg", "b1g4"): Official(36125416, 39966056, 7306870784, 453, "46666072001e423e"),
    ("repvgg", "a0_qa"): Official(8309384, 9103304, 1361451008, 266, "1cfeb42da7ff919d"),
    ("repvgg", "a0_qav1"): Official(8309384, 9117960, 1361451008, 461, "1fb414d44df92385"),
    ("repvgg", "b0_qa"): Official(14339048, 15808616, 3057600512, 338, "11429d13fc209e0a"),
    ("repvgg", "b1_qa"): Official(51829480, 57396328, 11815485440, 338, "04bd89fd73dec8e3"),
    ("repvgg", "b1g4_qa"): Official(36125416, 39947368, 7306870784, 338, "bbedcb1dfd15b03a"),
    ("repvgg", "b1_repopt"): Official(51829480, 51841832, 11815485440, 170, "8cc062159c8bf66c"),
    ("repvgg", "b2_repopt"): Official(80315112, 80330536, 18376609792, 170, "742bc1b06059a464"),
    ("repvgg", "l1_repopt"): Official(76018920, 76037928, 21063925760, 290, "9f3fdc3e0d964521"),
    ("repvgg", "l2_repopt"): Official(118109032, 118132776, 32827297792, 290, "fc3687cc930bb499"),
}
VARIANTS = [(name, variant) for name in SHIPPED for variant in SHIPPED[name].variants]
ONE_FORM = {
    "hrnet": 2,
    "hrnet_seg": 4,
    "swin": 1,
    "deformable_detr": 3,
    "detr": 1,
    "detr_panoptic": 1,
    "mpvit": 1,
    "keras_mask_rcnn": 1,
    "point_rend": 1,
    "point_rend_seg": 1,
    "point_rend_deeplab": 1,
    "upernet": 1,
}
"""Families whose variants differ in numbers alone -> how many of them stand for all."""
ONE_CLASS = {"instance_fcn": 1}
"""Families that tell no classes apart."""


def on_meta(name: str, variant: str, classes: int) -> nn.Module:
    """Return a network whose weights take no memory."""
    with torch.device("meta"):
        return SHIPPED[name].network(variant, classes)


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_parameters_and_multiply_adds_are_the_official_ones(name: str, variant: str) -> None:
    trained = on_meta(name, variant, CLASSES[name])
    deployed = reparam.deployed(SHIPPED[name], trained)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(torch.empty(1, 3, SIDE[name], SIDE[name], device="meta"))
    found = [sum(p.numel() for p in form.parameters()) for form in (deployed, trained)]
    assert (*found, counter.get_total_flops() // 2) == OFFICIAL[name, variant][:3]


@pytest.mark.parametrize(("name", "variant"), OFFICIAL)
def test_keys_and_shapes_are_the_official_ones(name: str, variant: str) -> None:
    state = on_meta(name, variant, CLASSES[name]).state_dict()
    lines = sorted(f"{k} {tuple(v.shape)}" for k, v in state.items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert (len(state), digest) == OFFICIAL[name, variant][3:]


ALIKE = {
    "resnet50_fpn": "resnet50_fpn_eps0",
    "mobilenet_v3_large_320_fpn": "mobilenet_v3_large_fpn",
}
"""Variants whose weights without the norms' counters are those of another one."""


@pytest.mark.parametrize(
    ("name", "variant"),
    [each for n in SHIPPED for each in [v for v in VARIANTS if v[0] == n][: ONE_FORM.get(n)]],
)
def test_a_variant_is_known_by_its_state_dict_and_by_no_other_recipe(
    name: str, variant: str
) -> None:
    state = on_meta(name, variant, 7).state_dict()
    lean = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    facts = Facts(variant=variant if variant.endswith(("base", "v2l", "v3l", "_qa")) else None)
    answers = {n: found(r.identify(r.adapt(lean), facts)) for n, r in SHIPPED.items()}
    known = ALIKE.get(variant, variant)
    if known not in SHIPPED[name].variants:
        known = variant
    answer = answers.pop(name)
    assert answer is not None
    assert (answer.variant, answer.classes) == (known, ONE_CLASS.get(name, 7))
    assert set(answers.values()) == {None}
    assert list(SHIPPED[name].adapt(state)) == list(state)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_is_called_like_its_file(name: str) -> None:
    assert SHIPPED[name].name == name


def test_the_recipe_in_the_readme_works(tmp_path: Path) -> None:
    text = (RECIPES.folder() / "README.md").read_text(encoding="utf-8")
    path = tmp_path / "my_resnet.py"
    path.write_text(text.split("```python\n")[1].split("```")[0], encoding="utf-8")
    recipe = RECIPES.load(str(path))
    network = recipe.network("resnet18", 5)
    state = recipe.adapt(network.state_dict())
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        trained, folded = network(images), reparam.deployed(recipe, network)(images)
    assert recipe.identify(state, Facts()) == ("resnet18", 5)
    assert recipe.identify({}, Facts()) is None
    assert torch.allclose(trained, folded, atol=1e-5)
    assert recipe.variant("resnet18").preprocess.size == (224, 224)


def test_the_segmenter_in_the_readme_is_exported_and_its_outputs_keep_their_names(
    tmp_path: Path,
) -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    text = (RECIPES.folder() / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[2].split("```")[0]
    assert len(code.splitlines()) <= 30
    own, weights, model = (tmp_path / name for name in ("seg.py", "weights.pth", "seg.onnx"))
    own.write_text(code, encoding="utf-8")
    torch.manual_seed(0)
    network = lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4).eval()
    torch.save(network.state_dict(), weights)
    deploykit.export(weights, model, deploykit.ExportOptions(recipe=str(own), input_size=(64, 96)))
    opened = open_model(model)
    assert opened.card is not None
    assert opened.card.task == "semantic_segmentation"
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        expected = network(images)["out"]
    (name, found), *others = opened.session.run({"images": images.numpy()}).items()
    assert (name, others) == ("out", [])
    assert torch.allclose(torch.from_numpy(found), expected, atol=1e-4)


LIGHT = """
import sys, torch
from pathlib import Path
from deploykit.networks import loading
network = loading.load_network(Path(sys.argv[1]), loading.NetworkOptions())
assert network.recipe.name == sys.argv[2]
sys.exit(str({"torchvision", "timm", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(("name", "variant"), [("yolov6", "pico"), ("repvgg", "a0")])
def test_no_model_library_is_imported_to_find_a_family_that_needs_none(
    name: str, variant: str, tmp_path: Path
) -> None:
    torch.save(SHIPPED[name].network(variant, 2).state_dict(), tmp_path / "weights.pth")
    command = [sys.executable, "-c", LIGHT, str(tmp_path / "weights.pth"), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_is_a_candidate_for_its_own_weights(name: str) -> None:
    variant = next(iter(SHIPPED[name].variants))
    assert name in candidates(on_meta(name, variant, 3).state_dict())
    assert name not in candidates(["fc.weight", "fc.bias"])
