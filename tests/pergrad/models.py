"""Models whose per-example gradients are measured, and what they are by definition: one derivative per example, within the whole batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

CLASSES, GROUPS, ROWS = 4, 3, 10
VOCABULARY, TOKENS, WIDTH = 9, 5, 6

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """``by_hooks``: the hooks see everything, nothing is left to another engine. ``vmap``, ``jvp``: torch can transform the model."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], Inputs]
    by_hooks: bool = True
    vmap: bool = True
    jvp: bool = True

    def build(self, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Inputs, Tensor, Tensor]:
        """Model in eval mode, inputs, targets, and groups (the last of which has one example only)."""
        generator = torch.Generator().manual_seed(len(self.name))
        with torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about layouts that its fast paths do not like
            torch.manual_seed(len(self.name))
            model = self.make()
            with torch.no_grad():  # biases and scales off their usual 0 and 1, which hide errors
                for p in model.parameters():
                    p.add_(0.05 * torch.randn_like(p))
        model = model.to(dtype).eval()
        inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in self.inputs(generator))
        rows = len(inputs[0])
        target = torch.randint(CLASSES, (rows,), generator=generator)
        groups = torch.arange(rows) % (GROUPS - 1)
        groups[rows // 2] = GROUPS - 1
        return model, inputs, target, groups


@dataclass(frozen=True)
class Truth:
    """Per-example gradients (m, P), parameter by parameter in ``parts``."""

    names: tuple[str, ...]
    parts: tuple[Tensor, ...]
    losses: Tensor

    @property
    def matrix(self) -> Tensor:
        return torch.cat(self.parts, dim=1)

    @property
    def norms_sq(self) -> Tensor:
        return torch.stack([part.square().sum(dim=1) for part in self.parts], dim=1)

    def sums(self, groups: Tensor, rows: int) -> Tensor:
        return torch.stack([self.matrix[groups == k].sum(dim=0) for k in range(rows)])


def truth_of(model: nn.Module, losses: Callable[[], Tensor]) -> Truth:
    """By the definition, without any code of the library."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    values = losses()
    rows: list[list[Tensor]] = []
    for value in values:
        found = torch.autograd.grad(value, [p for _, p in named], retain_graph=True, allow_unused=True)
        rows.append([_flat(torch.zeros_like(p) if g is None else g) for g, (_, p) in zip(found, named, strict=True)])
    parts = tuple(torch.stack(column).double() for column in zip(*rows, strict=True))
    return Truth(tuple(name for name, _ in named), parts, values.detach().double())


def _flat(g: Tensor) -> Tensor:
    g = (g.to_dense() if g.is_sparse else g).detach()
    return (torch.view_as_real(g) if g.is_complex() else g).reshape(-1)


def truth(model: nn.Module, inputs: Inputs, target: Tensor) -> Truth:
    return truth_of(model, lambda: F.cross_entropy(model(*inputs), target, reduction="none"))


def error(found: Tensor | None, expected: Tensor) -> float:
    """Largest deviation relative to the largest number."""
    assert found is not None
    assert found.shape == expected.shape
    return float((found.double() - expected).abs().max() / expected.abs().max())


# ---- inputs -----------------------------------------------------------------------------------------------------------------------------


def vectors(generator: torch.Generator) -> Inputs:
    return (torch.randn(ROWS, WIDTH, generator=generator),)


def sequences(generator: torch.Generator) -> Inputs:
    return (torch.randn(ROWS, TOKENS, WIDTH, generator=generator),)


def square_sequences(generator: torch.Generator) -> Inputs:
    """As many positions as examples."""
    return (torch.randn(ROWS, ROWS, WIDTH, generator=generator),)


def ragged(generator: torch.Generator) -> Inputs:
    return *sequences(generator), torch.randint(1, TOKENS + 1, (ROWS,), generator=generator)


def images(generator: torch.Generator) -> Inputs:
    return (torch.randn(ROWS, 2, 8, 8, generator=generator),)


def volumes(generator: torch.Generator) -> Inputs:
    return (torch.randn(ROWS, 2, 3, 4, 4, generator=generator),)


def tokens(generator: torch.Generator) -> Inputs:
    return (torch.randint(VOCABULARY, (ROWS, TOKENS), generator=generator),)


def square_tokens(generator: torch.Generator) -> Inputs:
    return (torch.randint(VOCABULARY, (ROWS, ROWS), generator=generator),)


def double_tokens(generator: torch.Generator) -> Inputs:
    return (torch.randint(VOCABULARY, (ROWS, 2 * ROWS), generator=generator),)


def weighted_tokens(generator: torch.Generator) -> Inputs:
    return *tokens(generator), torch.rand(ROWS, TOKENS, generator=generator)


def pairs(generator: torch.Generator) -> Inputs:
    return *vectors(generator), torch.randn(ROWS, WIDTH, generator=generator)


# ---- models -----------------------------------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 7), nn.ReLU(inplace=True), nn.Linear(7, 7, bias=False), nn.Tanh(), nn.Linear(7, CLASSES))


class Cnn(nn.Module):
    """Groups, strides, dilation and all padding modes."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, padding_mode="circular")
        self.second = nn.Conv2d(6, 6, (3, 2), stride=(2, 1), groups=3, padding=(1, 2), dilation=(1, 2))
        self.third = nn.Conv2d(6, 6, 3, padding="same", padding_mode="reflect", bias=False)
        self.fourth = nn.Conv2d(6, 4, 2, padding="valid")
        self.fifth = nn.Conv2d(4, 4, 1, stride=2)
        self.sixth = nn.Conv2d(4, 4, 2, padding="same", padding_mode="replicate")
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).tanh()).tanh()
        x = self.sixth(self.fifth(self.fourth(self.third(x).tanh()).tanh()).tanh())
        return self.head(x.mean((2, 3)))


