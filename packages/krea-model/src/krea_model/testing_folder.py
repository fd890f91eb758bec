"""A tiny pipeline folder in the layout of the released model: transformer, Qwen3-VL, tokenizer, autoencoder."""

from collections.abc import Sequence
from pathlib import Path

import torch

from krea_model.configs import tiny
from krea_model.export import save_pipeline
from krea_model.testing import tiny_model
from krea_model.text import PREFIX, SUFFIX

try:
    from diffusers.models.autoencoders.autoencoder_kl_qwenimage import AutoencoderKLQwenImage
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLModel
except ImportError as error:
    raise ImportError('a folder of the released layout needs diffusers; install "krea-model[text,vae]"') from error

__all__ = ["tiny_autoencoder", "tiny_folder", "tiny_text_encoder", "tiny_tokenizer"]

TAPS = (0, 2, 5)
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
WORDS = ("a red cat in the snow, watercolour", "the sea at night", "a fox and a rocket")


def tiny_folder(path: str | Path, *, seed: int = 0, distilled: bool = False) -> Path:
    """Write a pipeline folder of random weights, under 3 MB, which diffusers and `krea_model.load` read alike.

    Sides of its pictures are multiples of 8. distilled: marked as the released Turbo is; else it is taken for Raw.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, vae = tiny_text_encoder(), tiny_autoencoder()
    return save_pipeline(
        path,
        tiny_model(seed, tiny()),
        vae=vae,
        text_encoder=encoder,
        tokenizer=tiny_tokenizer(),
        taps=TAPS,
        is_distilled=distilled,
    )


def tiny_text_encoder() -> Qwen3VLModel:
    """Qwen3-VL of six layers and width 32, with random weights of torch's global seed."""
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 700,
        "initializer_range": 0.15,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision | {"deepstack_visual_indexes": [0]},
        image_token_id=690,
        vision_start_token_id=691,
        vision_end_token_id=692,
        video_token_id=693,
    )
    return Qwen3VLModel(config).eval()


def tiny_autoencoder() -> AutoencoderKLQwenImage:
    """Qwen-Image's autoencoder of 4 channels, 4 pixels to a latent, with random weights of torch's global seed."""
    return AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    ).eval()


def tiny_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's way of splitting text and its special tokens, trained on the template and `words`."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator([PREFIX, SUFFIX, *words] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=found, pad_token="<|endoftext|>")
