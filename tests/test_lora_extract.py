"""Extracting: the nearest low rank of the difference of two checkpoints, against numpy's SVD, torch and diffusers."""

import contextlib
import json
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from autolora_jax import lora
from autolora_jax.lora import Extraction, Fit, Truncation, extract, save_lora
from autolora_jax.lora.truncation import best_product
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights import Checkpoint, WeightsError, convert_checkpoint, open_checkpoint, orbax_folder
from autolora_jax.weights.lora.files import read_lora, targets_of
from autolora_jax.weights.rules import flat_shapes
from autolora_jax.weights.streaming import Leaves
from autolora_jax.weights.tables import torch_module
from tests import reference_sd3, sd3_files
from tests.checkpoint_files import cast_folder, networks_of, write_single_file
from tests.lora_reference import RandomLora, random_lora
from tests.parity import error
from tests.programs import autolora
from tests.tuned_folders import assert_same_deltas, changed_folder, deltas_of, dense, prediction, tuned_folder

EXACT = 1e-6  # of the largest value, or of the norm; seen: 1.6e-7, float32's rounding of W + ΔW
NEAREST = 1e-6  # of the norm, against numpy's SVD in float64; seen: 1.3e-7
SAME = 1e-12  # seen: 0
AS_TUNED = 2e-5  # of the largest prediction; seen: 1.6e-6


@pytest.fixture(scope="module")
def made(tiny_pipeline: StableDiffusionXLPipeline) -> RandomLora:
    """A LoRA of ranks 2, 4 and 3 on attention, feed-forward and convolutions of all three networks."""
    return random_lora(tiny_pipeline, seed=5, convolutions=True)


@pytest.fixture(scope="module")
def tuned(tiny_folder: Path, made: RandomLora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned_folder(tmp_path_factory.mktemp("tuned") / "sdxl", tiny_folder, made)


@pytest.fixture(scope="module")
def extracted(tiny_folder: Path, tuned: Path) -> tuple[dict[str, Any], Extraction]:
    return extract(open_checkpoint(tiny_folder), open_checkpoint(tuned), Truncation(max_error=1e-5))


# ---- the nearest low rank --------------------------------------------------------------------------------------------


def decaying(rows: int, columns: int) -> np.ndarray:
    """A matrix of which every singular value is three quarters of the one before."""
    rng = np.random.default_rng(rows)
    k = min(rows, columns)
    u, v = (np.linalg.qr(rng.standard_normal((n, k)))[0] for n in (rows, columns))
    return ((u * 0.75 ** np.arange(k)) @ v.T).astype(np.float32)


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (40, 40), (9 * 16, 24)])
@pytest.mark.parametrize("rank", [1, 5, 24])
def test_the_low_rank_is_the_truncated_svd(shape: tuple[int, int], rank: int):
    change = decaying(*shape)
    (down, up), fit = best_product(change, Truncation(rank), rank)
    u, sigma, v = np.linalg.svd(change.astype(np.float64), full_matrices=False)
    size = np.linalg.norm(sigma)
    assert np.linalg.norm(down @ up - (u[:, :rank] * sigma[:rank]) @ v[:rank]) < NEAREST * size
    assert fit.rank == rank and fit.size == pytest.approx(size)
    assert fit.error == pytest.approx(np.linalg.norm(sigma[rank:]), abs=NEAREST * size)  # Eckart and Young
    assert np.linalg.norm(change - down @ up) == pytest.approx(fit.error, abs=NEAREST * size)
    # σ is shared out evenly.
    for half in (down.T, up):
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), np.sqrt(sigma[:rank]), rtol=1e-5)


def test_an_error_target_takes_the_fewest_ranks():
    change = decaying(40, 60)
    sigma = np.linalg.svd(change.astype(np.float64), compute_uv=False)
    missing = np.sqrt(np.cumsum(sigma[::-1] ** 2)[::-1]) / np.linalg.norm(sigma)  # with 0, 1, 2 … ranks
    for target in (0.5, 0.1, 0.013):
        _, fit = best_product(change, Truncation(max_error=target), 40)
        assert missing[fit.rank] <= target < missing[fit.rank - 1]
        assert fit.relative == pytest.approx(missing[fit.rank], abs=NEAREST)
    _, fit = best_product(change, Truncation(rank=3, max_error=0.013), 3)
    assert fit.rank == 3 and fit.relative == pytest.approx(missing[3])  # the ceiling wins, and it is said