class Residual(nn.Module):
    """Batch normalization with statistics of its own, in-place ReLU, a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(2))
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, CLASSES)
        for norm in self.norms:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norms[0](self.stem(x)))
        y = self.relu(self.norms[1](self.convolutions[0](x)))
        y = self.norms[2](self.convolutions[1](y))
        return self.head(self.relu(y + x).flatten(2).mean(2))


class Bag(nn.Module):
    def __init__(self, mode: str, *, padding_idx: int | None = None, offsets: bool = False) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(VOCABULARY, WIDTH, mode=mode, padding_idx=padding_idx)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.offsets = offsets

    def forward(self, tokens: Tensor, weights: Tensor | None = None) -> Tensor:
        if self.offsets:
            return self.head(self.bag(tokens.flatten(), torch.arange(0, tokens.numel(), tokens.shape[1], device=tokens.device)))
        return self.head(self.bag(tokens, per_sample_weights=weights))


class Recurrent(nn.Module):
    """Of batch-first sequences, whatever the layer takes; with ``lengths`` they are packed."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        directions = 2 if layer.bidirectional else 1
        width = layer.proj_size or layer.hidden_size
        self.head = nn.Linear((directions + 1) * width, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        first = self.layer.batch_first
        x = x if first else x.transpose(0, 1)
        if lengths is None:
            out, state = self.layer(x)
        else:
            out, state = self.layer(pack_padded_sequence(x, lengths.cpu(), batch_first=first, enforce_sorted=False))
            out, _ = pad_packed_sequence(out, batch_first=first)
        state = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([out.sum(1 if first else 0), state[-1]], dim=1))


class Attentive(nn.Module):
    """``nn.TransformerEncoder`` on tokens, with positions from a table and padding masked."""

    def __init__(self, *, batch_first: bool, norm_first: bool, positions: int = TOKENS) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, 8, padding_idx=0), nn.Embedding(positions, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, CLASSES)
        self.batch_first = batch_first

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(places)
        mask = (tokens == 0) & (places > 0)
        x = x if self.batch_first else x.transpose(0, 1)
        return self.head(self.encoder(x, src_key_padding_mask=mask).mean(1 if self.batch_first else 0))


