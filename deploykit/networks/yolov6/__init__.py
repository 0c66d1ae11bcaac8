"""YOLOv6: its layers and its network."""
