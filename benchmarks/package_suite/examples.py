"""Programs of Pyro's examples and of papers."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, softplus


class TopicModel(PyroModule):
    """Latent Dirichlet allocation with enumerated topics of words and an amortized guide.

    Blei, Ng, Jordan (2003). https://www.jmlr.org/papers/v3/blei03a.html
    """

    def __init__(self, topics: int, words: int, documents: int, hidden: int = 32) -> None:
        super().__init__()
        self.topics, self.words, self.documents = topics, words, documents
        self.encoder = nn.Sequential(
            nn.Linear(words, hidden), nn.Sigmoid(), nn.Linear(hidden, topics), nn.Softmax(-1)
        )

    def model(self, data: Tensor, batch: int) -> None:
        """`data` (words per document, documents) holds numbers of words."""
        with pyro.plate("topics", self.topics):
            weights = pyro.sample("weights", dist.Gamma(1.0 / self.topics, 1.0))
            topic_words = pyro.sample(
                "topic_words", dist.Dirichlet(data.new_ones(self.words) * 1.0)
            )
        with pyro.plate("documents", self.documents, batch) as rows:
            part = data[:, rows]
            shares = pyro.sample("shares", dist.Dirichlet(weights))
            with pyro.plate("words", len(data)):
                topic = pyro.sample(
                    "topic", dist.Categorical(shares), infer={"enumerate": "parallel"}
                )
                pyro.sample("word", dist.Categorical(topic_words[topic]), obs=part)

    def guide(self, data: Tensor, batch: int) -> None:
        """Gamma weights, point estimates of the rest, those of documents by a network."""
        pyro.module("encoder", self.encoder)
        rate = pyro.param("rate", torch.ones(self.topics), constraint=constraints.positive)
        words = pyro.param(
            "word_shares",
            lambda: torch.rand(self.topics, self.words) + 0.5,
            constraint=constraints.positive,
        )
        with pyro.plate("topics", self.topics):
            pyro.sample("weights", dist.Gamma(rate, 1.0))
            pyro.sample("topic_words", dist.Delta(words / words.sum(-1, True), event_dim=1))
        with pyro.plate("documents", self.documents, batch) as rows:
            part = data[:, rows]
            counts = torch.zeros(self.words, part.shape[1]).scatter_add(
                0, part, torch.ones(part.shape)
            )
            pyro.sample("shares", dist.Delta(self.encoder(counts.t()), event_dim=1))


class SemiSupervised(PyroModule):
    """Semi-supervised autoencoder M2: a class, enumerated where it is not observed.

    Kingma, Rezende, Mohamed, Welling (2014). https://arxiv.org/abs/1406.5298
    """

    def __init__(self, pixels: int, classes: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        self.classifier = nn.Sequential(
            nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, classes)
        )
        self.encoder = nn.Sequential(
            nn.Linear(pixels + classes, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent + classes, hidden), nn.Softplus(), nn.Linear(hidden, pixels)
        )

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """`y` holds one-hot codes."""
        pyro.module("m2", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.latent), 1.0).to_event(1))
            prior = x.new_ones(len(x), self.classes) / self.classes
            label: Any = pyro.sample("y", dist.OneHotCategorical(prior), obs=y)
            shape = torch.broadcast_shapes(z.shape[:-1], label.shape[:-1])
            both = [t.expand(*shape, t.shape[-1]) for t in (z, label)]
            logits = self.decoder(torch.cat(both, -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(y | x) q(z | x, y)."""
        with pyro.plate("data", len(x)):
            label: Any = y
            if y is None:
                label = pyro.sample("y", dist.OneHotCategorical(logits=self.classifier(x)))
            pixels = x.expand(*label.shape[:-1], x.shape[-1])
            loc, scale = self.encoder(torch.cat([pixels, label], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, softplus(scale) + 1e-3).to_event(1))