class Normalized(nn.Module):
    """Group, layer, RMS and instance normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(2, 4, 3)
        self.group, self.instance = nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True)
        self.layer, self.rms = nn.LayerNorm((6, 6)), nn.RMSNorm(6)
        self.plain = nn.LayerNorm(4, bias=False)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.group(self.convolution(x)).tanh())
        return self.head(self.plain(self.rms(self.layer(x).tanh()).tanh().mean((2, 3))))


class Tied(nn.Module):
    """The table of tokens is the output layer, too: as a module, or where no hook sees it."""

    def __init__(self, *, functional: bool) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.out = None if functional else nn.Linear(WIDTH, VOCABULARY, bias=False)
        if self.out is not None:
            self.out.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.norm(self.mix(self.table(tokens)).tanh().mean(1))
        return F.linear(h, self.table.weight) if self.out is None else self.out(h)


class Language(nn.Module):
    """A small model of ``transformers``, freshly initialised; its position ids have the shape (1, T)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        import transformers

        if kind == "bert":
            shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
            config: Any = transformers.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=12, num_labels=CLASSES, **shape)
            self.model: Any = transformers.BertForSequenceClassification(config)
        else:
            config = transformers.GPT2Config(
                vocab_size=VOCABULARY, n_positions=12, n_embd=8, n_layer=2, n_head=2, num_labels=CLASSES, bos_token_id=0, eos_token_id=0
            )
            config.pad_token_id = 0
            self.model = transformers.GPT2ForSequenceClassification(config)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens).logits
        return logits


class Crossed(nn.Module):
    """Attention of learned queries to tokens, whose weights count as well."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 8)
        self.query = nn.Parameter(torch.randn(1, 3, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens)
        keys = h[..., : self.attention.kdim]
        out, weights = self.attention(self.query.expand(len(tokens), -1, -1), keys, keys)
        return self.head(out.mean(1)) + weights.mean((1, 2))[:, None] * torch.arange(CLASSES, device=tokens.device)


class Patches(nn.Module):
    """Raw parameters: a token of the class and a table of positions, as in vision transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(2, WIDTH, 4, stride=4)
        self.token, self.table = nn.Parameter(torch.randn(1, 1, WIDTH)), nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cut(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.table
        return self.head((x + self.mix(x.mean(1, keepdim=True)).tanh())[:, 0])


class Twice(nn.Module):
    """One layer called with vectors, then with sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).tanh().mean(1)
        return self.head(self.layer(h).tanh())


class Idle(nn.Module):
    """A layer that is never used, one whose result is not, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.ignored = nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)
        self.frozen = nn.Linear(WIDTH, WIDTH).requires_grad_(False)
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.ignored(x)
        return self.head(self.frozen(self.layer(x)).tanh())


class Phases(nn.Module):
    """Complex parameters: in a layer, and raw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH, dtype=torch.complex64)
        self.phase = nn.Parameter(torch.randn(WIDTH, dtype=torch.complex64))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.layer(x.to(self.phase.dtype)) * self.phase).abs())

    def to(self, dtype: Any) -> Phases:  # type: ignore[override]
        wide = dtype == torch.float64
        self.head.to(dtype)
        self.layer.to(torch.complex128 if wide else torch.complex64)
        self.phase.data = self.phase.data.to(torch.complex128 if wide else torch.complex64)
        return self


class Checkpointed(nn.Module):
    """A part is computed once more in the backward pass instead of being kept."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.before, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.part = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.part, self.before(x), use_reentrant=self.reentrant))


class Frames(nn.Module):
    """Examples of several images each, which pass as so many single ones."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3)
        self.linear, self.head = nn.Linear(3, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.norm(self.convolution(x.view(-1, 1, 2, 3))).mean((2, 3))
        return self.head(self.linear(frames).tanh().view(len(x), -1, 3).sum(1))


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).tanh()).squeeze()


class Routed(nn.Module):
    """Every example goes to one of two experts, which therefore see a part of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2)), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for k, expert in enumerate(self.experts):
            rows = ((x[:, 0] > 0) == bool(k)).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(x[rows]))
        return self.head(out.tanh())


