"""The preconditioning of EDM's predecessors: VP, VE (2011.13456), iDDPM (2102.09672), in EDM's table 1."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from consistune.nn.precond import Precision, Preconditioned, Scalings


class VPPrecond(Preconditioned):
    """D = x − σ·F(x/√(σ² + 1); (M − 1)·t(σ)).

    σ(t) = √(exp(β_d t²/2 + β_min t) − 1) and its inverse t(σ) = (√(β_min² + 2 β_d ln(1 + σ²)) − β_min)/β_d;
    the noise levels are σ(epsilon_t) … σ(1).
    """

    kind = "vp"

    def __init__(
        self,
        network: nn.Module,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, precision)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t
        self.sigma_min, self.sigma_max = self.sigma(epsilon_t), self.sigma(1.0)

    def sigma(self, t: float) -> float:
        """σ(t), computed in fp32 as in official models."""
        u = torch.tensor(t, dtype=torch.float32, device="cpu")
        exponent = 0.5 * self.beta_d * u.square() + self.beta_min * u
        return float((exponent.exp() - 1).sqrt())

    def scalings(self, sigma: Tensor) -> Scalings:
        variance = sigma.square() + 1
        t = ((self.beta_min**2 + 2 * self.beta_d * variance.log()).sqrt() - self.beta_min) / self.beta_d
        return Scalings(torch.ones_like(sigma), -sigma, variance.rsqrt(), (self.M - 1) * t)


class VEPrecond(Preconditioned):
    """D = x + σ·F(x; ln(σ/2)); the noise levels are sigma_min … sigma_max."""

    kind = "ve"

    def __init__(
        self,
        network: nn.Module,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, precision)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def scalings(self, sigma: Tensor) -> Scalings:
        one = torch.ones_like(sigma)
        c_noise = (sigma.clamp(min=torch.finfo(sigma.dtype).tiny) / 2).log()
        return Scalings(one, sigma, one, c_noise)


class IDDPMPrecond(Preconditioned):
    """D = x − σ·F(x/√(σ² + 1); M − 1 − j), u_j the nearest of the M + 1 noise levels `u`.

    u_M = 0, u_{j−1} = √((u_j² + 1)/max(ᾱ(j−1)/ᾱ(j), C_1) − 1), ᾱ(j) = sin²(π/2 · j/(M (C_2 + 1))).
    The network may have more output channels than the image: the first are F.
    """

    kind = "iddpm"
    u: Tensor

    def __init__(
        self,
        network: nn.Module,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, precision)
        self.C_1, self.C_2, self.M = C_1, C_2, M
        levels = self._levels()
        self.register_buffer("u", torch.tensor(levels))
        self.sigma_min, self.sigma_max = levels[M - 1], levels[0]

    def _levels(self) -> list[float]:
        """u, computed in fp32 at every step as in official models."""
        j = torch.arange(self.M + 1, dtype=torch.float32, device="cpu")
        alpha_bar = (0.5 * math.pi * j / self.M / (self.C_2 + 1)).sin().square()
        ratio = (alpha_bar[:-1] / alpha_bar[1:]).clamp(min=self.C_1)
        u = torch.zeros_like(j)
        for step in range(self.M, 0, -1):
            u[step - 1] = ((u[step].square() + 1) / ratio[step - 1] - 1).sqrt()
        return u.tolist()

    def index(self, sigma: Tensor) -> Tensor:
        """The index of the nearest level, in sigma's shape; compared in fp32."""
        distance = sigma.to(self.u.device, torch.float32)[..., None] - self.u.float()
        return distance.abs().argmin(dim=-1)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest level u_j, in sigma's dtype and shape."""
        sigma = torch.as_tensor(sigma)
        return self.u[self.index(sigma)].to(sigma)

    def scalings(self, sigma: Tensor) -> Scalings:
        c_noise = (self.M - 1 - self.index(sigma)).to(sigma)
        return Scalings(torch.ones_like(sigma), -sigma, (sigma.square() + 1).rsqrt(), c_noise)


Prediction = Literal["epsilon", "v_prediction"]
"""What a network of DDPM's kind predicts: the noise ε, or v = √ᾱ·ε − √(1 − ᾱ)·x_0 (2202.00512)."""


class DDPMPrecond(Preconditioned):
    """A network F(x_n, n) of M discrete steps, x_n = √ᾱ_n·x_0 + √(1 − ᾱ_n)·ε (DDPM, 2006.11239), at any σ.

    x_n = x/√(σ² + 1). ε: D = x − σ·F; v: D = x/(σ² + 1) − σ/√(σ² + 1)·F. Between the levels
    σ_n = √((1 − ᾱ_n)/ᾱ_n) of the steps the step is a fraction, linear in ln σ, as in diffusers' schedulers;
    beyond them it is that of the nearest level. D(x; 0) = x.

    `levels` [M] holds the finite, rising σ_n. It is stored with the weights; a new model has DDPM's, of
    β = 1e-4 … 0.02.
    """

    kind = "ddpm"
    levels: Tensor

    def __init__(
        self,
        network: nn.Module,
        prediction: Prediction = "epsilon",
        M: int = 1000,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, precision)
        if prediction not in get_args(Prediction) or M < 2:
            raise ValueError(f"prediction must be one of {', '.join(get_args(Prediction))}, and M 2 or more")
        self.prediction, self.M = prediction, M
        alpha_bar = (1 - torch.linspace(1e-4, 0.02, M, dtype=torch.float64)).cumprod(0)
        self.register_buffer("levels", ((1 - alpha_bar) / alpha_bar).sqrt().float())

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        return float(self.levels[0])

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        return float(self.levels[-1])

    def step(self, sigma: Tensor) -> Tensor:
        """The real n in 0 … M − 1 of a noise level, in sigma's shape."""
        table = self.levels.to(sigma).log()
        level = torch.minimum(torch.maximum(sigma, self.levels[0].to(sigma)), self.levels[-1].to(sigma)).log()
        above = (table < level[..., None]).sum(-1).clamp(1, self.M - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + (level - low) / (high - low)

    def scalings(self, sigma: Tensor) -> Scalings:
        variance = sigma.square() + 1
        c_in = variance.rsqrt()
        if self.prediction == "epsilon":
            return Scalings(torch.ones_like(sigma), -sigma, c_in, self.step(sigma))
        return Scalings(variance.reciprocal(), -sigma * c_in, c_in, self.step(sigma))
