"""The comparison of arXiv 2410.03941's Table 1 as one job: LoRA scales 0.2 to 1.3, CFG and AutoLoRA, 512 seeds.

autolora batch configs/sdxl_batch.py --out anna

12,288 pictures at 1024², 1,105,920 evaluations of the denoiser in two programs, CFG's and AutoLoRA's.
`--dry-run --calibrate` says how long that takes on the machine at hand. The LoRA is civitai's 212532.
"""

from autolora_jax import CFG, AutoLoRA
from autolora_jax.batch import Job, Settings
from autolora_jax.settings import Lora, ModelConfig


def get_config() -> Job:
    return Job(
        prompts=("Anna",),
        seeds="0-511",
        settings=Settings(
            model=ModelConfig("stabilityai/stable-diffusion-xl-base-1.0", variant="fp16"),
            loras=(Lora("princess_xl_v2.safetensors"),),
        ),
        grid={
            "lora_scale": [i / 10 for i in range(2, 14)],
            "guidance": [CFG(5.0), AutoLoRA(gamma=1.5, w1=5.0, w2=5.0)],
        },
    )