class Unpadded(nn.Module):
    """Only real positions pass through the layer, in one long row."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        real = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        h = torch.zeros_like(x).index_put((real,), self.layer(x[real]).tanh())
        return self.head(h.sum(1))


def lengths_in_step(generator: torch.Generator) -> Inputs:
    """As many positions in all as if every example had 3, so that the row looks as if it could be cut into examples."""
    return *sequences(generator), torch.tensor([3, 5, 1, 3, 4, 2, 3, 3, 2, 4])


class Sorted(nn.Module):
    """The longest sequences first, as older code does before it packs them; put back in order at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort()
        return self.head(self.layer(x[order]).tanh())[order.argsort()]


class SometimesTied(nn.Module):
    """A weight is used a second time where no hook sees it, for few examples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x).tanh()
        chosen = (x[:, :1] > 5).to(x.dtype)
        return self.head(h + chosen * F.linear(h, self.layer.weight))


def one_chosen(generator: torch.Generator) -> Inputs:
    (x,) = vectors(generator)
    x[3, 0] = 6.0
    return (x,)


class Hooked(nn.Module):
    """A hook of the user's changes what a layer returns."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.layer.register_forward_hook(lambda layer, args, output: 2 * output)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).tanh())


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.randn(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by.detach() + self.by


class Changed(nn.Module):
    """Inputs of layers are changed in place afterwards, where backward does not need them but the hooks do."""

    def __init__(self) -> None:
        super().__init__()
        self.bias_only, self.shift, self.head = nn.Linear(WIDTH, WIDTH), Shift(), nn.Linear(WIDTH, CLASSES)
        self.bias_only.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = x + 1
        y = self.bias_only(h)
        h.mul_(0.5)
        z = self.shift(h)
        h.relu_()
        return self.head((y + z).tanh() + h)


class Both(nn.Module):
    """Two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.pair = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 4), nn.Bilinear(4, 4, CLASSES)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.pair(self.left(a).tanh(), self.right(b).tanh())


class Steps(nn.Module):
    """Position by position, all examples one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.layer(x.transpose(0, 1).reshape(-1, WIDTH))
        return self.head(rows.view(x.shape[1], len(x), WIDTH).tanh().sum(0))


class Without(nn.Module):
    """A part without gradients, and a layer called there first."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            mean = self.body(torch.ones(7, WIDTH, dtype=x.dtype, device=x.device)).mean(0)
        return self.head(self.body(x + mean).tanh())


class Noisy(nn.Module):
    """Dropout within the layer that owns a raw parameter: run once more, it would drop something else."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.head = nn.Parameter(torch.randn(WIDTH)), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(x * self.shift, 0.5, self.training))


def _weight_norm(layer: nn.Module) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(layer)


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    layer = nn.Linear(WIDTH, WIDTH)
    prune.random_unstructured(layer, "weight", 0.4)
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(WIDTH, CLASSES))


def _patched() -> nn.Module:
    """A layer whose forward somebody replaced."""
    model = mlp()
    layer = model[0]
    layer.forward = lambda x: F.linear(x, layer.weight, layer.bias).sin()
    return model


LSTM, GRU, RNN = nn.LSTM, nn.GRU, nn.RNN

ARCHITECTURES = (
    Case("mlp", mlp, vectors),
    Case("cnn", Cnn, images),
    Case("residual network", Residual, images),
    Case("bag of tokens, mean", lambda: Bag("mean", padding_idx=0), tokens, jvp=False),
    Case("lstm", lambda: Recurrent(LSTM(WIDTH, 5, 2, bidirectional=True, batch_first=True)), sequences, vmap=False),
    Case("gru", lambda: Recurrent(GRU(WIDTH, 5, 2, bidirectional=True)), sequences, vmap=False),
    Case("transformer encoder", lambda: Attentive(batch_first=True, norm_first=False), tokens),
    Case("transformer encoder, sequences first", lambda: Attentive(batch_first=False, norm_first=True), tokens),
    Case("normalizations", Normalized, images),
    Case("tied weights", lambda: Tied(functional=False), tokens),
    Case("bert", lambda: Language("bert"), tokens),
    Case("gpt-2", lambda: Language("gpt2"), tokens, vmap=False),
)

