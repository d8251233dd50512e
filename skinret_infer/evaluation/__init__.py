"""How good the hits are, and whether a lower precision keeps them."""