class AnnotatedCells(PyroModule):
    """Counts of cells with a size factor, two levels of latents and a class: scANVI.

    Xu, Lopez, Mehlman, Regier, Jordan, Yosef (2021). https://doi.org/10.15252/msb.20209620
    """

    def __init__(self, genes: int, classes: int, latent: int, hidden: int) -> None:
        super().__init__()
        self.classes, self.latent = classes, latent
        self.z2 = _batch_normal(latent + classes, hidden, 2 * latent)
        self.x = _batch_normal(latent, hidden, 2 * genes)
        self.z1_size = _batch_normal(genes, hidden, 2 * latent + 2)
        self.z2_z1 = _batch_normal(latent + classes, hidden, 2 * latent)
        self.classifier = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """`x` (cells, genes) are counts, `y` one-hot codes."""
        pyro.module("cells", self)
        dispersion = pyro.param(
            "dispersion", x.new_ones(x.shape[1]), constraint=constraints.positive
        )
        with pyro.plate("data", len(x)), poutine.scale(scale=1.0 / len(x)):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            prior = x.new_ones(self.classes) / self.classes
            label: Any = pyro.sample("y", dist.OneHotCategorical(prior), obs=y)
            loc, scale = self.z2(_joined(z1, label)).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, softplus(scale) + 1e-3).to_event(1))
            size: Any = pyro.sample("size", dist.LogNormal(x.sum(-1).log().mean(), 1.0))
            gate, mean = self.x(z2).chunk(2, -1)
            mean = size.unsqueeze(-1) * mean.softmax(-1)
            counts = dist.ZeroInflatedNegativeBinomial(
                gate_logits=gate,
                total_count=dispersion,
                logits=(mean + 1e-6).log() - (dispersion + 1e-6).log(),
            )
            pyro.sample("x", counts.to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(z2, size | x) q(y | z2) q(z1 | z2, y); the classifier learns from labels too."""
        with pyro.plate("data", len(x)), poutine.scale(scale=1.0 / len(x)):
            parts = self.z1_size((1 + x).log())
            loc, scale = parts[..., :-2].chunk(2, -1)
            mean, spread = parts[..., -2], softplus(parts[..., -1]) + 1e-3
            pyro.sample("size", dist.LogNormal(mean, spread))
            z2 = pyro.sample("z2", dist.Normal(loc, softplus(scale) + 1e-3).to_event(1))
            classes = dist.OneHotCategorical(logits=self.classifier(z2))
            label: Any = y
            if y is None:
                label = pyro.sample("y", classes)
            else:
                log_prob = classes.log_prob(y)
                pyro.factor("classification", -50 * log_prob, has_rsample=False)
            loc, scale = self.z2_z1(_joined(z2, label)).chunk(2, -1)
            pyro.sample("z1", dist.Normal(loc, softplus(scale) + 1e-3).to_event(1))


class _BatchNormal(nn.Module):
    """Two layers with batch normalization over all dimensions but the last."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.reshape(-1, x.shape[-1]))
        output: Tensor = self.last(self.norm(hidden).relu())
        return output.reshape(*x.shape[:-1], -1)


def _batch_normal(inputs: int, hidden: int, outputs: int) -> _BatchNormal:
    return _BatchNormal(inputs, hidden, outputs)


def _joined(z: Tensor, label: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(z.shape[:-1], label.shape[:-1])
    return torch.cat([t.expand(*shape, t.shape[-1]) for t in (z, label)], -1)


class AttendInferRepeat(PyroModule):
    """Attend, infer, repeat: up to three glyphs in an image, each present, at a place, of a shape.

    Absent glyphs are masked, so that no branch depends on the data.

    Eslami et al. (2016). https://arxiv.org/abs/1603.08575
    """

    def __init__(self, side: int, window: int, what: int, hidden: int, steps: int = 3) -> None:
        super().__init__()
        self.side, self.window, self.what, self.steps = side, window, what, steps
        self.recurrent = nn.LSTMCell(side**2 + 4 + what, hidden)
        self.baseline_recurrent = nn.LSTMCell(side**2 + 4 + what, hidden)
        self.present_where = nn.Linear(hidden, 1 + 2 * 3)
        self.baseline = nn.Linear(hidden, 1)
        self.encoder = nn.Sequential(
            nn.Linear(window**2, hidden), nn.ReLU(), nn.Linear(hidden, 2 * what)
        )
        self.decoder = nn.Sequential(
            nn.Linear(what, hidden), nn.ReLU(), nn.Linear(hidden, window**2)
        )
        self.register_buffer("where_mean", torch.tensor([3.0, 0.0, 0.0]))
        self.register_buffer("where_scale", torch.tensor([0.2, 1.0, 1.0]))

    def model(self, x: Tensor) -> None:
        """`x` (images, side, side)."""
        pyro.module("air", self)
        with pyro.plate("data", len(x), dim=-1):
            canvas = x.new_zeros(len(x), self.side, self.side)
            present = x.new_ones(len(x), 1)
            for t in range(self.steps):
                p = torch.sigmoid(x.new_full((1,), -1.0)) * present
                present = pyro.sample(f"present_{t}", dist.Bernoulli(p).to_event(1))
                mask = present.squeeze(-1).bool()
                with poutine.mask(mask=mask):
                    where = pyro.sample(
                        f"where_{t}",
                        dist.Normal(self.where_mean, self.where_scale)
                        .expand([len(x), 3])
                        .to_event(1),
                    )
                    what = pyro.sample(
                        f"what_{t}", dist.Normal(x.new_zeros(len(x), self.what), 1.0).to_event(1)
                    )
                glyph = torch.sigmoid(self.decoder(what) - 2)
                canvas = canvas + self._place(glyph, where) * present.unsqueeze(-1)
            pyro.sample("x", dist.Normal(canvas, 0.3).to_event(2), obs=x)

    def guide(self, x: Tensor) -> None:
        """A recurrent network, with a second one for the baselines of the presences."""
        size = self.recurrent.hidden_size
        state = base = (x.new_zeros(len(x), size), x.new_zeros(len(x), size))
        present, what = x.new_ones(len(x), 1), x.new_zeros(len(x), self.what)
        where = x.new_zeros(len(x), 3)
        with pyro.plate("data", len(x), dim=-1):
            for t in range(self.steps):
                inputs = torch.cat([x.flatten(1), where, what, present], -1)
                state = self.recurrent(inputs, state)
                base = self.baseline_recurrent(inputs.detach(), base)
                parts = self.present_where(state[0])
                p = torch.sigmoid(parts[:, :1]) * present
                value = (self.baseline(base[0]) * present).squeeze(-1)
                present = pyro.sample(
                    f"present_{t}",
                    dist.Bernoulli(p).to_event(1),
                    infer={"baseline": {"baseline_value": value}},
                )
                mask = present.squeeze(-1).bool()
                with poutine.mask(mask=mask):
                    scale = softplus(parts[:, 4:]) + 1e-3
                    where = pyro.sample(
                        f"where_{t}",
                        dist.Normal(parts[:, 1:4] + self.where_mean, scale).to_event(1),
                    )
                    loc, scale = self.encoder(self._window(x, where)).chunk(2, -1)
                    what = pyro.sample(
                        f"what_{t}", dist.Normal(loc, softplus(scale) + 1e-3).to_event(1)
                    )

    def _place(self, glyph: Tensor, where: Tensor) -> Tensor:
        """Glyphs (rows, window²) in empty images, by an affine map of the image's grid."""
        s, x, y = where.unbind(-1)
        zero = torch.zeros_like(s)
        theta = torch.stack([s, zero, x, zero, s, y], -1).view(-1, 2, 3)
        grid = affine_grid(theta, [len(where), 1, self.side, self.side], align_corners=False)
        images = glyph.view(-1, 1, self.window, self.window)
        return grid_sample(images, grid, align_corners=False).squeeze(1)

    def _window(self, x: Tensor, where: Tensor) -> Tensor:
        """The inverse: the part of the image around the place."""
        s, dx, dy = where.unbind(-1)
        inverse, zero = 1 / s.clamp(min=0.1), torch.zeros_like(s)
        entries = [inverse, zero, -dx * inverse, zero, inverse, -dy * inverse]
        theta = torch.stack(entries, -1).view(-1, 2, 3)
        grid = affine_grid(theta, [len(where), 1, self.window, self.window], align_corners=False)
        return grid_sample(x.unsqueeze(1), grid, align_corners=False).flatten(1)


class GatedMarkovModel(PyroModule):
    """Deep Markov model of sequences of bits with a structured guide.

    Args:
        packed: let the guide's recurrent network see packed sequences, whose batch sizes torch
            reads from the lengths.

    Krishnan, Shalit, Sontag (2017). https://arxiv.org/abs/1609.09869
    """

    def __init__(self, bits: int, latent: int, hidden: int, packed: bool = False) -> None:
        super().__init__()
        self.packed = packed
        self.gate = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent))
        self.proposal = nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, latent)
        )
        self.linear, self.spread = nn.Linear(latent, latent), nn.Linear(latent, latent)
        self.emission = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, bits))
        self.recurrent = nn.RNN(bits, hidden, nonlinearity="relu", batch_first=True)
        self.from_z, self.combined = nn.Linear(latent, hidden), nn.Linear(hidden, 2 * latent)
        self.z0, self.guide_z0 = (nn.Parameter(torch.zeros(latent)) for _ in range(2))

    def model(self, x: Tensor, backward: Tensor, mask: Tensor, lengths: Tensor, kl: Any) -> None:
        """`x`, and the same with time reversed, (rows, steps, bits); `mask` (rows, steps)."""
        pyro.module("dmm", self)
        with pyro.plate("sequences", len(x)):
            z: Any = self.z0.expand(len(x), -1)
            for t in range(x.shape[1]):
                gate, proposal = torch.sigmoid(self.gate(z)), self.proposal(z)
                loc = (1 - gate) * self.linear(z) + gate * proposal
                scale = softplus(self.spread(proposal.relu())) + 1e-3
                with poutine.scale(scale=kl):
                    state = dist.Normal(loc, scale).mask(mask[:, t : t + 1]).to_event(1)
                    z = pyro.sample(f"z_{t}", state)
                logits = self.emission(z)
                bits = dist.Bernoulli(logits=logits).mask(mask[:, t : t + 1]).to_event(1)
                pyro.sample(f"x_{t}", bits, obs=x[:, t])

    def guide(self, x: Tensor, backward: Tensor, mask: Tensor, lengths: Tensor, kl: Any) -> None:
        """q(z_t | z_{t-1}, x_t, …, x_T)."""
        if self.packed:
            pack = nn.utils.rnn.pack_padded_sequence(
                backward, lengths, batch_first=True, enforce_sorted=False
            )
            states = nn.utils.rnn.pad_packed_sequence(self.recurrent(pack)[0], batch_first=True)[0]
        else:
            states = self.recurrent(backward)[0]
        with pyro.plate("sequences", len(x)):
            z: Any = self.guide_z0.expand(len(x), -1)
            for t in range(x.shape[1]):
                hidden = 0.5 * (torch.tanh(self.from_z(z)) + states[:, x.shape[1] - 1 - t])
                loc, scale = self.combined(hidden).chunk(2, -1)
                state = dist.Normal(loc, softplus(scale) + 1e-3).mask(mask[:, t : t + 1])
                with poutine.scale(scale=kl):
                    z = pyro.sample(f"z_{t}", state.to_event(1))


