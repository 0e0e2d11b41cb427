from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings, SettingsError, load_settings


@pytest.fixture(autouse=True)
def _clear_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HEED_")]:
        monkeypatch.delenv(name)


def test_the_default_address_is_on_loopback() -> None:
    assert (load_settings().host, load_settings().port) == ("127.0.0.1", 8000)


def test_overrides_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_PORT", "9000")
    monkeypatch.setenv("HEED_SENTIMENT_BUNDLE", "/some/bundle")
    assert load_settings().port == 9000
    assert load_settings().bundles["sentiment"] == Path("/some/bundle")
    assert load_settings(port=9001).port == 9001
    assert load_settings(port=None).port == 9000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("REPLICAS", "0"),
        ("DEVICE", "tpu"),
        ("REQUEST_TIMEOUT_S", "nan"),
        ("REQUEST_TIMEOUT_S", "0"),
        ("BATCH_TOKENS", "0"),
        ("MAX_BODY_BYTES", "1"),
        ("LOG_LEVEL", "loud"),
        ("PLACEMENT", "elsewhere"),
        ("MODEL_REPLICAS_MIN", "0"),
        ("MODEL_GPUS", "0"),
        ("MODEL_GPUS", "1.5"),
    ],
)
def test_an_unusable_value_is_one_line_that_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"HEED_{name}", value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert str(raised.value).startswith(f"HEED_{name}={value!r}: ")
    assert "\n" not in str(raised.value)


def test_the_maximum_of_replicas_is_not_below_the_minimum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_MODEL_REPLICAS_MIN", "4")
    with pytest.raises(SettingsError, match=r"HEED_MODEL_REPLICAS_MAX=3: .*HEED_MODEL_REPLICAS_MIN"):
        load_settings()
    assert load_settings(model_replicas_max=4).model_replicas_max == 4


@pytest.mark.parametrize("gpus", [0.25, 1, 2])
def test_a_model_takes_a_fraction_of_a_gpu_or_whole_gpus(gpus: float) -> None:
    assert load_settings(model_gpus=gpus).model_gpus == gpus


def test_replicas_default_to_the_cores_of_this_process_up_to_four(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, replicas in ((1, 1), (2, 2), (4, 4), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        assert load_settings().replicas == replicas


def test_services_on_different_ports_have_separate_metrics() -> None:
    assert load_settings(port=8001).metrics_dir != load_settings(port=8002).metrics_dir


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_a_bundle_can_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in ("none", "None", ""):
        monkeypatch.setenv("HEED_INTENT_BUNDLE", word)
        monkeypatch.setenv("HEED_RECOMMEND_BUNDLE", word)
        assert list(load_settings().bundles) == ["sentiment"]
    monkeypatch.setenv("HEED_SENTIMENT_BUNDLE", "none")
    with pytest.raises(SettingsError, match=r"HEED_SENTIMENT_BUNDLE='none': .*at least one task needs a model"):
        load_settings()
    monkeypatch.setenv("HEED_INTENT_BUNDLE", "/some/intents")
    monkeypatch.setenv("HEED_RECOMMEND_BUNDLE", "/some/items")
    assert load_settings().bundles["intent"] == Path("/some/intents")
    assert load_settings().bundles["recommend"] == Path("/some/items")


def test_the_first_variable_of_the_sentiment_bundle_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEED_BUNDLE", "/first/name")
    assert load_settings().bundles["sentiment"] == Path("/first/name")
    monkeypatch.setenv("HEED_SENTIMENT_BUNDLE", "/later/name")
    assert load_settings().bundles["sentiment"] == Path("/later/name")


@pytest.mark.parametrize(("earlier", "present"), [("HEED_SHELF", "HEED_DATA_DIR"), ("HEED_LABELS", "HEED_LABEL_SET")])
def test_an_earlier_name_of_a_variable_is_refused_with_the_present_one(
    monkeypatch: pytest.MonkeyPatch, earlier: str, present: str
) -> None:
    monkeypatch.setenv(earlier, "/my/data")
    with pytest.raises(SettingsError) as refused:
        load_settings()
    assert str(refused.value) == f"{earlier}='/my/data': this variable is called {present} now; rename it"
