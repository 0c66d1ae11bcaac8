"""How much each layer suffers from INT8, by several measures."""