def strain_growth(times: Tensor, features: Tensor, counts: Tensor) -> None:
    """Multinomial logistic growth of strains with rates from mutations: pyro-cov.

    Args:
        times: (T,).
        features: (S, F), mutations of S strains.
        counts: (T, P, S) of P places.

    Obermeyer et al. (2022). https://doi.org/10.1126/science.abm1208
    """
    T, P, S = counts.shape
    scales = {
        name: pyro.sample(name, dist.LogNormal(loc, 1.0))
        for name, loc in (
            ("coef_scale", -4.0),
            ("rate_scale", -4.0),
            ("init_scale", 0.0),
            ("place_rate_scale", -4.0),
            ("place_init_scale", 0.0),
        )
    }
    spread: Any = scales["coef_scale"]
    coef = pyro.sample(
        "coef", dist.Laplace(features.new_zeros(features.shape[1]), spread).to_event(1)
    )
    with pyro.plate("strain", S, dim=-1):
        rate_loc = pyro.sample("rate_loc", dist.Normal(features @ coef, scales["rate_scale"]))
        init_loc = pyro.sample("init_loc", dist.Normal(0.0, scales["init_scale"]))
        with pyro.plate("place", P, dim=-2):
            rate = pyro.sample("rate", dist.Normal(rate_loc, scales["place_rate_scale"]))
            init = pyro.sample("init", dist.Normal(init_loc, scales["place_init_scale"]))
    logits = init + rate * times[:, None, None]
    with pyro.plate("time", T, dim=-2), pyro.plate("place_", P, dim=-1):
        pyro.sample("counts", dist.Multinomial(logits=logits, validate_args=False), obs=counts)
