"""The model card: what is known of a model beside its network and its weights."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from consistune.core.objectives import Objective

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
        data: the recipe's name of the training images.
        data_sha256: their fingerprint (`data.images`).
        class_names: the names of the classes, in the order of their labels.
        edges: the inner edges of a phased model, as noise levels σ of EDM's process.
        mid_t: the noise levels to which multistep sampling returns by default.
        assumed: what an imported file does not say and was taken as published.
        provenance: an imported file's name, sha256, format and licence (`interop.checkpoints`).
        ema: the relative length `std` and the training `images` of a reconstructed average.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    start_from: Origin | None = None
    objective: str | None = None
    data: str | None = None
    data_sha256: str | None = None
    class_names: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()
    mid_t: tuple[float, ...] = ()
    assumed: tuple[str, ...] = ()
    provenance: JSON | None = None
    ema: JSON | None = None

    @property
    def is_diffusion(self) -> bool:
        """Whether the model is sampled by integrating the probability-flow ODE."""
        return self.objective == "diffusion"

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

    def trained(self, objective: Objective, data: object, conditional: bool) -> "ModelCard":
        """The card of a model that is trained with an objective on a data set, with its labels or without.

        How the objective's models are sampled replaces what the card said of it. So do the name, the
        fingerprint and the class names of the data, unless the card names the same images already.
        """
        sampling = objective.sampling()
        facts: JSON = {}
        if sampling.objective is not None:
            facts = {"objective": sampling.objective, "edges": sampling.edges}
        fingerprint = getattr(data, "fingerprint", None)
        if fingerprint != self.data_sha256:
            names = getattr(data, "class_names", ()) if conditional else ()
            facts |= {"data": getattr(data, "name", None), "data_sha256": fingerprint, "class_names": names}
        return self.updated(**facts)
