"""What every key of a recipe means: from the docstring of its class, or from the tables here."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from consistune.recipe.words import NAMES, PARTS, SINGLE, Section, recipe_section, section

MEANINGS: dict[str, str] = {
    # the recipe
    "data": "the training images: a prepared folder, or digits",
    "conditional": "whether the network is told the class",
    "network": "the network to begin with; null: that of start_from",
    "start_from": "the model's folder or official checkpoint to start from; null: fresh weights",
    "precond": "how the network becomes a denoiser; null: EDM's, or that of start_from",
    "schedule": "the noise process α(t), σ(t)",
    "optimizer": "the optimizer and its learning rate",
    "train": "length, batch, averages, precision, what is kept",
    "objective": "what is learned",
    "pairs": "the law of the times t and r",
    "estimator": "what estimates the clean image at x_t",
    "loss": "how output and target are compared",
    "target": "the network whose output at x_r is the target",
    "mid_t": "noise levels of the steps after the first, when the model is sampled",
    "below": "the frozen model of stage 1: its folder",
    "boundary_weight": "weight of the loss at the boundary",
    # times
    "gap": "how r follows from t, and shrinks with training",
    "law": "the law of the noise level t",
    "mean": "mean of ln t",
    "std": "standard deviation of ln t",
    "low": "the lowest noise level; null: no bound",
    "high": "the highest noise level; null: no bound",
    "df": "degrees of freedom: the smaller, the more mass at both ends",
    "q": "the relative gap is divided by this number in each stage",
    "every_images": "training images of a stage",
    "stages_per_halving": "parts into which a stage is cut, for smaller steps",
    "k": "how much wider the gap is at small t",
    "b": "how fast that extra width falls with t",
    "max_ratio": "r/t never exceeds this",
    "size": "the number of points of the grid",
    "rho": "curvature of Karras' grid",
    "edges": "the inner edges of the phases, or the number of phases",
    "boundary": "t′, the noise level that parts the two stages",
    "share": "share of the batch that sits at the boundary",
    "n": "points of the grid",
    "s0": "points at the beginning",
    "s1": "points at the end",
    "total_images": "training images over which it grows",
    "t_min": "the least time",
    "t_max": "the greatest time",
    "beta_min": "β at time 0",
    "beta_d": "growth of β over time",
    # estimators, distances, weights
    "bank": "where the reference images lie: auto, device, host, or sharded over the processes",
    "model": "the frozen teacher: a model's folder",
    "guidance": "weight ω of classifier-free guidance; 1: none",
    "distance": "the distance of output and target",
    "weight": "the factor of the loss at t",
    "weights": "VGG16's and LPIPS's weights: a safetensors file",
    "c": "radius of the Huber distance; 0: the L2 norm",
    "per_root_dim": "radius added for each √(number of elements)",
    "sigma_data": "standard deviation of the data, about",
    "p": "power of the adaptive weight",
    "steps": "solver steps from t to r",
    "method": "the solver: euler or heun",
    "order": "order of the solver",
    "warmup_images": "training images over which it grows from 0",
    "difference": "relative width of a finite difference in place of the derivative; null: the exact one",
    "intervals": "the law of the times t and r of a jump",
    "scale": "the adaptive factor of the loss",
    # averages and optimizer
    "mu": "decay of the target network's average",
    "mu_0": "that decay at the beginning",
    "lr": "learning rate",
    "betas": "decays of Adam's moments",
    "eps": "Adam's ε",
    "weight_decay": "weight decay; AdamW's is decoupled",
    # networks and preconditioning
    "dropout": "probability with which activations drop out",
    "dropout_res": "the finest resolution at which blocks drop out; null: all do",
    "embedding_type": "features of the noise level: positional or fourier",
    "resample_filter": "taps of the filter that halves and doubles the resolution",
    "channels_per_head": "channels of an attention head",
    "out_channels": "channels of the output; null: the image's",
    "augment_dim": "width of the augmentation labels; 0: none",
    "model_channels": "the unit of all widths",
    "channel_mult": "width of each level, over model_channels",
    "channel_mult_emb": "width of the embedding, over model_channels",
    "num_blocks": "blocks a level",
    "attn_resolutions": "resolutions with attention",
    "label_dropout": "probability with which a training image loses its class",
    "second_time": "whether the network also takes the time where a jump ends",
    "labels": "how the module takes classes: one-hot or index",
    "precision": "what products are computed in",
    "sigma_min": "the lowest noise level",
    "sigma_max": "the highest noise level",
    "noise_scale": "factor of the noise level that the network is given",
    "prediction": "what the network predicts: the noise ε, or the velocity v",
    "M": "noise levels of the original discrete process",
    "epsilon_t": "the least time of the process",
    "C_1": "least ratio of neighbouring ᾱ",
    "C_2": "offset of the cosine schedule",
}
"""Key → its meaning, in whatever section it stands."""
OWN: dict[tuple[str, str], str] = {
    (
        "diffusion",
        "uncertainty",
    ): "weight the loss by EDM2's learned log-variance; needs precond: {kind: edm2}",
    ("continuous", "uncertainty"): "weight the loss by a learned e^−u(t); needs precond: {kind: edm2}",
    ("diffusion", "augment"): "probability of each of EDM's augmentations; the network needs augment_dim: 9",
    ("mean-velocity", "guidance"): "guidance that is trained in",
    ("trajectory", "steps"): "solver steps of a trajectory",
    ("continuous", "warmup_images"): "training images over which the derivative's share grows to 1",
    ("continuous", "c"): "added to the tangent's norm in its normalisation",
    ("continuous", "per_root_dim"): "divide that norm by √(number of elements)",
    ("continuous", "difference"): "relative width of a finite difference; null: the exact derivative",
    ("Optimizer", "kind"): "the algorithm",
    ("Optimizer", "lr_schedule"): "the factor of the rate over training",
    ("Optimizer", "warmup_images"): "training images over which the rate grows to lr",
    ("TrainOptions", "checkpoint_images"): "training images between checkpoints",
    ("TrainOptions", "log_images"): "training images between lines of metrics.jsonl",
    ("TrainOptions", "channels_last"): "convolution weights in that memory format; null: on CUDA",
    (
        "TrainOptions",
        "compile",
    ): "blocks by torch.compile, or CUDA graphs; null: on CUDA from 10,000 steps, without derivatives",
    ("TrainOptions", "label_dropout"): "share of images whose label the model does not see, for guidance",
    ("TrainOptions", "ema"): "averages of the weights: decay per step, or a section; the first is sampled",
    ("UntilRatio", "until_ratio"): "the median r/t at which the precision changes",
    ("UntilRatio", "first"): "precision before",
    ("UntilRatio", "then"): "precision after",
    ("adaptive-power", "c"): "added to the squared error in the weight",
    (
        "adaptive-power",
        "scatter",
    ): "none: the factor from the error itself; own: from the error against the own velocity",
    (
        "adaptive-huber",
        "scatter",
    ): "what the radius follows: the sample's own error, the posterior's variance, or a second pass",
    ("adaptive-huber", "scale"): "factor κ of the radius",
    ("adaptive-huber", "sigma_data"): "standard deviation of the data, in the gain from r to s",
    ("linear-decay", "start"): "share of training from which the rate falls to 0",
    ("inverse-square-root", "reference_images"): "training images after which the rate falls",
    ("score-identity", "reference"): "the images averaged over: the mini-batch's, the class's, or all",
    ("blend", "estimator"): "the estimator that counts at wide gaps",
    ("blend", "full_gap"): "relative gap (t − r)/t from which that estimator counts alone",
    ("phased", "pairs"): "the pairs that are cut into phases",
    ("grid", "std"): "standard deviation of ln t; null: every cell alike",
    **{(kind, "low"): "the lowest noise level" for kind in ("grid", "log-student", "trajectory")},
    **{(kind, "high"): "the highest noise level" for kind in ("grid", "log-student", "trajectory")},
    ("log-student", "mean"): "centre of ln t",
    ("log-student", "std"): "scale of ln t",
    ("logit-normal", "mean"): "mean of the first normal number",
    ("logit-normal", "std"): "its standard deviation",
    ("logit-normal", "r_mean"): "mean of the second",
    ("logit-normal", "r_std"): "its standard deviation",
    ("power", "std"): "relative length of the average, in (0, 0.289)",
    ("Mixture", "omega"): "weight ω of the guided velocity; 1: none",
    ("Mixture", "kappa"): "share κ of the model's own velocity with the class",
    ("Mixture", "low"): "the least time that is guided",
    ("Mixture", "high"): "the greatest time that is guided; null: no bound",
    **{(kind, "width"): "width of the trunk" for kind in ("mlp", "dit")},
    **{(kind, "blocks"): "residual blocks" for kind in ("mlp", "dit")},
    **{(kind, "expansion"): "width of a block's hidden layer, over the trunk's" for kind in ("mlp", "dit")},
    **{
        (kind, "channel_mult_emb"): "width of the embedding, over model_channels" for kind in ("song", "edm2")
    },
    **{
        (kind, "channel_mult_noise"): "width of the noise level's features, over model_channels"
        for kind in ("song", "edm2")
    },
    ("edm2", "label_balance"): "share of the class in the embedding; null: learned",
    ("edm2", "concat_balance"): "share of the skip connection where it joins",
    ("edm2", "res_balance"): "share of the residual branch in its sum",
    ("edm2", "attn_balance"): "share of attention in its sum",
}
"""(kind or class of a section, key) → its meaning, where neither docstring nor MEANINGS says it shortly."""
SOURCE = re.compile(r"\b\d{4}\.\d{5}\b")


def meanings(make: Any) -> dict[str, str]:
    """argument → its first sentence, from the lines "name: text" or "name, name: text" of a docstring."""
    found: dict[str, str] = {}
    names: list[str] = []
    text = inspect.cleandoc(inspect.getdoc(make) or "")
    allowed = set(inspect.signature(make).parameters) if callable(make) else set()
    for line in text.splitlines():
        for piece in re.split(r"(?<=[.;]) (?=[a-z_]+(?:, [a-z_]+)*: )", line.strip()):
            start = re.match(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)", piece)
            if start and set(start[1].split(", ")) & allowed:
                names = start[1].split(", ")
                found |= dict.fromkeys(names, start[2])
            elif not piece:
                names = []
            else:
                found |= {name: f"{found[name]} {piece}" for name in names}
    first = {name: re.split(r"(?<=\.)\s", value)[0].rstrip(".") for name, value in found.items()}
    return {name: re.sub(r"\bNone\b", "null", value) for name, value in first.items()}


@cache
def explanations(part: type[Section]) -> dict[str, str]:
    """key → meaning, of every key of a section but its kind; "" for a registered part that says none."""
    told = meanings(part.builds)
    name = word_of(part)
    return {
        key: OWN.get((name, key)) or told.get(key) or MEANINGS.get(key, "")
        for key in part.model_fields
        if key != "kind" or (name, key) in OWN
    }


def word_of(part: type[Section]) -> str:
    """The kind of a section, the word of an objective, or the class where there is one kind."""
    fields = part.model_fields
    for key in ("kind", "objective"):
        words = get_args(fields[key].annotation) if key in fields else ()
        if len(words) == 1:
            return str(words[0])
    return str(part.builds.__name__)


@dataclass(frozen=True)
class Key:
    """A key of a section, for the reference: its type in words, and its default as YAML has it."""

    name: str
    type: str
    default: str
    meaning: str


def keys_of(part: type[Section]) -> Iterator[Key]:
    """The keys of a section, in the order of the file, without its kind where there is no choice."""
    told = explanations(part)
    for name, field in part.model_fields.items():
        if name in told:
            yield Key(name, type_of(field.annotation), _default(field), told[name])


def sources_of(part: type[Section]) -> list[str]:
    """The papers (arXiv numbers) that the docstring of a section's class names."""
    return list(dict.fromkeys(SOURCE.findall(inspect.getdoc(part.builds) or "")))


