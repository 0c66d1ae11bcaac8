"""Torchvision's names beside detectron2's, told anew for the tests."""

BACKBONE = (
    *((f"body.layer{i}.", f"bottom_up.res{i + 1}.") for i in range(1, 5)),
    ("body.conv1.", "bottom_up.stem.conv1."),
    ("body.bn1.", "bottom_up.stem.conv1.norm."),
    *((f".bn{i}.", f".conv{i}.norm.") for i in range(1, 4)),
    (".downsample.0.", ".shortcut."),
    (".downsample.1.", ".shortcut.norm."),
    *((f"fpn.inner_blocks.{i}.0.", f"fpn_lateral{i + 2}.") for i in range(4)),
    *((f"fpn.layer_blocks.{i}.0.", f"fpn_output{i + 2}.") for i in range(4)),
)
"""(ours, theirs) of a ResNet and its pyramid, to be replaced in this order."""
HEADS = (
    ("rpn.head.conv.0.0.", "proposal_generator.rpn_head.conv."),
    ("rpn.head.cls_logits.", "proposal_generator.rpn_head.objectness_logits."),
    ("rpn.head.bbox_pred.", "proposal_generator.rpn_head.anchor_deltas."),
    ("box_head.fc6.", "box_head.fc1."),
    ("box_head.fc7.", "box_head.fc2."),
)
"""Likewise of the proposals and the boxes."""
