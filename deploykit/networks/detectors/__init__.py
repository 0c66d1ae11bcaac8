"""What detectors are made of, in fixed shapes: anchors, box coding, proposals, RoI heads."""
