"""``lmconform protocol-check``: whether a program keeps the rules of the wire, whatever numbers it computes."""