def all_sections() -> Iterator[tuple[str, type[Section]]]:
    """(what it is a kind of, section) of every section; first the recipes, by their objective."""
    words = {make: word for word, make in NAMES.items()}
    for kind in PARTS[NAMES["objective"]]:
        yield "objective", recipe_section(kind)
    for part, table in PARTS.items():
        if words[part] != "objective":
            yield from ((words[part], section(make, kind)) for kind, make in table.items())
    for make in SINGLE:
        yield "section", section(make, None)


PLAIN = {int: "integer", float: "number", bool: "true or false", str: "text", NoneType: "null"}


def type_of(hint: Any) -> str:
    """A key's type in words."""
    origin = get_origin(hint)
    if origin is Annotated:
        return type_of(get_args(hint)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(type_of, get_args(hint))))
    if origin in (tuple, list):
        inner = [argument for argument in get_args(hint) if argument is not Ellipsis]
        return f"list of {' or '.join(dict.fromkeys(map(type_of, inner)))}"
    if inspect.isclass(hint) and issubclass(hint, Section):
        return "section"
    return PLAIN.get(hint, "value")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    return _as_yaml(field.default)


def _as_yaml(value: Any) -> str:
    if isinstance(value, Section):
        return str(getattr(value, "kind", "its own defaults"))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_as_yaml, value))}]"
    return f"{value:,}".replace(",", "_") if isinstance(value, int) else f"{value}"
