"""Models: data, training, evaluation, calibration, bundles, export and the runtimes that serve them.

Nothing here knows Ray, FastAPI or the `service` package. Serving a bundle needs only numpy, tokenizers and onnxruntime.
Only the modules that train or export import torch.
"""
