from pathlib import Path

import pytest
import tomli_w

from rayasd import presets
from rayasd.config import from_dict
from rayasd.errors import UserError
from rayasd.nested import flatten
from rayasd.presets import load, varied
from rayasd.study.choices import choose_variants


def test_presets_differ_exactly_in_the_methods_switches():
    a, b = (flatten(load(name).as_dict()) for name in ("eusipco2022", "serial-oe"))
    assert {key for key in a if a[key] != b[key]} == {
        "exposure.epochs",
        "exposure.waveform_scaling",
        "exposure.mixup_schedule",
        "exposure.mixup_product_loss",
        "inlier.detectors",
    }
    assert (a["exposure.epochs"], b["exposure.epochs"]) == (300, 100)
    assert (a["exposure.lambda_machine"], a["exposure.lambda_product"]) == (1.0, 10.0)


def test_overrides_take_toml_values_and_bare_words():
    config = load(
        "demo", ["exposure.epochs=7", "network.backbone=resnet10t", "inlier.grid=[2,3]", "inlier.poolings=mean,max"]
    )
    assert config.exposure.epochs == 7
    assert config.network.backbone == "resnet10t"
    assert config.inlier.grid == (2, 3)
    assert config.inlier.poolings == ("mean", "max")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("exposure.epoch=3", "did you mean 'exposure.epochs'?"),
        ("exposur.epochs=3", "did you mean 'exposure.epochs'? 'rayasd settings' prints all"),
        ("epochs=3", "unknown setting 'epochs': did you mean 'exposure.epochs'?"),
        ("training.epochs=3", "unknown setting 'training.epochs': did you mean 'exposure.epochs'?"),
        ("exposure.epochs=-1", "exposure.epochs = -1: must be at least 0"),
        ("exposure.epochs=1.5", "a value of type whole number is needed"),
        ("exposure.epochs=many", "a value of type whole number is needed"),
        ("exposure.learning_rate=nan", "must be at least 0"),
        ("exposure.mixup_schedule=down", "choose one of cosine-down, cosine-up, always, never"),
        ("data.channel=left", "choose only, mean, near-far or a channel's number"),
        ("front_end.f_max=9000", "above half of data.sample_rate"),
        ("exposure=3", "exposure is a table of settings"),
        ("exposure.epochs", "write it as key=value"),
        ("variants.both=5", "variants.both is a table of settings, not 5"),
        ("variants=3", "variants is a table of settings, not 3"),
        ("exposure.validation_fraction=0.0", "nothing to fit to"),
        ("front_end.window_seconds=0.05", "longer than half of front_end.n_fft"),
        ("front_end.f_min=7800", "front_end.f_min must be below front_end.f_max"),
        ("exposure.target_domain_per_batch=64", "smaller than half of exposure.batch_size"),
        ("evaluation.development=['1']", "write section 1 as '01'"),
        ("inlier.grid=[1, 0.5]", "a value of type whole number is needed"),
        ("inlier.detectors=3", "a list is needed"),
        ("variants.both.data.resample=true", "data, evaluation apply to the whole run"),
        ("variants.'a/b'.exposure.epochs=1", "a name is made of letters, digits"),
    ],
)
def test_a_wrong_override_is_named_with_the_way_out(override: str, said: str):
    with pytest.raises(UserError, match=None) as caught:
        load("eusipco2022", [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["exposure.real_anomalies=1", "exposure.real_anomalies_per_batch=64"],
            "real_anomalies_per_batch must be small",
        ),
        (
            ["exposure.objective=adacos", "exposure.scope=all", "exposure.waveform_scaling=target"],
            'exposure.waveform_scaling = "target" needs exposure.scope = "machine"',
        ),
        (["evaluation.year=2021", "evaluation.year.x=1"], "evaluation.year = {'x': 1}: choose one of auto, 2020"),
    ],
)
def test_settings_that_do_not_go_together_are_named(overrides: list[str], said: str):
    with pytest.raises(UserError) as caught:
        load("eusipco2022", overrides)
    assert said in str(caught.value)


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'demo'"):
        load("demoo")
    with pytest.raises(UserError, match="no such preset file"):
        load("nowhere.toml")


