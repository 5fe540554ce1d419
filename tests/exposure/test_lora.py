"""Low-rank updates of an encoder's layers: a start that changes nothing, and files of what was trained alone."""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rayasd.config import Config
from rayasd.config.tables import Lora, NetworkConfig
from rayasd.errors import UserError
from rayasd.exposure.embedding import embed
from rayasd.exposure.encoders import make_encoder
from rayasd.exposure.lora import LoraLinear, add_lora
from rayasd.exposure.network import AttentiveStatistics, Network, load_network, num_saved_parameters
from rayasd.exposure.training import train
from rayasd.pretrained import relocated
from rayasd.scoring import load
from rayasd.scoring.loading import RunModels
from rayasd.scoring.packing import read_pack, write_pack
from rayasd.unit import Stopped
from tests.conftest import SpecOf, run_locally
from tests.exposure.test_pretrained import WRITERS, of, write_audiomae, write_beats, write_speech

LORA = "lora(rank=2, targets=['q', 'v', 'qkv'])"
SETTINGS = ["exposure.epochs=1", "embedding.num_windows=1"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("lara", "choose one of full, head, lora, frozen"),
        ("lora(rang=1)", "unexpected keyword argument 'rang'"),
        ("lora(rank=0)", "rank is at least 1"),
        ("lora(targets='q')", "targets a list of names"),
        ("lora(targets=[])", "targets a list of names"),
        ("lora(alpha=-1)", "alpha above 0"),
        ("head(rank=1)", "choose one of"),
    ],
)
def test_what_is_trained_is_read_in_one_place(text: str, reason: str):
    with pytest.raises(UserError, match=reason):
        _ = NetworkConfig(train=text).lora


def test_lora_is_trained_in_the_devices_arithmetic():
    assert NetworkConfig(train="lora(rank=4)").lora == Lora(rank=4)
    assert NetworkConfig(train="lora").is_trained
    assert (NetworkConfig(train="lora").arithmetic, NetworkConfig(train="frozen").arithmetic) == ("auto", "float32")


@pytest.mark.parametrize("name", WRITERS)
def test_the_start_changes_no_bit_and_updates_are_of_low_rank(small_config: Config, tmp_path: Path, name: str):
    encoder = make_encoder(of(small_config, WRITERS[name](tmp_path))).eval()
    waveforms = 0.1 * torch.randn(3, 8000)
    with torch.no_grad():
        before = encoder(waveforms)
        add_lora(encoder, Lora(rank=4, targets=("q", "v", "qkv")))
        assert torch.equal(encoder(waveforms), before)
        adapted = [module for module in encoder.modules() if isinstance(module, LoraLinear)]
        assert len(adapted) == {"audiomae": 6, "dasheng": 2}.get(name, 4)  # dasheng: qkv of two blocks
        for layer in adapted:
            nn.init.normal_(layer.lora_b, std=0.05)
        updated = encoder(waveforms)
        assert not torch.allclose(updated, before)
        for layer in adapted:
            layer.weight += 8 / 4 * layer.lora_b @ layer.lora_a  # alpha over rank
            nn.init.zeros_(layer.lora_b)
        torch.testing.assert_close(encoder(waveforms), updated, rtol=1e-5, atol=1e-5)


def test_an_encoder_without_such_layers_is_refused(small_config: Config):
    with pytest.raises(UserError, match="no linear layer called q or v: it has none at all"):
        Network(of(small_config, "level", train="lora"), ["00"])


def test_wavlm_is_refused(small_config: Config, tmp_path: Path):
    with pytest.raises(UserError, match="WavLM reads the weights"):
        Network(of(small_config, write_speech(tmp_path, "WavLM"), train="lora"), ["00"])


@pytest.mark.slow
@pytest.mark.parametrize("train_as", [LORA, "head"])
def test_only_what_was_trained_is_saved(small_config: Config, tmp_path: Path, spec_of: SpecOf, train_as: str):
    config = of(small_config, write_beats(tmp_path), train=train_as)
    spec = spec_of(config=config)
    train(spec)
    saved = load_file(spec.output / "model.safetensors")
    assert sum(value.numel() for value in saved.values()) == num_saved_parameters(config)
    kinds = {name.rpartition(".")[2] if "encoder" in name else name.partition(".")[0] for name in saved}
    assert kinds == {"extractor", "objective", *(["lora_a", "lora_b"] if train_as == LORA else [])}
    loaded = load_network(spec.output, config)
    assert not loaded.training
    if train_as == LORA:
        learned = [value for name, value in saved.items() if name.endswith("lora_b")]
        assert all(value.abs().max() > 0 for value in learned)
    embed(spec_of("embed", config=config))
    torch.save({"cfg": {}, "model": {}}, tmp_path / "beats.pt")
    with pytest.raises(UserError, match="beats.pt has changed"):
        load_network(spec.output, config)
    (tmp_path / "beats.pt").unlink()
    with pytest.raises(UserError, match="no such file"):
        load_network(spec.output, config)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beats", "wav2vec2", "mel-timm"])
