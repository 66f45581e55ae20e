"""A retrained network handed over: plain torch code, weights, torch.export, ONNX and a model card."""