def test_ranks_that_add_nothing_are_not_kept():
    change = np.outer(np.arange(30.0), np.ones(50)).astype(np.float32)  # float32 holds all of it
    (down, up), fit = best_product(change, Truncation(16), 16)
    assert fit.rank == 1 and down.shape == (30, 1) and up.shape == (1, 50)
    np.testing.assert_allclose(down @ up, change, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "nothing says how many ranks to keep: give rank"),
        ({"rank": 0}, "rank 0 holds nothing"),
        ({"rank": 8, "conv_rank": -1}, "conv_rank -1 must be 0"),
        ({"max_error": 0.0}, "max_error 0 must lie between 0 and 1"),
        ({"max_error": 5.0}, "max_error 5 must lie between 0 and 1"),
        ({"max_error": float("nan")}, "max_error nan must lie"),
    ],
)
def test_what_can_not_be_meant_is_said_so(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Truncation(**settings)


# ---- two checkpoints -------------------------------------------------------------------------------------------------


def test_a_known_lora_is_found_again(extracted, made: RandomLora, tiny_folder: Path):
    trees, report = extracted
    theirs = deltas_of(made)
    assert_same_deltas(dense(trees), theirs, EXACT)
    for key, change in made.changes.items():
        assert fit_of(report, *key).rank == change.down.shape[0]
    assert report.fits.error < EXACT and not report.left_out and not report.notes
    layers = sum(
        path.endswith("kernel") for c in networks_of(tiny_folder).values() for path in flat_shapes(shapes_of(c))
    )
    assert sum(report.unchanged.values()) == layers - len(theirs)


def fit_of(report: Extraction, component: str, module: str) -> Fit:
    """By canonical module name."""
    names = {name: name.partition("/") for name in report.fits.layers}
    [fit] = [
        report.fits.layers[n] for n, (c, _, path) in names.items() if (c, torch_module(path)) == (component, module)
    ]
    return fit


def test_fewer_ranks_miss_what_eckart_and_young_say(tiny_folder: Path, tuned: Path, made: RandomLora):
    _, report = extract(open_checkpoint(tiny_folder), open_checkpoint(tuned), Truncation(rank=2, conv_rank=1))
    assert len(report.fits.layers) == len(made.changes)
    for key, delta in list(deltas_of(made).items())[::17]:  # numpy's SVD takes its time
        sigma = np.linalg.svd(delta.reshape(len(delta), -1), compute_uv=False)
        rank = 1 if delta[0, 0].size > 1 else 2
        fit = fit_of(report, *key)
        assert fit.rank == rank and fit.size == pytest.approx(np.linalg.norm(sigma))
        assert fit.error == pytest.approx(np.linalg.norm(sigma[rank:]), abs=EXACT * fit.size)
    missing, changed = (np.linalg.norm([getattr(f, n) for f in report.fits.layers.values()]) for n in ("error", "size"))
    assert report.fits.error == pytest.approx(missing / changed)
    assert f"{100 * report.fits.error:.3g} % of the change" in str(report)


def test_convolutions_can_be_left_out(tiny_folder: Path, tuned: Path, made: RandomLora):
    trees, report = extract(open_checkpoint(tiny_folder), open_checkpoint(tuned), Truncation(rank=2, conv_rank=0))
    convolutions = {key for key, delta in deltas_of(made).items() if delta[0, 0].size > 1}
    assert dense(trees).keys() == made.changes.keys() - convolutions
    assert len(report.left_out) == len(convolutions)


def test_a_single_file_gives_the_same(tiny_folder: Path, tuned: Path, extracted, tmp_path: Path):
    file = write_single_file(tmp_path / "tuned.safetensors", tuned)
    other = open_checkpoint(file, networks=networks_of(tiny_folder))
    trees, report = extract(open_checkpoint(tiny_folder), other, Truncation(max_error=1e-5))
    assert_same_deltas(dense(trees), dense(extracted[0]), SAME)
    assert report.fits == extracted[1].fits


def test_a_converted_folder_gives_the_same(small_folder: Path, tmp_path: Path):
    def change(component: str, tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith("to_q.weight"):
                tensors[name] = np.tri(*tensors[name].shape, dtype=np.float32)

    other = changed_folder(tmp_path / "other", small_folder, change)
    converted = convert_checkpoint(other, tmp_path / "converted", "float32")
    base = open_checkpoint(small_folder)
    trees = [extract(base, open_checkpoint(folder), Truncation(rank=4))[0] for folder in (other, converted)]
    assert_same_deltas(dense(trees[1]), dense(trees[0]), SAME)


def test_sd3s_fused_layers_come_apart(tmp_path: Path):
    base = tmp_path / "sd3"
    reference_sd3.tiny_sd3(base).save_pretrained(base)
    key = "transformer_blocks.0.attn.to_k.weight"
    rng = np.random.default_rng(0)
    low = rng.standard_normal((32, 2)) @ rng.standard_normal((2, 32))

    def change(component: str, tensors: dict[str, np.ndarray]) -> None:
        if component == "transformer":
            tensors[key] = (tensors[key] + low).astype(np.float32)
        else:  # what files that leave it out mean
            tensors["text_projection.weight"] = np.eye(32, dtype=np.float32)

    stems = {"transformer": "diffusion_pytorch_model", "text_encoder": "model"}
    tuned = changed_folder(tmp_path / "tuned", base, change, stems)
    shutil.copytree(tuned / "text_encoder", base / "text_encoder", dirs_exist_ok=True)
    file = sd3_files.write_single_file(tmp_path / "tuned.safetensors", tuned, ["text_encoder", "text_encoder_2"])
    networks = sd3_files.networks_of(base)
    trees, report = extract(open_checkpoint(base), open_checkpoint(file, networks=networks), Truncation(max_error=1e-5))
    assert_same_deltas(dense(trees), {("transformer", key.removesuffix(".weight")): low}, EXACT)
    assert report.notes == (f"text_encoder_3 was not compared: {file} leaves it out",)


def test_what_a_lora_can_not_hold_is_measured(tiny_folder: Path, tuned: Path, tmp_path: Path):
    names = {
        "unet": ("conv_in.bias", "mid_block.resnets.0.norm1.weight"),
        "text_encoder_2": ("text_model.embeddings.token_embedding.weight",),
        "vae": ("decoder.conv_in.weight",),
    }

    def change(component: str, tensors: dict[str, np.ndarray]) -> None:
        for name in names.get(component, ()):
            tensors[name] = tensors[name] * np.float32(1.25)

    other = changed_folder(tmp_path / "other", tuned, change)
    _, report = extract(open_checkpoint(tiny_folder), open_checkpoint(other), Truncation(rank=4))
    assert {path: round(r.change / r.size, 6) for path, r in report.left_out.items()} == dict.fromkeys(
        (
            "text_encoder_2/text_model/embeddings/token_embedding/embedding",
            "unet/conv_in/bias",
            "unet/mid_block/resnets_0/norm1/scale",
            "vae/decoder/conv_in/kernel",
        ),
        0.25,
    )
    said = str(report)
    assert "1 biases in unet, changed by 25 % of their size" in said
    assert "1 kernels in vae, changed by 25 %" in said


def test_rounding_alone_is_no_change(tiny_folder: Path, tuned: Path, tmp_path: Path):
    half = Path(shutil.copytree(tiny_folder, tmp_path / "half"))
    cast_folder(half, "float16")
    with pytest.raises(ValueError, match="not one differs: there is nothing to extract"):
        extract(open_checkpoint(tiny_folder), open_checkpoint(half), Truncation(rank=4))
    _, report = extract(open_checkpoint(half), open_checkpoint(tuned), Truncation(rank=4))
    assert "unet is stored as float16 in the base and as float32 in the tuned checkpoint" in str(report)


def test_one_pair_of_tensors_is_in_memory_at_a_time(tiny_folder: Path, tuned: Path, monkeypatch):
    alive: list[weakref.ref] = []
    most = 0

    def watched(checkpoint: Checkpoint, component: str) -> Any:
        @contextlib.contextmanager
        def opened() -> Iterator[Leaves]:
            with plain(checkpoint, component) as leaves:

                def read(path: str) -> np.ndarray:
                    nonlocal most
                    tensor = leaves.read(path).copy()
                    alive[:] = [ref for ref in alive if ref() is not None] + [weakref.ref(tensor)]
                    most = max(most, len(alive))
                    return tensor

                yield leaves._replace(read=read)

        return opened()

    plain = Checkpoint.leaves
    monkeypatch.setattr(Checkpoint, "leaves", watched)
    told: list[tuple[int, int, str]] = []
    extract(open_checkpoint(tiny_folder), open_checkpoint(tuned), Truncation(rank=4), lambda *said: told.append(said))
    assert most == 2
    assert [done for done, _, _ in told] == list(range(len(told))) and told[-1][0] == told[-1][1]


# ---- what others make of it ------------------------------------------------------------------------------------------


def test_diffusers_predicts_with_it_as_with_the_tuned_checkpoint(
    tiny_pipeline, tiny_folder, tuned, extracted, tmp_path
):
    wanted = prediction(StableDiffusionXLPipeline.from_pretrained(tuned))
    assert error(prediction(tiny_pipeline), wanted) > 0.1
    save_lora(tmp_path / "lora.safetensors", extracted[0], "peft", None, networks_of(tiny_folder)["unet"])
    try:
        tiny_pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
        assert error(prediction(tiny_pipeline), wanted) < AS_TUNED
    finally:
        tiny_pipeline.unload_lora_weights()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_other_architectures_are_refused(tiny_folder: Path, small_folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"different architectures: unet .* is \[.*\] and .*; give the base model"):
        extract(open_checkpoint(tiny_folder), open_checkpoint(small_folder), Truncation(rank=4))
    sd3 = tmp_path / "sd3"
    reference_sd3.tiny_sd3(sd3).save_pretrained(sd3)
    with pytest.raises(ValueError, match=r"is SDXL, .* is Stable Diffusion 3: a LoRA can only be the difference"):
        extract(open_checkpoint(tiny_folder), open_checkpoint(sd3), Truncation(rank=4))


def test_nan_is_named(tiny_folder: Path, tmp_path: Path):
    def change(component: str, tensors: dict[str, np.ndarray]) -> None:
        if component == "unet":
            tensors["conv_in.weight"][0, 0, 0, 0] = np.nan

    bad = changed_folder(tmp_path / "bad", tiny_folder, change)
    with pytest.raises(WeightsError, match=r"bad/unet/.*conv_in.weight holds nan at \[0, 0, 0, 0\]"):
        extract(open_checkpoint(tiny_folder), open_checkpoint(bad), Truncation(rank=4))
    orbax_folder.write_component(
        tmp_path, {"conv_in": {"kernel": np.full((2, 3), np.inf, np.float32)}}
    )  # as it is given
    weights = orbax_folder.OrbaxWeights(tmp_path / "orbax")
    with (
        weights.leaves({"conv_in": {"kernel": (2, 3)}}) as leaves,
        pytest.raises(WeightsError, match=r"orbax: conv_in/kernel holds inf at \[0, 0\]"),
    ):
        leaves.read("conv_in/kernel")


# ---- the program -----------------------------------------------------------------------------------------------------


def test_the_program_extracts(tiny_folder: Path, tuned: Path, extracted, tmp_path: Path):
    out = tmp_path / "new" / "lora.safetensors"
    result = autolora("extract", tiny_folder, tuned, "--out", out, "--max-error", "1e-5", "--save-dtype", "float16")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"LoRA in {out}\n"
    assert "Compare" in result.stderr and "4 (" in result.stderr and "of the change" in result.stderr
    file = read_lora(out, targets_of(networks_of(tiny_folder)))
    assert file.dialect.endswith("kohya (sgm block names)")
    assert file.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    assert file.metadata["ss_network_dim"] == "Dynamic"
    assert str(tiny_folder.parent) not in json.dumps(dict(file.metadata))
    assert {array.dtype for array in jax.tree.leaves(list(file.layers.values()))} == {np.dtype(np.float16)}
    assert_same_deltas(dense(lora.attach(file)[0]), dense(extracted[0]), 2e-3)  # seen: 8e-4, float16's rounding
    again = autolora("extract", tiny_folder, tuned, "--out", out)
    assert again.exit_code == 1 and f"{out} exists; remove it or choose another --out" in again.stderr


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--out", "a.safetensors", "--rank", "0"], 2, "rank 0 holds nothing"),
        (["--out", "a.safetensors", "--max-error", "1"], 2, "max_error 1 must lie between 0 and 1"),
        (["--out", "a.txt"], 1, "should be a file that ends in .safetensors"),
        (["--out", "file/a.safetensors"], 1, "file can't be written: "),
        (
            ["--out", "a.safetensors", "--dialect", "lycoris"],
            1,
            "dialect 'lycoris' is not known; choose one of kohya, peft",
        ),
        (["--out", "a.safetensors", "--save-dtype", "int8"], 1, "save_dtype 'int8' is not known"),
    ],
)
def test_the_program_says_what_is_wrong_first(tiny_folder, tuned, tmp_path, monkeypatch, flags, code, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    monkeypatch.setattr(Checkpoint, "leaves", None)  # nothing is read
    result = autolora("extract", tiny_folder, tuned, *flags)
    assert result.exit_code == code and message in result.stderr, result.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_lora_is_no_checkpoint_to_extract_from(tiny_folder: Path, small_folder: Path, tmp_path: Path):
    file = small_folder / "small:0.5.safetensors"
    result = autolora("extract", tiny_folder, file, "--out", tmp_path / "a.safetensors")
    assert result.exit_code == 1 and "looks like a LoRA, not a checkpoint" in result.stderr
