"""The paper's experiments as files: every one says what the paper says, and can be planned before anything is there."""

import dataclasses
from pathlib import Path

import pytest

from autolora_jax.batch import estimate
from autolora_jax.batch.plan import Plan, make_plan
from autolora_jax.batch.sources import PUBLISHED, Standins
from autolora_jax.experiments import catalogue, changes
from autolora_jax.experiments.experiment import Experiment, assumed
from autolora_jax.experiments.paper.beyond import CURVES, equal_steps
from autolora_jax.experiments.parts import PAPER
from autolora_jax.experiments.scorers import question_of
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.settings.rules import CFG, AutoLoRA
from tests.programs import autolora
from tests.test_sweep import SWEEPS

ROOT = Path(__file__).resolve().parents[1]
SDXL, SD3 = "stabilityai/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-3-medium-diffusers"
# Pictures of the published models, and how many evaluations they take; the first of each line is the paper's.
SIZES = {
    "table1": (24_576, 6_144 * 30 * (1 + 2 + 2 + 4)),
    "table2": (1_920, 480 * 30 * (2 + 4 + 2 + 4)),
    "figure1": (16, 4 * 30 * 9),
    # At w = 1 CFG takes one evaluation a step and AutoLoRA two.
    "figure2": (8_192, 512 * 30 * (1 + 7 * 2 + 2 + 7 * 4)),
    "figure3": (20, 2 * 30 * (1 + 4 * 2 + 2 + 4 * 4)),
    "figure4": (16, 4 * 30 * (2 + 3 * 4)),
    "figure5": (16, 4 * 30 * 12),
    "figure6": (48, 12 * 30 * 9),
    "figure7": (48, 12 * 30 * 9),
    "figure8": (16, 4 * 30 * 12),
    "frontier": (6_400, 5 * 128 * 30 * (1 + 2 + 4 + 2 + 2 + 4 + 3 + 2 + 2) + 5 * 128 * (2 * 30 + 2 * 15)),
    "frontier_equal": (6_400, 6_400 * 120),
}
PROGRAMS = {"table1": 2, "table2": 2, "figure2": 2, "frontier_equal": 2}  # one or two prompts a call


def plan_of(experiment: Experiment) -> Plan:
    return make_plan(experiment.whole_job, Standins())


def evaluations(plan: Plan) -> int:
    """Of all pictures, those that are wanted twice counted twice."""
    return sum(recipe.evaluations for recipe in plan.recipes) * sum(map(len, plan.seeds))


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """No model lies in the hub's cache of this machine."""
    monkeypatch.setattr("autolora_jax.batch.sources.cached_copy", lambda repo: None)


def test_there_is_a_file_for_every_table_and_figure_of_the_paper():
    figures = [f"figure{i}" for i in range(1, 9)]
    assert catalogue.names() == ("table1", "table2", *figures, "frontier", "frontier_equal", "map", "speed", *SWEEPS)
    assert (ROOT / "configs" / "paper").resolve() == PAPER
    assert {*SIZES, *SWEEPS, "map", "speed"} == {*catalogue.names()}
    example = str(ROOT / "configs" / "paper" / "table1.py")  # what `autolora reproduce --help` names
    assert [catalogue.load(example, small) for small in (False, True)] == [
        catalogue.load("table1", small) for small in (False, True)
    ]


@pytest.mark.parametrize("name", SIZES)
def test_an_experiment_has_the_papers_size_and_its_cells_are_its_settings(name: str):
    experiment = catalogue.load(name)
    plan = plan_of(experiment)
    assert (experiment.name, len(plan), evaluations(plan)) == (name, *SIZES[name])
    told = experiment.whole_job.all_settings()
    assert len(told) == len(experiment.cells) == len(plan.recipes)
    for cell, settings, recipe in zip(experiment.cells, told, plan.recipes, strict=True):
        assert settings.rule() == settings.guidance
        if "guidance" in cell.settings:
            assert type(recipe.rule) is type(cell.settings["guidance"])
        if experiment.axis == "LoRA scale":
            assert recipe.scales == (cell.at,)
        assert recipe.size == (1024, 1024)
    assert all(question_of(ask).missing in ((), ("prompt",)) for ask in experiment.asks)
    said = assumed(experiment)
    assert len(said) >= 4 and all(said) and not [text for text in said if "{" in text]