def test_a_preset_file_extends_another(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('extends = "demo"\n[exposure]\nepochs = 2\n[variants.slow]\nexposure.learning_rate = 1e-5\n')
    config = load(str(path))
    assert config.exposure.epochs == 2
    assert config.front_end.n_mels == load("demo").front_end.n_mels
    assert config.variant("slow").exposure.learning_rate == 1e-5
    assert config.variant("both").exposure.learning_rate == load("demo").exposure.learning_rate
    with pytest.raises(UserError, match="did you mean 'slow'"):
        config.variant("slo")


@pytest.mark.parametrize("preset", presets.preset_names())
def test_written_toml_reads_back_the_same(preset: str, tmp_path: Path):
    config = load(preset, ['network.pretrained="a \\"quoted\\" name.pth"'])
    path = tmp_path / "config.toml"
    path.write_text(tomli_w.dumps(config.as_dict()))
    assert load(str(path)).as_dict() == config.as_dict()
    assert from_dict(config.as_dict()) == config


def test_a_circle_of_presets_and_a_name_that_is_no_folder_are_refused(tmp_path: Path):
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text(f'extends = "{b}"')
    b.write_text(f'extends = "{a}"')
    with pytest.raises(UserError, match="extends itself"):
        load(str(a))
    a.write_text('extends = "demo"\n[variants."../up"]\n')
    with pytest.raises(UserError, match="a name is made of letters"):
        load(str(a))
    a.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not valid TOML"):
        load(str(a))


def test_every_variant_of_every_preset_resolves():
    for preset in presets.preset_names():
        config = load(preset)
        for variant in config.variants:
            config.variant(variant)
            assert config.variant(variant) is config.variant(variant)
    assert load("demo").variant("untrained").exposure.epochs == 0
    assert load("demo").variant("statistics").network.encoder == "statistics"


def test_vary_makes_a_variant_for_each_value_tested_on_the_same_clips():
    config = load("demo", ["exposure.reserved_anomalies=3"])
    varied_config, names = varied(config, ["both", "no-mixup"], "exposure.real_anomalies", [0, 2, 5])
    assert names[:3] == ("both-real_anomalies-0", "both-real_anomalies-2", "both-real_anomalies-5")
    assert len(names) == 6
    resolved = [varied_config.variant(name).exposure for name in names]
    assert [exposure.real_anomalies for exposure in resolved] == [0, 2, 5] * 2
    assert {exposure.anomalies_aside for exposure in resolved} == {5}
    assert resolved[4].mixup_schedule == "never"
    fewer, names = varied(load("demo", ["exposure.reserved_anomalies=9"]), ["both"], "exposure.contamination", [0, 4])
    assert {fewer.variant(name).exposure.anomalies_aside for name in names} == {9}
    odd, names = varied(config, ["both"], "inlier.detectors", ["knn(n_neighbors=3)", "lof-8"])
    assert names == ("both-detectors-knn-n_neighbors-3", "both-detectors-lof-8")
    assert odd.variant(names[0]).inlier.detectors == ("knn(n_neighbors=3)",)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("evaluation.year", [2021, 2022], "apply to the whole run"),
        ("data.channel", ["0", "1"], "apply to the whole run"),
        ("exposure.epoch", [1], "did you mean 'exposure.epochs'"),
        ("exposure.epochs", ["x"], "a value of type whole number is needed"),
    ],
)
def test_vary_refuses_what_variants_cannot_have(key: str, values: list, said: str):
    with pytest.raises(UserError, match=said):
        varied(load("demo"), ["both"], key, values)


def test_a_variant_extends_one_before_it():
    variants = {"a": {"exposure.epochs": 3, "network.dropout": 0.1}, "b": {"extends": "a", "exposure.epochs": 4}}
    config = from_dict({"variants": variants})
    resolved = config.variant("b")
    assert (resolved.exposure.epochs, resolved.network.dropout) == (4, 0.1)
    assert config.overrides("b") == {"exposure.epochs": 4, "network.dropout": 0.1}
    for wrong in ({"b": {"extends": "a"}, "a": {}}, {"a": {"extends": "a"}}, {"b": {"extends": "nothing"}}):
        with pytest.raises(UserError, match="extends"):
            from_dict({"variants": wrong, "evaluation": {"ensembles": ["a&b"]}})


def test_a_sweep_takes_the_first_variant_of_its_preset():
    assert choose_variants(None, load("recommended")) == ("recommended",)
    assert choose_variants(None, load("small")) == ("both",)
    assert choose_variants("level", load("recommended")) == ("level",)
    with pytest.raises(UserError, match="did you mean .both."):
        choose_variants("bot", load("small"))
