"""Networks: a small CNN, any of timm, their pretrained weights, and their form for fast runtimes."""
