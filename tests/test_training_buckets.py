"""Sizes and crops of training pictures, and which of them a step sees; exact resume."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autolora_jax.training.buckets import Crop, Plan, assign, assign_all, load_pixels, make_buckets
from autolora_jax.training.dataset import DatasetError, Example
from tests.training_pictures import draw, noise_picture

LAW = settings(deadline=None)  # other processes may own the machine
FEWER = settings(LAW, max_examples=40)
CROP_TOLERANCE = 1  # of 255: resizing a crop alone against cropping the resized; seen 1, in 584 of 3.6e6 values
JPEG_TOLERANCE = 3  # of 255, quality 100 without subsampling; seen 2


# --- buckets ---

SDXL = make_buckets(1024)
sides = st.integers(8, 6000)
seeds = st.integers(0, 2**40)


def test_buckets_are_those_that_kohya_makes():
    """Worked out by hand from its rule for sides of 512 to 2048: 64 · floor(1024² / side / 64)."""
    half = {512: 2048, 576: 1792, 640: 1600, 704: 1472, 768: 1344, 832: 1216, 896: 1152, 960: 1088, 1024: 1024}
    other = {1280: 768, 1408: 704, 1536: 640, 1664: 576, 1728: 576, 1856: 512, 1920: 512, 1984: 512}
    pairs = {*half.items(), *other.items()}
    expected = sorted(pairs | {(b, a) for a, b in pairs})
    assert make_buckets(1024, minimum=512, maximum=2048, max_aspect=4) == tuple(expected)
    assert tuple(b for b in expected if max(b) <= 2 * min(b)) == SDXL
    assert make_buckets(1024, max_aspect=1) == ((1024, 1024),)
    assert make_buckets(64, step=8, max_aspect=1.5) == ((56, 72), (64, 64), (72, 56))


@LAW
@given(st.integers(1, 40), st.sampled_from([8, 16, 64]), st.floats(1, 5))
def test_bucket_laws(multiple, step, aspect):
    side = multiple * step
    buckets = make_buckets(side, step=step, max_aspect=aspect)
    assert (side, side) in buckets and len(set(buckets)) == len(buckets)
    for h, w in buckets:
        assert h % step == w % step == 0 and max(h, w) / min(h, w) <= aspect and (w, h) in buckets
        assert side**2 - step * max(h, w) < h * w <= side**2  # the shorter side could not be a step longer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 1000}, "use 1024, or another step"),
        ({"resolution": 0}, "use 64"),
        ({"resolution": 1024, "step": 12}, "multiple of 8"),
        ({"resolution": 1024, "max_aspect": 0.5}, "at least 1"),
        ({"resolution": 1024, "maximum": 512}, "outside minimum 64 to maximum 512"),
        ({"resolution": 512, "minimum": 1024}, "outside minimum 1024"),
    ],
)
def test_bad_buckets(options, message):
    with pytest.raises(ValueError, match=message):
        make_buckets(**options)


@LAW
@given(sides, sides, st.sampled_from(["center", "random"]), seeds)
def test_crop_laws(height, width, place, seed):
    crop = assign((height, width), SDXL, place=place, seed=seed)
    (rows, columns), (top, left), (h, w) = crop.resized, crop.top_left, crop.target
    assert crop.original == (height, width) and crop.target in SDXL
    assert rows >= h and columns >= w and (rows == h or columns == w)
    assert 0 <= top <= rows - h and 0 <= left <= columns - w
    scale = max(h / height, w / width)
    assert abs(rows - height * scale) < 1 and abs(columns - width * scale) < 1
    best = min(abs(np.log(height / width) - np.log(a / b)) for a, b in SDXL)
    assert abs(np.log(height / width) - np.log(h / w)) <= best + 1e-9
    assert crop == assign((height, width), SDXL, place=place, seed=seed)
    upright = assign((width, height), SDXL, place=place, seed=seed)
    assert upright.target == (w, h) and upright.resized == (columns, rows)


@pytest.mark.parametrize(("longer", "bucket"), [(1873, (1408, 704)), (1868, (1344, 768))])
def test_nearest_is_by_the_ratio_of_aspect_ratios(longer, bucket):
    """Halfway between 1.75 and 2 is then 1.871; by difference it is 1.867 or 1.875, as height or width is divided."""
    assert assign((longer, 1000), SDXL).target == bucket
    assert assign((1000, longer), SDXL).target == bucket[::-1]


def test_random_crops_reach_every_position_evenly():
    crops = [assign((64, 72), [(64, 64)], place="random", seed=i).top_left for i in range(900)]
    counts = np.bincount([left for _, left in crops], minlength=9)
    assert {top for top, _ in crops} == {0} and counts.min() > 60 and counts.max() < 150


def test_no_upscaling():
    assert assign((1500, 1000), SDXL).target == (1216, 832) == assign((1500, 1000), SDXL, upscale=False).target
    assert assign((1100, 1000), SDXL).target == (1088, 960)
    assert assign((1020, 1500), SDXL, upscale=False).target == (832, 1216)
    # Nearest among those that fit, though another bucket is nearer in shape.
    assert assign((1000, 1100), SDXL, upscale=False).target == (960, 1088)
    assert assign((1023, 1088), SDXL, upscale=False).target == (960, 1088)
    with pytest.raises(ValueError, match="900 × 900 pixels cover no bucket; allow upscaling"):
        assign((900, 900), SDXL, upscale=False)
    small = Example(Path("small.png"), "x", (900, 900))
    with pytest.raises(DatasetError, match=r"small\.png: 900 × 900 pixels"):
        assign_all([small, Example(Path("b.png"), "x", (2000, 2000)), small], SDXL, upscale=False)


def test_assign_all_gives_every_example_its_own_position():
    examples = [Example(Path(f"{i}.png"), "x", (1024, 1600)) for i in range(20)]
    crops = assign_all(examples, [(1024, 1024)], place="random", seed=3)
    assert len({c.top_left for c in crops}) > 10
    assert crops == assign_all(examples, [(1024, 1024)], place="random", seed=3)
    assert crops != assign_all(examples, [(1024, 1024)], place="random", seed=4)
    assert {c.top_left for c in assign_all(examples, [(1024, 1024)])} == {(0, 288)}


def diffusers_center(height: int, width: int, resolution: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Resize(resolution), then CenterCrop: torchvision's size of the resized picture, the script's (y1, x1)."""
    short, long = min(height, width), max(height, width)
    longer = int(resolution * long / short)
    new_h, new_w = (resolution, longer) if height <= width else (longer, resolution)
    y1 = max(0, int(round((new_h - resolution) / 2.0)))  # noqa: RUF046
    x1 = max(0, int(round((new_w - resolution) / 2.0)))  # noqa: RUF046
    return (new_h, new_w), (y1, x1)