LAYERS = (
    Case("bag of tokens, sum", lambda: Bag("sum"), tokens, jvp=False),
    Case("bag of tokens, weighted", lambda: Bag("sum"), weighted_tokens, jvp=False),
    Case("bag of tokens, offsets", lambda: Bag("sum", offsets=True), tokens, by_hooks=False, jvp=False),
    Case("bag of tokens, max", lambda: Bag("max"), tokens, jvp=False),
    Case("lstm, projected", lambda: Recurrent(LSTM(WIDTH, 5, proj_size=3)), sequences, vmap=False),
    Case("lstm, packed", lambda: Recurrent(LSTM(WIDTH, 5, 2, bidirectional=True, batch_first=True)), ragged, vmap=False, jvp=False),
    Case("gru, packed", lambda: Recurrent(GRU(WIDTH, 5)), ragged, vmap=False, jvp=False),
    Case("rnn, relu, without bias", lambda: Recurrent(RNN(WIDTH, 5, nonlinearity="relu", bias=False)), square_sequences, vmap=False),
    Case("tied where no hook sees it", lambda: Tied(functional=True), tokens, by_hooks=False),
    Case("attention across", lambda: Crossed(), tokens),
    Case("attention with sizes of its own", lambda: Crossed(kdim=4, vdim=4, add_zero_attn=True), tokens),
    Case("attention with bias_k", lambda: Crossed(add_bias_kv=True), tokens),
    Case("as many positions as examples", lambda: Attentive(batch_first=True, norm_first=True, positions=ROWS), square_tokens),
    Case("and sequences first", lambda: Attentive(batch_first=False, norm_first=False, positions=ROWS), square_tokens),
    Case("twice as many positions", lambda: Attentive(batch_first=True, norm_first=True, positions=2 * ROWS), double_tokens),
    Case("gpt-2, as many positions", lambda: Language("gpt2"), square_tokens, vmap=False),
    Case("class token and positions", Patches, images),
    Case("layer called twice", Twice, sequences),
    Case("unused and frozen", Idle, vectors),
    Case("complex", Phases, vectors),
    Case("checkpoint", lambda: Checkpointed(reentrant=False), vectors, vmap=False),
    Case("images of a sequence", Frames, sequences),
    Case("squeezed output", Squeezed, vectors, vmap=False),
    Case("routed", Routed, vectors, by_hooks=False, vmap=False),
    Case("unpadded", Unpadded, ragged, by_hooks=False, vmap=False),
    Case("unpadded, in step", Unpadded, lengths_in_step, by_hooks=False, vmap=False),
    Case("sorted", Sorted, vectors, by_hooks=False),
    Case("tied for one example", SometimesTied, one_chosen, by_hooks=False),
    Case("hook of the user", Hooked, vectors),
    Case("input changed in place", Changed, vectors),
    Case("two inputs, bilinear", Both, pairs),
    Case("position by position", Steps, sequences, by_hooks=False),
    Case("part without gradients", Without, vectors, jvp=False),
    Case(
        "convolution 1d",
        lambda: nn.Sequential(nn.Conv1d(TOKENS, 4, 3, padding=2, dilation=2), nn.Flatten(), nn.Linear(24, CLASSES)),
        sequences,
    ),
    Case("convolution 3d", lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Flatten(), nn.Linear(54, CLASSES)), volumes),
    Case(
        "transposed convolution",
        lambda: nn.Sequential(nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), nn.Flatten(), nn.Linear(972, CLASSES)),
        images,
    ),
    Case("prelu", lambda: nn.Sequential(nn.Linear(WIDTH, 5), nn.PReLU(5), nn.Linear(5, 5), nn.PReLU(), nn.Linear(5, CLASSES)), vectors),
    Case(
        "weight norm, parametrized",
        lambda: nn.Sequential(_weight_norm(nn.Linear(WIDTH, 5)), nn.Tanh(), nn.Linear(5, CLASSES)),
        vectors,
        jvp=False,
    ),
    Case("pruned", _pruned, vectors),
    Case("forward replaced", _patched, vectors),
    Case(
        "sparse embedding",
        lambda: nn.Sequential(nn.Embedding(VOCABULARY, WIDTH, sparse=True), nn.Flatten(), nn.Linear(TOKENS * WIDTH, CLASSES)),
        tokens,
        vmap=False,
    ),
)
