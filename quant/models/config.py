"""The shape of a Llama-family model."""

from dataclasses import dataclass, replace

from bitwright.quant import InputError

#: Local names of a block's linears, in order of use, by the input that they share.
SITES: dict[str, tuple[str, ...]] = {
    "attn_in": ("attn.q", "attn.k", "attn.v"),
    "attn_out": ("attn.o",),
    "ffn_in": ("ffn.gate", "ffn.up"),
    "ffn_out": ("ffn.down",),
}
#: The input of each linear.
SITE_OF = {name: site for site, names in SITES.items() for name in names}


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shape of one model; checked when made."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_base: float
    norm_eps: float
    tied_embeddings: bool  #: the output layer is the embedding
    context: int  #: longest sequence the model was made for, in tokens
    rope_divisors: tuple[float, ...] = ()  #: divides each rotary frequency; empty: none
    biased: tuple[str, ...] = ()  #: attention linears with a bias, of "q", "k", "v", "o"
    #: (heads, kv_heads, ffn) of each block where blocks differ; empty: all as above.
    blocks: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        for field in (
            "layers",
            "hidden",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab",
            "context",
        ):
            if getattr(self, field) < 1:
                raise InputError(
                    f"model config: {field} is {getattr(self, field)}, must be positive"
                )
        if self.heads % self.kv_heads:
            raise InputError(
                f"model config: {self.heads} attention heads cannot share {self.kv_heads} "
                "key-value heads evenly"
            )
        if self.head_dim % 2:
            raise InputError(f"model config: head_dim {self.head_dim} is odd; rotary needs pairs")
        if not (self.rope_base > 0 and self.norm_eps >= 0):
            raise InputError(
                f"model config: rope base {self.rope_base} must be positive and norm epsilon "
                f"{self.norm_eps} not negative"
            )
        if self.rope_divisors and len(self.rope_divisors) != self.head_dim // 2:
            raise InputError(
                f"model config: {len(self.rope_divisors)} rotary factors given, "
                f"head_dim {self.head_dim} needs {self.head_dim // 2}"
            )
        if not all(divisor > 0 for divisor in self.rope_divisors):
            raise InputError("model config: rotary factors must be positive")
        if self.blocks and len(self.blocks) != self.layers:
            raise InputError(
                f"model config: sizes of {len(self.blocks)} blocks given, layers is {self.layers}"
            )
        for layer in range(len(self.blocks)):
            try:
                self.of_block(layer)
            except InputError as error:
                raise InputError(f"blocks.{layer}: {error}") from None

    def of_block(self, layer: int) -> "LlamaConfig":
        """The shape of a model whose blocks are all like this one."""
        if not self.blocks:
            return self
        heads, kv_heads, ffn = self.blocks[layer]
        return replace(self, heads=heads, kv_heads=kv_heads, ffn=ffn, blocks=())

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Name and [n, k] of every linear layer in the blocks, in order of use."""
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            block, own = f"blocks.{layer}", self.of_block(layer)
            q, kv = own.heads * own.head_dim, own.kv_heads * own.head_dim
            shapes[f"{block}.attn.q"] = (q, self.hidden)
            shapes[f"{block}.attn.k"] = (kv, self.hidden)
            shapes[f"{block}.attn.v"] = (kv, self.hidden)
            shapes[f"{block}.attn.o"] = (self.hidden, q)
            shapes[f"{block}.ffn.gate"] = (own.ffn, self.hidden)
            shapes[f"{block}.ffn.up"] = (own.ffn, self.hidden)
            shapes[f"{block}.ffn.down"] = (self.hidden, own.ffn)
        return shapes

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model: what a loader has to supply."""
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.hidden)}
        for name, shape in self.linear_shapes().items():
            shapes[name] = shape
            if name.split(".")[-2] == "attn" and name.split(".")[-1] in self.biased:
                shapes[f"{name}.bias"] = shape[:1]
        for layer in range(self.layers):
            shapes[f"blocks.{layer}.attn_norm"] = (self.hidden,)
            shapes[f"blocks.{layer}.ffn_norm"] = (self.hidden,)
        shapes["final_norm"] = (self.hidden,)
        if not self.tied_embeddings:
            shapes["head"] = (self.vocab, self.hidden)
        return shapes
