"""How much of a FLOPs saving became time, layer by layer, and why not all of it. docs/AUDIT.md defines every figure."""
