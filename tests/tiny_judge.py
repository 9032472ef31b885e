"""A vision-language model with random weights that tells shades of grey, to be served by transformers."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

ANSWERS = [f'{{"score": {shade}, "reason": ["shade {shade}"]}}' for shade in range(6)]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
LOGIT = 10.0


def save_tiny_judge(folder: Path, question: str) -> None:
    """Saves a LLaVA that answers a question with the shade (0 … 5) of the picture.

    All is random but the output layer, which is solved for: at the end of the prompt its states are those of six
    answers, after an answer they are those of the end.
    """
    torch.manual_seed(0)
    processor = _processor()
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.1,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image)
    model = LlavaForConditionalGeneration(config).eval()
    images = [Image.fromarray(np.full((12, 12, 3), 51 * shade, np.uint8)) for shade in range(6)]
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}] for _ in images]
    prompts = processor.apply_chat_template(chats, add_generation_prompt=True)
    inputs = processor(images=images, text=[p + a for p, a in zip(prompts, ANSWERS, strict=True)], return_tensors="pt")
    with torch.no_grad():
        # Else the brightness of a plain picture would be lost in the norm that follows.
        model.model.vision_tower.embeddings.position_embedding.weight.normal_()
        states = model.model(**inputs).last_hidden_state[:, -2:].double()  # [shade, (before, after) the answer, width]
        said = tokenizer.convert_tokens_to_ids([*ANSWERS, tokenizer.eos_token])
        wanted = torch.full((6, 2, 7), -LOGIT, dtype=torch.float64)
        wanted[range(6), 0, range(6)] = wanted[:, 1, 6] = LOGIT
        model.lm_head.weight.zero_()
        model.lm_head.weight[said] = torch.linalg.lstsq(
            states.reshape(12, -1), wanted.reshape(12, 7)
        ).solution.T.float()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _processor() -> LlavaProcessor:
    """Bytes are tokens, and so is each answer."""
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<pad>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters, bos_token="<s>", eos_token="</s>", pad_token="<pad>", extra_special_tokens=["<image>"]
    )
    tokenizer.add_tokens(ANSWERS)
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )
