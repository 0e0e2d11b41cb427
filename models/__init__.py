"""Models: data, training, evaluation, calibration, bundles, export and the runtimes that serve them.

Nothing here knows of Ray, FastAPI or the `service` package. Serving a bundle needs numpy, tokenizers and
onnxruntime only; torch is imported by the modules that train or export.
"""
