"""The steps that all exports share, with a tiny network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.export.staging import open_runtimes, write_graph
from models.graph.names import HEAD
from models.networks.encoder import Classifier, graph_weights
from models.runtime.offline import infer_all, infer_vectors
from models.text.encoding import Encoding
from tests.support.tiny_networks import tiny_encoder

VOCABULARY = 200


def test_each_form_of_an_exported_classifier_has_the_vectors_of_its_head(tmp_path: Path) -> None:
    network = Classifier(tiny_encoder(3, VOCABULARY), width=32, labels=3).eval()
    torch.nn.init.normal_(network.head.weight, std=0.2)
    write_graph(network, "int8", tmp_path)
    head = {name: graph_weights(network)[f"{HEAD}.{name}"] for name in ("weight", "bias")}
    rng = np.random.default_rng(2)
    texts = [Encoding(rng.integers(5, VOCABULARY, n), np.zeros(n, np.int64), False, "en") for n in (3, 30, 12)]
    forms = dict(open_runtimes(tmp_path))
    assert len(forms) == 2
    for name, runtime in forms.items():
        logits, vectors = infer_all(runtime, texts, pad_id=1), infer_vectors(runtime, texts, pad_id=1)
        assert np.ptp(logits) > 0.1
        np.testing.assert_allclose(vectors @ head["weight"].T + head["bias"], logits, atol=1e-4, err_msg=name)