@pytest.mark.parametrize("name", SIZES)
def test_each_has_a_small_form_of_the_same_comparison(name: str):
    small, whole = catalogue.load(name, builtin=True), catalogue.load(name)
    assert small.world and not whole.world
    assert {*small.methods} == {method for method in whole.methods if not method.startswith("SD3")}
    assert (small.axis, small.plots, small.frontier) == (whole.axis, whole.plots, whole.frontier)
    assert [ask.question for ask in small.asks] == [ask.question for ask in whole.asks]
    plan = plan_of(small)
    assert evaluations(plan) < 40_000  # minutes on two cores
    assert not Standins().unseen and {recipe.size for recipe in plan.recipes} == {(96, 96)}


def test_table_1_is_the_papers():
    experiment = catalogue.load("table1")
    job = experiment.job
    assert job.prompts == ("Anna",) and job.seeds == tuple(range(512))
    assert [cell.at for cell in experiment.cells] == [round(0.1 * i, 1) for i in range(2, 14)] * 4
    published = {(cell.method, cell.at): cell.published for cell in experiment.cells}
    assert published["LoRA", 0.2] == {"Div": 0.378, "CPS": 0.010, "Div-CPS": 0.004}
    assert published["AutoLoRA", 0.9] == {"Div": 0.338, "CPS": 2.115, "Div-CPS": 0.714}
    assert published["LoRA + CFG", 1.1] == {"Div": 0.255, "CPS": 4.535, "Div-CPS": 1.155}
    assert published["AutoLoRA + CFG", 1.3] == {"Div": 0.282, "CPS": 3.914, "Div-CPS": 1.102}
    rules = {recipe.rule for recipe in plan_of(experiment).recipes}
    assert {CFG(5.0), AutoLoRA(1.5, 1.0, 1.0), AutoLoRA(1.5, 5.0, 5.0)} < rules


def test_table_2_is_the_papers():
    experiment = catalogue.load("table2")
    assert len(experiment.job.prompts) == 30 and len(experiment.job.seeds) == 16
    assert experiment.job.prompts[0] == "a dragon riding a unicorn through a rainbow-colored sky, pixel art style"
    published = {cell.method: cell.published for cell in experiment.cells}
    assert published["SD3 CFG"] == {"Div": 0.136, "PC": 3.985, "SA": 4.177, "Div-PC": 0.540, "Div-SA": 0.566}
    assert published["SDXL AutoLoRA"]["Div-SA"] == 0.704
    recipes = dict(zip((cell.method for cell in experiment.cells), plan_of(experiment).recipes, strict=True))
    assert recipes["SD3 AutoLoRA"].rule == AutoLoRA(1.5, 7.0, 7.0) and recipes["SDXL CFG"].rule == CFG(5.0)
    used = {name: (r.load.model.name, r.load.loras[0].source, r.drawing.scheduler) for name, r in recipes.items()}
    assert used["SD3 CFG"] == (SD3.partition("/")[2], "nerijs/pixel-art-medium-128-v0.1", "flow_euler")
    assert used["SDXL CFG"] == (SDXL.partition("/")[2], "pixel-art-xl-v1.1.safetensors", "ddim")


def test_equal_means_equal():
    experiment = catalogue.load("frontier_equal")
    assert {recipe.evaluations for recipe in plan_of(experiment).recipes} == {120}
    assert {recipe.drawing.num_inference_steps for recipe in plan_of(experiment).recipes} == {120, 60, 40, 30}
    points = {curve.method: sum(cell.method == curve.method for cell in experiment.cells) for curve in CURVES}
    assert {*points.values()} == {5}
    assert equal_steps(AutoLoRA(2.0, 5.0, 5.0, stop=0.5), 36) == 12
    with pytest.raises(ValueError, match="at no number of steps"):
        equal_steps(CFG(5.0), 7)


