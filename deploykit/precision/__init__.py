"""Which layer computes in which number format: calibration, placement, quantisation."""
