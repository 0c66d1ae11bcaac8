"""The names of COCO's panoptic categories: its 80 things, and 53 kinds of stuff.

Source: github.com/cocodataset/panopticapi, `panoptic_coco_categories.json` (Lin et al. 2014,
Caesar et al. 2018).
"""

from __future__ import annotations

from deploykit.networks.detectors.dense_family import coco_ids

THINGS = 91
"""Ids, 0 and those of none included, up to the last thing's."""
COUNT = 250
"""Outputs of the published networks: one for each id that the data set of stuff could have had."""
STUFF = {
    92: "banner",
    93: "blanket",
    95: "bridge",
    100: "cardboard",
    107: "counter",
    109: "curtain",
    112: "door-stuff",
    118: "floor-wood",
    119: "flower",
    122: "fruit",
    125: "gravel",
    128: "house",
    130: "light",
    133: "mirror-stuff",
    138: "net",
    141: "pillow",
    144: "platform",
    145: "playingfield",
    147: "railroad",
    148: "river",
    149: "road",
    151: "roof",
    154: "sand",
    155: "sea",
    156: "shelf",
    159: "snow",
    161: "stairs",
    166: "tent",
    168: "towel",
    171: "wall-brick",
    175: "wall-stone",
    176: "wall-tile",
    177: "wall-wood",
    178: "water-other",
    180: "window-blind",
    181: "window-other",
    184: "tree-merged",
    185: "fence-merged",
    186: "ceiling-merged",
    187: "sky-other-merged",
    188: "cabinet-merged",
    189: "table-merged",
    190: "floor-other-merged",
    191: "pavement-merged",
    192: "mountain-merged",
    193: "grass-merged",
    194: "dirt-merged",
    195: "paper-merged",
    196: "food-other-merged",
    197: "building-other-merged",
    198: "rock-merged",
    199: "wall-other-merged",
    200: "rug-merged",
}
"""Id -> name."""


def at_ids(count: int) -> tuple[str, ...]:
    """Return the names at their ids, N/A between them; of fewer classes those of `coco_ids`."""
    if count != COUNT:
        return coco_ids(count)
    known = dict(enumerate(coco_ids(THINGS))) | STUFF
    return tuple(known.get(number, "N/A") for number in range(COUNT))