def test_assumptions_are_those_of_the_run():
    """What flags change is told as it was drawn, and not as the experiment's file has it."""
    said = " ".join(
        assumed(changes.with_settings(catalogue.load("table1", builtin=True), {"settings.sampler.steps": 2}))
    )
    assert "with 2 steps" in said and "10 steps" not in said and "in 32 pictures a cell" in said
    flags = {"seeds": (7, 9), "settings.size": (64, 32), "settings.noise": "torch", "negative_prompt": "blur"}
    said = " ".join(assumed(changes.with_settings(catalogue.load("figure3"), flags)))
    assert "30 steps, 64 × 32 pixels" in said and "no negative prompt: “blur”" in said
    assert "no seeds: 7, 9; the noise is torch's" in said and "the LoRA's scale is 1." in said
    louder = changes.with_loras(catalogue.load("figure2", builtin=True), ["builtin:character:0.8"])
    assert "The LoRA's scale is 0.8: at 1" in assumed(louder)[0]
    assert "each cell's own steps" in " ".join(assumed(catalogue.load("frontier_equal")))
    sd3 = [text for text in assumed(changes.only(catalogue.load("table2"), ["SDXL *"])) if "SD3" in text]
    assert not sd3 and "SD3, which is no ε model" in " ".join(assumed(catalogue.load("table2")))
    mine = dataclasses.replace(catalogue.load("table1"), assumptions=("{a|b} {", "{seeds}"))
    assert assumed(mine) == ("{a|b} {", "0, 1, 2, …")  # others' braces stay