@LAW
@given(sides, sides, st.sampled_from([64, 512, 1024]))
def test_matches_the_order_and_numbers_of_diffusers_script(height, width, resolution):
    crop = assign((height, width), make_buckets(resolution, max_aspect=1))
    resized, (y1, x1) = diffusers_center(height, width, resolution)
    assert crop.resized == resized and crop.top_left == (y1, x1)
    ids = crop.time_ids()
    assert ids.dtype == np.float32 and ids.tolist() == [height, width, y1, x1, resolution, resolution]


# --- pixels ---


@pytest.mark.parametrize("size", [(200, 300), (300, 200), (50, 70), (64, 64), (65, 64), (97, 131)])
@pytest.mark.parametrize("place", ["center", "random"])
def test_pixels_are_those_of_the_crop_of_the_resized_picture(tmp_path, size, place):
    path = tmp_path / "a.png"
    picture = noise_picture(*size)
    picture.save(path)
    example = Example(path, "x", size)
    crop = assign(size, make_buckets(64, step=8), place=place, seed=5)
    whole = np.asarray(picture.resize(crop.resized[::-1], Image.Resampling.LANCZOS))
    (top, left), (h, w) = crop.top_left, crop.target
    expected = whole[top : top + h, left : left + w]
    pixels = load_pixels(example, crop)
    assert pixels.dtype == np.uint8 and pixels.shape == (h, w, 3) and pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - expected).max() <= CROP_TOLERANCE
    if crop.resized == size:
        assert np.array_equal(pixels, expected)

    flipped = load_pixels(example, crop, flip=True)
    assert np.array_equal(flipped, pixels[:, ::-1])
    # With flip the numbers are those of a crop of the mirrored picture, which is what diffusers' script takes.
    y, x = crop.sizes(flip=True).crops_top_left
    assert crop.time_ids(flip=True).tolist() == [*size, y, x, h, w]
    assert np.abs(flipped.astype(int) - whole[:, ::-1][y : y + h, x : x + w]).max() <= CROP_TOLERANCE


def test_shrinking_is_antialiased(tmp_path):
    board = np.indices((512, 512)).sum(0) % 2 * 255
    Image.fromarray(np.repeat(board[..., None], 3, 2).astype(np.uint8)).save(tmp_path / "a.png")
    pixels = load_pixels(Example(tmp_path / "a.png", "x", (512, 512)), assign((512, 512), [(64, 64)]))
    assert np.abs(pixels[4:-4, 4:-4].astype(int) - 128).max() <= 2


def test_a_long_strip_needs_no_memory(tmp_path):
    draw(tmp_path / "a.png", size=(8, 60_000))
    crop = assign((8, 60_000), SDXL)
    assert crop.resized == (704, 5_280_000)  # 11 GB
    assert load_pixels(Example(tmp_path / "a.png", "x", (8, 60_000)), crop).shape == (704, 1408, 3)


def test_files_that_changed_since(tmp_path):
    example = Example(draw(tmp_path / "a.png", size=(20, 20)), "x", (20, 20))
    crop = assign((20, 20), [(8, 8)])
    draw(tmp_path / "a.png", size=(20, 30))
    with pytest.raises(DatasetError, match="is 20 × 30 pixels, was 20 × 20; list the folder again"):
        load_pixels(example, crop)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:50])
    with pytest.raises(DatasetError, match=r"a\.png.*\n.*can't be decoded"):
        load_pixels(example, crop)


