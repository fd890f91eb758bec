"""The two spellings of the model's 430 tensors: that of the released checkpoint (ours) and that of diffusers."""

__all__ = ["linears", "to_diffusers", "to_original"]

# Pairs of (original, diffusers). Parts match between dots only: `blocks` is not `layerwise_blocks`, and the two
# things called `gate` (of the attention and of the MLP) keep their owners.
STEMS = (
    ("first", "img_in"),
    ("tmlp.0", "time_embed.linear_1"),
    ("tmlp.2", "time_embed.linear_2"),
    ("tproj.1", "time_mod_proj"),
    ("txtmlp.0.scale", "txt_in.norm.weight"),
    ("txtmlp.1", "txt_in.linear_1"),
    ("txtmlp.3", "txt_in.linear_2"),
    ("txtfusion", "text_fusion"),
    ("blocks", "transformer_blocks"),
    ("last.linear", "final_layer.linear"),
    ("last.norm.scale", "final_layer.norm.weight"),
    ("last.modulation.lin", "final_layer.scale_shift_table"),
)
PARTS = (
    ("mod.lin", "scale_shift_table"),
    ("prenorm.scale", "norm1.weight"),
    ("postnorm.scale", "norm2.weight"),
    ("attn.wq", "attn.to_q"),
    ("attn.wk", "attn.to_k"),
    ("attn.wv", "attn.to_v"),
    ("attn.gate", "attn.to_gate"),
    ("attn.wo", "attn.to_out.0"),
    ("attn.qknorm.qnorm.scale", "attn.norm_q.weight"),
    ("attn.qknorm.knorm.scale", "attn.norm_k.weight"),
    ("mlp.gate", "ff.gate"),
    ("mlp.up", "ff.up"),
    ("mlp.down", "ff.down"),
)
BODY = ("attn.wq", "attn.wk", "attn.wv", "attn.gate", "attn.wo", "mlp.gate", "mlp.up", "mlp.down")


def to_diffusers(name: str) -> str:
    """Original name of a tensor or module -> its diffusers name; names of neither spelling stay as they are."""
    return _rename(name, STEMS, PARTS)


def to_original(name: str) -> str:
    """Diffusers name of a tensor or module -> its original name; names of neither spelling stay as they are."""
    return _rename(name, [(b, a) for a, b in STEMS], [(b, a) for a, b in PARTS])


def linears(layers: int) -> list[str]:
    """Original names of every linear layer of a model with that many blocks (264 for the released 28)."""
    stacks = [f"txtfusion.{kind}_blocks.{i}" for kind in ("layerwise", "refiner") for i in range(2)]
    stacks += [f"blocks.{i}" for i in range(layers)]
    single = ["first", "tmlp.0", "tmlp.2", "tproj.1", "txtfusion.projector", "txtmlp.1", "txtmlp.3", "last.linear"]
    return single + [f"{stack}.{part}" for stack in stacks for part in BODY]


def _rename(name: str, stems, parts) -> str:
    for old, new in stems:
        if name == old or name.startswith(f"{old}."):
            name = new + name[len(old) :]
            break
    else:
        return name
    for old, new in parts:
        if f".{old}." in f"{name}.":
            return f"{name}.".replace(f".{old}.", f".{new}.")[:-1]
    return name