# ---- plans before anything is there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_dry_run_needs_no_download(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The FLOPs of the full networks are traced in test_full_size_plans."""
    monkeypatch.setattr(estimate, "_denoiser_flop", lambda config, latent, tokens: 1e12)
    monkeypatch.setattr(estimate, "_decoder_flop", lambda config, latent: 0.0)
    result = autolora("reproduce", name, "--dry-run", "--batch-size", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    pictures, network = SIZES[name]
    twice = {"frontier_equal": 2 * 128}.get(name, 0)  # at the job's own scale
    network -= 120 * twice
    words = " ".join(result.stdout.split())
    assert f"pictures {pictures:,}{f', {twice} of them wanted twice' if twice else ''} finished 0" in words
    assert f"programs {PROGRAMS[name]} to compile at most" in words
    assert f"evaluations {network:,} of the denoiser" in words
    assert f"arithmetic {network * 1e12:.3g} FLOP" in words
    assert f"not looked at {SDXL}: not on this machine: planned as the published model" in words
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_models_that_are_there(small_folder: Path, tmp_path: Path):
    """Two SDXL of a few thousand weights, with FLOPs as they are traced."""
    lora = small_folder / "small:0.5.safetensors"
    flags = ["--model", small_folder, "--lora", lora, "--seeds", 4, "--at", "0.4,1", "--set", "settings.size=64x64"]
    result = autolora("reproduce", "table1", *flags, "--dry-run", "--batch-size", 1, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    table1 = changes.with_loras(changes.with_models(catalogue.load("table1"), [str(small_folder)]), [str(lora)])
    table1 = changes.with_settings(changes.only(table1, [], [0.4, 1.0]), {"seeds": "0-3", "settings.size": "64x64"})
    plan = plan_of(table1)
    # 8 devices draw 8 rows at once, of which 4 pictures of a scale fill half: both scales share a batch.
    flop = 8 * sum(estimate.picture_flop(recipe) for recipe in plan.recipes[::2])
    words = " ".join(result.stdout.split())
    assert "pictures 32 finished 0 to draw 32 in 4 batches of 8 (0 rows of padding) programs 2 to compile" in words
    assert f"evaluations {2 * 4 * 30 * 9:,} of the denoiser arithmetic {flop:.3g} FLOP" in words
    assert "not looked at" not in words


def test_a_lora_that_is_missing_is_said_with_where_it_is_from(small_folder: Path, tmp_path: Path):
    result = autolora("reproduce", "figure1", "--model", small_folder, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "princess_xl_v2.safetensors (All Disney Princess" in result.stderr, result.output


@pytest.mark.slow
def test_full_size_plans():
    """FLOPs of what the networks are, from their tables of layers: 2.6 and 2 billion weights at 1024²."""
    for name, least, most in (("table1", 1.0e19, 1.2e19), ("table2", 1.0e18, 1.3e18)):
        plan = plan_of(catalogue.load(name))
        flop = sum(estimate.picture_flop(recipe) for recipe in plan.recipes) * sum(map(len, plan.seeds))
        assert least < flop < most, name


def test_stand_ins_are_for_what_is_not_there_alone():
    sources = Standins()
    assert sources.lora("builtin:character").name == "character"
    assert sources.model(ModelConfig("builtin", dtype="float32")).name == "builtin" and not sources.unseen
    medium = sources.model(ModelConfig(SD3, text_encoder_3=None))
    assert medium.canvas.cells == 128 and "text_encoder_3" not in medium.networks
    assert sources.lora("nerijs/pixel-art-medium-128-v0.1").name == "pixel-art-medium-128-v0.1"
    assert {*sources.unseen} == {SD3, "nerijs/pixel-art-medium-128-v0.1"}
    for name, published in PUBLISHED.items():
        assert not published.family.problems(published.networks, name)


def test_a_model_that_is_in_the_hubs_cache_is_no_stand_in(monkeypatch: pytest.MonkeyPatch):
    """Then keys are true ones, and a plan knows what is drawn."""
    from autolora_jax.demo import builtin

    monkeypatch.setattr("autolora_jax.batch.sources.cached_copy", lambda repo: builtin("builtin"))
    sources = Standins()
    found = sources.model(ModelConfig(SDXL))
    assert found.sha256 == sources.model(ModelConfig("builtin")).sha256 and not sources.unseen
    assert found.config == ModelConfig(SDXL)


# ---- changes ---------------------------------------------------------------------------------------------------------


def test_models_and_loras_come_from_elsewhere():
    table2 = changes.with_models(catalogue.load("table2"), [f"{SDXL}=a", f"{SD3}=b"])
    pixel = "pixel-art-xl-v1.1.safetensors"
    table2 = changes.with_loras(table2, [f"{pixel}=one.safetensors:0.5", f"{pixel}=two.safetensors"])
    settings = dict(zip(table2.methods, table2.whole_job.all_settings(), strict=True))
    sdxl, sd3 = settings["SDXL CFG"], settings["SD3 AutoLoRA"]
    assert (sdxl.model.source, sd3.model.source, sdxl.model.variant, sd3.model.variant) == ("a", "b", None, None)
    assert sdxl.loras == (Lora("one.safetensors", 0.5), Lora("two.safetensors"))
    assert sd3.loras == (Lora("nerijs/pixel-art-medium-128-v0.1"),)
    weak = changes.with_loras(catalogue.load("figure4", builtin=True), ["mine.safetensors"])
    assert weak.job.settings.loras == (Lora("mine.safetensors", 0.5),)  # the experiment's scale


def test_a_part_of_the_cells():
    table1 = changes.only(catalogue.load("table1"), ["*LoRA"], [0.4, 1.0])
    assert [(cell.method, cell.at) for cell in table1.cells] == [
        ("LoRA", 0.4), ("LoRA", 1.0), ("AutoLoRA", 0.4), ("AutoLoRA", 1.0)
    ]  # fmt: skip
    assert table1.pairs == {"AutoLoRA": "LoRA"}
    frontier = changes.only(catalogue.load("frontier"), ["Personalization*"])
    assert len(frontier.sheets) == 2
    assert changes.only(catalogue.load("figure4"), [], [2.0]).methods == ("LoRA + CFG", "AutoLoRA + CFG")


def test_other_settings():
    table1 = changes.with_settings(catalogue.load("table1"), {"settings.sampler.steps": "7", "seeds": "0-3"})
    assert table1.whole_job.all_settings()[5].num_inference_steps == 7 and len(table1.job.seeds) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tabel1"], "did you mean table1"),
        (["none.py"], "none.py is not a file"),
        (["table1", "--set", "settings.lora_scale=0.5"], "table1 compares that; --only and --at"),
        (["table1", "--set", "settings.guidance.w=3"], "table1 compares that"),
        (["table1", "--set", "prompt_file=a.txt"], "write a file of your own"),
        (["table1", "--set", "settings.sampler.stps=3"], "did you mean settings.num_inference_steps"),
        (["table1", "--only", "Auto"], "fits none of its methods: LoRA, AutoLoRA"),
        (["table1", "--at", "0.25"], "there are 0.2, 0.3"),
        (["table1", "--at", "a"], "numbers such as"),
        (["table1", "--seeds", "x"], "seeds such as 0-15"),
        (["table1", "--format", "latent"], "png, webp, jpeg"),
        (["table2", "--model", "here"], "has 2 of them; say which"),
        (["table2", "--lora", "here"], "has 2 of them; say which"),
    ],
)
def test_what_can_not_be_meant_is_said(arguments: list[str], words: str):
    result = autolora("reproduce", *arguments, "--dry-run")
    assert result.exit_code == 2 and words in " ".join(result.stderr.split()), result.output


def test_the_list():
    for arguments in ([], ["--list"]):
        result = autolora("reproduce", *arguments)
        assert result.exit_code == 0 and all(name in result.stdout for name in catalogue.names())
