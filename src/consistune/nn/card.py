"""The model card: what is known of a model beside its network and its weights."""

from dataclasses import asdict
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from consistune.core.objectives import Objective, learned

JSON = dict[str, Any]


class Origin(BaseModel):
    """The weights that a training started from.

    Attributes:
        path: the model folder or checkpoint file, as the recipe names it.
        new: the parameters that those weights did not have.
        dropped: the parameters that were left behind.
        provenance: `ModelCard.provenance` of those weights.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    path: str
    new: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    provenance: JSON | None = None


class ModelCard(BaseModel):
    """What is known of a model: how it is sampled and where it comes from. All of it may be unknown.

    A model folder's config.json holds the card under `meta`. Further keys are kept and written again.

    Attributes:
        start_from: the weights that its training started from.
        objective: "diffusion" for a denoiser, which is sampled by integrating the probability-flow ODE; any
            other word, such as "consistency", for a model of few steps.
        learns: "denoiser", "flow-map" or "jumps", where `objective` alone would be read otherwise.
        data: the recipe's name of the training images.
        data_sha256: their fingerprint (`data.images`).
        class_names: the names of the classes, in the order of their labels.
        edges: the inner edges of a phased model, as noise levels σ of EDM's process.
        mid_t: the noise levels to which multistep sampling returns by default.
        lowest: the lowest noise level that was learned (TCM's t′), as σ of EDM's process; None: all were.
        label_dropout: the share of its training images without their label; 0: the unlabelled branch is not
            trained, and cannot guide.
        assumed: what an imported file does not say and was taken as published.
        provenance: an imported file's name, sha256, format and licence (`interop.checkpoints`).
        latents: of a model of latents, their autoencoder and normalisation (`nn.autoencoder.record`).
        ema: the relative length `std` and the training `images` of a reconstructed average.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    start_from: Origin | None = None
    objective: str | None = None
    learns: str | None = None
    data: str | None = None
    data_sha256: str | None = None
    class_names: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    mid_t: tuple[float, ...] = ()
    lowest: float | None = None
    label_dropout: float | None = None
    assumed: tuple[str, ...] = ()
    provenance: JSON | None = None
    latents: JSON | None = None
    ema: JSON | None = None

    @property
    def is_diffusion(self) -> bool:
        """Whether the model is sampled by integrating the probability-flow ODE."""
        return learned(self.to_json()) == "denoiser"

    @property
    def jumps(self) -> bool:
        """Whether the model has learned jumps between any two times."""
        return learned(self.to_json()) == "jumps"

    @property
    def source(self) -> JSON | None:
        """The provenance of its weights, or of those that its training started from."""
        return self.provenance or (self.start_from.provenance if self.start_from else None)

    def to_json(self) -> JSON:
        """The value of `meta` in config.json: the keys that were given, in the order above."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def from_json(cls, meta: Any) -> "ModelCard":
        """The card in a config.json of any version. Raises ValueError, one line, for a wrong type."""
        try:
            return cls.model_validate(meta)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(str(part) for part in ("meta", *first["loc"]))
            raise ValueError(f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}") from error

    def updated(self, **facts: Any) -> "ModelCard":
        """The card with these keys set. Raises ValueError for a wrong type."""
        return self.from_json({**self.to_json(), **facts})

    def learning(self, objective: Objective) -> "ModelCard":
        """The card of a model that learns by an objective: how it is sampled, its edges, its lowest time.

        The word in `objective` stays where it says the same; `learns` is given where that word alone would be
        read otherwise. Edges are converted to noise levels of EDM's process.
        """
        ratios = objective.schedule.noise_to_signal(torch.tensor(objective.edges, dtype=torch.float64))
        facts: JSON = {"edges": ratios.tolist()}
        if objective.lowest_time > 0:
            facts["lowest"] = objective.lowest_time
        if self.objective is None:
            facts["objective"] = "diffusion" if objective.learns == "denoiser" else "consistency"
        if learned({**self.to_json(), **facts}) != objective.learns:
            facts["learns"] = objective.learns
        return self.without("lowest").updated(**facts)

    def trained(self, objective: Objective, data: object, conditional: bool) -> "ModelCard":
        """The card of a model that is trained with an objective on a data set, with its labels or without.

        The name, the fingerprint and the class names of the data replace the card's, unless the card names
        the same images already.
        """
        card = self if learned(self.to_json()) == objective.learns else self.without("objective", "learns")
        fingerprint = getattr(data, "fingerprint", None)
        facts: JSON = {}
        if fingerprint != self.data_sha256:
            names = tuple(map(str, getattr(data, "class_names", ()))) if conditional else ()
            facts = {"data": getattr(data, "name", None), "data_sha256": fingerprint, "class_names": names}
            if (latents := getattr(data, "latents", None)) is not None:
                facts["latents"] = asdict(latents)
        return card.updated(**facts).learning(objective)

    def without(self, *keys: str) -> "ModelCard":
        """The card without these keys."""
        return self.from_json({key: value for key, value in self.to_json().items() if key not in keys})