def test_a_training_goes_on_to_the_same_bits(small_config: Config, tmp_path: Path, spec_of: SpecOf, name: str):
    if name == "mel-timm":
        config = of(small_config, name, backbone="test_vit", train="lora(rank=2, targets=['qkv'])")
    else:
        config = of(small_config, WRITERS[name](tmp_path), train=LORA)
    spec = spec_of(config=config)
    train(spec)
    expected, rows = (spec.output / "model.safetensors").read_bytes(), (spec.output / "history.jsonl").read_text()
    (spec.output / "model.safetensors").unlink()
    with pytest.raises(Stopped):
        train(spec, lambda progress: progress.done == 2)
    state = torch.load(spec.output / "state.pt", weights_only=True)["model"]
    assert ("extractor.encoder.model.patch_embedding.weight" in state) is False
    train(spec)
    assert (spec.output / "model.safetensors").read_bytes() == expected
    assert (spec.output / "history.jsonl").read_text() == rows


def test_weights_of_another_network_are_refused(small_config: Config, tmp_path: Path):
    config = of(small_config, write_beats(tmp_path), train="head")
    state = Network(config, ["00"]).saved_state()
    with pytest.raises(UserError, match="of another network: extractor.encoder.model"):
        Network(replace(config, network=replace(config.network, train=LORA)), ["00"]).load_saved_state(state)


def sweep(tree: Path, cache: Path, run: Path, encoder: str, train_as: str) -> None:
    settings = [*SETTINGS, f"network.encoder={encoder}", f"network.train={train_as}"]
    words = [word for setting in settings for word in ("--set", setting)]
    run_locally(tree, cache, run, "--machines", "fan", "--variants", "both", *words)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "train_as"),
    [(write_beats, LORA), (write_beats, "head"), (write_beats, "frozen"), (write_audiomae, "frozen"),
     (write_speech, "full")],
)  # fmt: skip
def test_a_packed_model_needs_no_other_file(tree: Path, cache: Path, tmp_path: Path, write, train_as: str):
    weights, run = tmp_path / "weights", tmp_path / "run"
    weights.mkdir()
    settings = [*SETTINGS, f"network.encoder={write(weights)}", f"network.train={train_as}"]
    run_locally(
        tree, cache, run, "--machines", "fan", "--variants", "both", *(w for s in settings for w in ("--set", s))
    )
    clips = sorted((tree / "fan" / "source_test").glob("*section_00*"))[:3]
    expected = list(load(run, machine="fan", device="cpu").score(clips, "00"))
    assert all(score.score is not None for score in expected)
    packed = tmp_path / "fan.rayasd"
    write_pack(packed, [RunModels(run).parts("fan")])
    assert str(tmp_path).encode() not in packed.read_bytes()
    weights.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no such file"):
        load(run, machine="fan")
    assert list(load(packed, device="cpu").score(clips, "00")) == expected
    again = tmp_path / "again.rayasd"
    write_pack(again, [read_pack(packed)])
    assert list(load(again, device="cpu").score(clips, "00")) == expected


@pytest.mark.slow
def test_a_packed_model_reads_no_file_that_it_does_not_hold(tree: Path, cache: Path, tmp_path: Path):
    run = tmp_path / "run"
    settings = [*SETTINGS, f"network.encoder={write_audiomae(tmp_path)}", "network.train=frozen"]
    run_locally(
        tree, cache, run, "--machines", "fan", "--variants", "both", *(w for s in settings for w in ("--set", s))
    )
    parts = RunModels(run).parts("fan")
    ((origin, embedder),) = parts.embedders.items()
    stray = relocated(embedder.config, {str(tmp_path / "audiomae.safetensors"): "/etc/passwd"})
    strays = {origin: replace(embedder, config=stray, files={"base-0/x": b""})}
    write_pack(tmp_path / "stray", [replace(parts, embedders=strays)])
    with pytest.raises(UserError, match="builds on weights that it does not hold: /etc/passwd"):
        read_pack(tmp_path / "stray")


def test_attention_pools_a_grid(small_config: Config, tmp_path: Path):
    pool, grid = AttentiveStatistics(5, 3), torch.randn(2, 4, 3, 5)
    places = grid.reshape(2, 12, 5)
    scores = torch.tanh(places @ pool.attention[0].weight.T + pool.attention[0].bias) @ pool.attention[2].weight[0]
    weights = scores.exp() / scores.exp().sum(dim=1, keepdim=True)
    mean = torch.einsum("nl,nld->nd", weights, places)
    deviation = (torch.einsum("nl,nld->nd", weights, places.square()) - mean.square() + 1e-6).sqrt()
    torch.testing.assert_close(pool(grid), pool.linear(torch.cat([mean, deviation], dim=1)), rtol=1e-4, atol=1e-5)
    network = Network(of(small_config, write_audiomae(tmp_path), train="head", neck="attentive"), ["00"]).eval()
    assert network(torch.randn(2, 8000))["embedding"].shape == (2, 128)
    with pytest.raises(UserError, match="attentive needs an encoder of grids, which level is not"):
        Network(of(small_config, "level", train="head", neck="attentive"), ["00"])


def test_embeddings_of_lora_are_those_of_the_trained_network(small_config: Config, tmp_path: Path, spec_of: SpecOf):
    config = of(small_config, write_beats(tmp_path), train=LORA)
    train(spec_of(config=config))
    spec = spec_of("embed", config=config)
    embed(spec)
    assert pq.read_table(spec.run.table(spec.unit)).num_rows == 42 * 3
