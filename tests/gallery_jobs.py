"""A job whose pictures are shown, by files (test_gallery) and in a browser (test_gallery_page)."""

from pathlib import Path
from typing import Any

from autolora_jax.batch import Job, Settings
from autolora_jax.batch.manifest import COLUMNS
from autolora_jax.settings import Lora
from tests.batch_jobs import SIDE, draw_all
from tests.programs import autolora

HOSTILE = '</script><img src=x onerror="hacked=1"><script>hacked=1</script>\'; touch /tmp/x \u2028`$(x)` \\ 猫'
SEED = 2**60 + 1  # not exact as a number of JavaScript's
JOB = Job(
    prompts=("a cat", HOSTILE, "a dog"),
    seeds=(0, 1, SEED),
    settings=Settings(loras=(Lora("a", 0.5),), num_inference_steps=2, size=(SIDE, SIDE)),
    grid={"lora_scale": [0.5, 1.0], "guidance.gamma": [1.2, 1.7]},
)
PICTURES = 3 * 3 * 4


def drawn_at(folder: Path) -> Path:
    """The job's folder with its page, thumbnails and sheets."""
    out = folder / "a job's #1 100%"
    draw_all(JOB, out)
    result = autolora("gallery", out, "--thumbnails", "16", "--sheets")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{PICTURES} pictures in {out}/index.html\n"
    return out


def rows_of(count: int, prompts: int) -> list[dict[str, Any]]:
    """Rows of a manifest without pictures: prompts × seeds × two settings."""
    rows = []
    for i in range(count):
        key = f"{i:020x}"
        told = {"key": key, "status": "ok", "file": f"images/{key[:2]}/{key}.png", "prompt": f"prompt {i % prompts}"}
        told |= {"seed": i // prompts // 2, "gamma": (1.2, 1.7)[i // prompts % 2], "width": SIDE, "height": SIDE}
        rows.append({name: told.get(name) for name in COLUMNS})
    return rows
