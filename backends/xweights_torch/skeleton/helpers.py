"""Source code of modules that ``torch.nn`` lacks, included in skeletons that need them."""

from __future__ import annotations

HELPERS = {
    "Slopes": '''\
class Slopes(nn.Module):
    """A slope for each element: where x is negative, x times the slope."""

    def __init__(self, *shape):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(shape))

    def forward(self, x):
        return torch.relu(x) - self.alpha * torch.relu(-x)''',
    "Standard": '''\
class Standard(nn.Module):
    """Subtract a mean and divide by a standard deviation, both set once."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, x):
        return (x - self.mean) / self.variance.sqrt()''',
    "ScaledAttention": '''\
class ScaledAttention(nn.Module):
    """Dot-product attention with one number that scales the scores."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, query, value, key):
        return (self.scale * query @ key.transpose(1, 2)).softmax(-1) @ value''',
    "AdditiveAttention": '''\
class AdditiveAttention(nn.Module):
    """Attention whose scores are a weighted sum of tanh(query + key)."""

    def __init__(self, width):
        super().__init__()
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, query, value, key):
        scores = self.score(torch.tanh(query[:, :, None] + key[:, None])).squeeze(-1)
        return scores.softmax(-1) @ value''',
    "Attention": '''\
class Attention(nn.Module):
    """Attention by linear layers: as many heads as wanted for queries and for keys, of any sizes."""

    def __init__(self, widths, heads, key_heads, key_size, value_size, outputs, bias, causal):
        super().__init__()
        self.heads, self.key_heads, self.causal = heads, key_heads, causal
        self.query = nn.Linear(widths[0], heads * key_size, bias=bias)
        self.key = nn.Linear(widths[1], key_heads * key_size, bias=bias)
        self.value = nn.Linear(widths[2], key_heads * value_size, bias=bias)
        self.attention_output = nn.Linear(heads * value_size, outputs, bias=bias)

    def forward(self, query, key, value):
        q = self.query(query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.key(key).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        v = self.value(value).unflatten(-1, (self.key_heads, -1)).transpose(1, 2)
        grouped = self.heads != self.key_heads
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=grouped)
        return self.attention_output(y.transpose(1, 2).flatten(2))''',
    "ConvLSTM": '''\
class ConvLSTM(nn.Module):
    """An LSTM over images: one convolution of the input, one of the state. Frames are second, then channels."""

    def __init__(self, kind, channels, filters, size, padding, bias, sequences):
        super().__init__()
        self.filters, self.sequences = filters, sequences
        self.input = kind(channels, 4 * filters, size, padding=padding, bias=bias)
        self.state = kind(filters, 4 * filters, size, padding="same", bias=False)

    def forward(self, x):
        h, c, made = None, 0.0, []
        for frame in x.unbind(1):
            z = self.input(frame)
            h = z.new_zeros(z.shape[0], self.filters, *z.shape[2:]) if h is None else h
            i, f, g, o = (z + self.state(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            made.append(h)
        return torch.stack(made, 1) if self.sequences else h''',
}
