"""One-shot neural architecture search with meta-learned supernets (SUMNAS, ICLR 2022)."""