# --- batches ---


def plan_of(numbers: list[int], repeats: list[int], batch_size: int, seed: int) -> tuple[Plan, list[Crop]]:
    """A plan of examples, each in a bucket of that number and with these repeats."""
    crops = [assign((64, 64), [(8 * (bucket + 1), 64)]) for bucket in numbers]
    examples = [Example(Path(f"{i}.png"), "x", (64, 64), r) for i, r in enumerate(repeats)]
    return Plan(examples, crops, batch_size, seed), crops


rows = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=30)  # (bucket, repeats)
batch_sizes = st.integers(1, 7)


@LAW
@given(rows, batch_sizes, seeds, st.integers(0, 1000))
def test_an_epoch_has_every_example_in_full_batches_of_one_bucket(rows, batch_size, seed, number):
    buckets, repeats = map(np.array, zip(*rows, strict=True))
    plan, crops = plan_of(buckets.tolist(), repeats.tolist(), batch_size, seed)
    batches = plan.epoch(number)
    assert len(batches) == plan.steps_per_epoch and batches == plan.epoch(number)
    for batch in batches:
        assert len(batch.indices) == batch_size and {crops[i].target for i in batch.indices} == {batch.bucket}
    counts = np.bincount([i for batch in batches for i in batch.indices], minlength=len(rows))
    assert (counts >= repeats).all()
    for bucket in set(buckets.tolist()):
        within = buckets == bucket
        assert counts[within].sum() - repeats[within].sum() < batch_size  # no batch too many


@FEWER
@given(rows, batch_sizes, seeds, st.data())
def test_batches_are_a_pure_function_of_the_step(rows, batch_size, seed, data):
    plan, _ = plan_of([bucket for bucket, _ in rows], [repeats for _, repeats in rows], batch_size, seed)
    steps = 3 * plan.steps_per_epoch
    in_order = [plan.batch_at(step) for step in range(steps)]
    assert in_order == [batch for epoch in range(3) for batch in plan.epoch(epoch)]
    for step in data.draw(st.lists(st.integers(0, steps - 1), max_size=10)):
        assert plan.batch_at(step) == in_order[step]


@FEWER
@given(seeds, st.integers(1, 60))
def test_a_resumed_run_sees_what_the_uninterrupted_one_does(seed, start):
    numbers, repeats = [0, 0, 1, 0, 2, 1, 0, 0], [1, 2, 1, 1, 3, 1, 1, 1]
    whole, _ = plan_of(numbers, repeats, 3, seed)
    expected = [whole.batch_at(step) for step in range(start + 20)]
    resumed, _ = plan_of(numbers, repeats, 3, seed)
    assert [resumed.batch_at(step) for step in range(start, start + 20)] == expected[start:]


def test_epochs_and_seeds_differ_and_no_example_is_favoured():
    plan, _ = plan_of([0] * 10, [1] * 10, 4, seed=0)
    other, _ = plan_of([0] * 10, [1] * 10, 4, seed=1)
    assert len({plan.epoch(i) for i in range(50)} | {other.epoch(i) for i in range(50)}) == 100
    # Two of twelve rows are fillers: each example is one in a fifth of the epochs.
    counts = np.bincount([i for e in range(1000) for batch in plan.epoch(e) for i in batch.indices])
    assert counts.sum() == 12_000 and abs(counts - 1200).max() < 60  # 4.7 standard deviations


def test_the_order_of_a_plan_never_changes():
    """A resumed run may meet another numpy: these values are for ever."""
    plan, _ = plan_of([0, 1, 0, 1, 0, 0], [1, 1, 1, 2, 1, 1], 2, seed=42)
    assert [batch.indices for batch in plan.epoch(7)] == [(3, 1), (0, 5), (2, 4), (1, 3)]
    assert assign((64, 640), [(64, 64)], place="random", seed=42).top_left == (0, 381)


def test_a_large_epoch_is_built_once(monkeypatch):
    n = 100_000
    examples = [Example(Path("a.png"), "x", (64, 64))] * n
    plan = Plan(examples, [assign((64, 64), [(64, 64)])] * n, 8, seed=1)
    built = []
    epoch = plan.epoch
    monkeypatch.setattr(plan, "epoch", lambda number: built.append(number) or epoch(number))
    for step in range(plan.steps_per_epoch - 100, plan.steps_per_epoch + 100):
        plan.batch_at(step)
    assert built == [0, 1] and plan.steps_per_epoch == n // 8


def test_bad_plans():
    crop = assign((64, 64), [(64, 64)])
    example = Example(Path("a.png"), "x", (64, 64))
    with pytest.raises(ValueError, match="got 0 and 0"):
        Plan([], [], 1)
    with pytest.raises(ValueError, match="got 1 and 2"):
        Plan([example], [crop, crop], 1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        Plan([example], [crop], 0)
