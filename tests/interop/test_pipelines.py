"""Folders of diffusers: what they become is what diffusers itself computes."""

import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from consistune.bench.workload import redraw_weights
from consistune.core.noise import EDM
from consistune.core.sampling import ODE, Multistep
from consistune.core.times import karras_grid
from consistune.errors import UserError
from consistune.interop.export import export_model
from consistune.interop.onnx import metadata
from consistune.models import default_sampler, load
from consistune.nn import store
from consistune.nn.baselines import DDPMPrecond
from consistune.nn.module import wrap
from consistune.nn.precond import Preconditioned
from tests.support.noise import Stored
from tests.support.toy import entries, named

diffusers = pytest.importorskip("diffusers", reason="the extra diffusers is not installed")

SMALL = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}
BETAS = {
    "ddpm": {},
    "scaled": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "trained": {"trained_betas": [0.01, 0.05, 0.1, 0.3, 0.5], "num_train_timesteps": 5},
    "zero-snr": {"rescale_betas_zero_snr": True},
}


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**SMALL, **options}).eval()


def written(folder: Path, scheduler: dict[str, Any] | None = None, **options: Any) -> Path:
    """A DDPMPipeline's folder with this scheduler, as diffusers writes it."""
    made = diffusers.DDPMScheduler(**(scheduler or {}))
    diffusers.DDPMPipeline(unet(**options), made).save_pretrained(folder)
    return folder


def close(got: Tensor, expected: Tensor, room: float = 5e-6) -> None:
    torch.testing.assert_close(got, expected.to(got), rtol=0, atol=room * float(expected.abs().max()))


@torch.no_grad()
def test_a_ddpm_pipeline_denoises_as_its_scheduler_does(parity_folder: Path, parity: Any) -> None:
    """x̂_0 at the schedule's own times: the fixture's x_n = x/√(σ² + 1)."""
    model, given = load(parity_folder / "diffusers/ddpm_pipeline"), parity("diffusers/ddpm_pipeline")
    assert isinstance(model, DDPMPrecond)
    torch.testing.assert_close(model.levels, given["sigma"].to(model.levels), rtol=1e-6, atol=0)
    for i, n in enumerate(given["denoise_t"].tolist()):
        signal = given["alphas_cumprod"][n].double().sqrt()
        noisy = signal * 0.5 * given["x"].flip(0) + (1 - signal**2).sqrt() * given["x"]
        denoised = model(noisy / signal, given["sigma"][n])
        close(denoised, given["denoised"][i], 2e-5)
        size = float(given["denoised"][i].abs().max())
        close(denoised.clamp(-1, 1), given["denoised_clipped"][i], 2e-5 * size)


@pytest.mark.parametrize("key", entries("diffusers/ddpm_pipeline", r"(ddim\d+_clip(?:True|False))"))
@torch.no_grad()
def test_a_ddpm_pipeline_samples_as_ddim_does(parity_folder: Path, parity: Any, key: str) -> None:
    """Every state with clipping, where ε stays that of the unclipped x̂_0; without, the last alone."""
    model, given = load(parity_folder / "diffusers/ddpm_pipeline"), parity("diffusers/ddpm_pipeline")
    steps, _, clipping = key.partition("_clip")
    times = given[f"{steps}_timesteps"]
    signal = torch.cat([given["alphas_cumprod"].double()[times], torch.ones(1, dtype=torch.float64)]).sqrt()
    levels = (1 - signal.square()).sqrt() / signal
    x, states = given["x"].double() / signal[0], []
    for t, s in itertools.pairwise(levels.unsqueeze(1).expand(-1, len(x))):
        x0_hat = model(x, t).double()
        x = EDM().step(x, x0_hat, t, s)
        if clipping == "True":
            x = x + x0_hat.clamp(-1, 1) - x0_hat
        states.append(x * signal[len(states) + 1])
    expected = given[key].double()
    close(torch.stack(states[-len(expected) :]), expected, 1e-4 if clipping == "True" else 1e-5)


@pytest.mark.parametrize("name", ["ddpm_pipeline", "consistency_pipeline"])
@torch.no_grad()
def test_the_network_of_a_pipeline_is_diffusers_own(parity_folder: Path, parity: Any, name: str) -> None:
    given = parity(f"diffusers/{name.replace('ddpm_pipeline', 'unet_ddpm')}")
    network = load(parity_folder / "diffusers" / name).network.module
    labels = {"class_labels": given["class_labels"]} if "class_labels" in given else {}
    outputs = [given[match[0]] for match in named(given, r"out_\d+")]
    for t, expected in zip(given["timesteps"], outputs, strict=True):
        close(network(given["x"], t, **labels).sample, expected)
    close(network(given["x"], given["per_sample_t"], **labels).sample, given["out_per_sample_t"])


@torch.no_grad()
def test_an_edm_pipeline_denoises_as_its_scheduler_does(parity_folder: Path, parity: Any) -> None:
    folder = parity_folder / "diffusers/edm_pipeline"
    model, given = load(folder), parity("diffusers/edm_pipeline")
    sigmas = given["sigma"].double()
    scalings = model.scalings(sigmas)
    close(scalings.c_noise, given["c_noise"].double(), 1e-6)
    for i, sigma in enumerate(sigmas):
        noisy, c_noise = given["x"] * sigma, scalings.c_noise[i].float()
        raw = model.network.module((noisy * scalings.c_in[i]).float(), c_noise).sample
        close(raw, given["F"][i])
        close(model(noisy, sigma), given["denoised"][i])
    grid = ranged(folder)
    for match in named(given, r"euler(\d+)_states"):
        of = lambda name, method=f"euler{match[1]}": given[f"{method}_{name}"]
        start = Stored(given["x"] * of("init_sigma") / of("sigmas")[0])
        sampled = ODE(int(match[1]), order=1, **grid)(model, EDM(), start, model.image_shape)
        close(sampled, of("states")[-1].double(), 1e-5)


def ranged(folder: Path) -> dict[str, float]:
    """The grid that a folder's scheduler says, as keywords of ours."""
    says = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    names = {"low": "sigma_min", "high": "sigma_max", "rho": "rho"}
    return {ours: says[theirs] for ours, theirs in names.items() if theirs in says}


@torch.no_grad()
def test_a_consistency_pipelines_grid_is_diffusers_own(parity_folder: Path, parity: Any) -> None:
    folder = parity_folder / "diffusers/consistency_pipeline"
    model, given = load(folder), parity("diffusers/consistency_pipeline")
    for match in named(given, r"scheduler_sigmas_(\d+)"):
        sigmas = karras_grid(int(match[1]), **ranged(folder)).flip(0)
        close(sigmas, given[match[0]], 1e-6)
        close(model.scalings(sigmas).c_noise, given[f"scheduler_timesteps_{match[1]}"], 1e-6)


@torch.no_grad()
def test_a_consistency_pipeline_samples_as_diffusers_does(parity_folder: Path, parity: Any) -> None:
    folder = parity_folder / "diffusers/consistency_pipeline"
    model, given = load(folder), parity("diffusers/consistency_pipeline")
    classes = json.loads((folder / "unet/config.json").read_text())["num_class_embeds"] or 0
    labels = given.get("class_labels")
    assert (model.num_classes, model.card.is_diffusion) == (classes, False)
    for sigma, expected in zip(given["consistency_sigma"], given["consistency_f"], strict=True):
        close(model(given["x"] * float(sigma), sigma, labels), expected)
    clipped = lambda x, t, condition=None: model(x, t, condition).clamp(-1, 1)  # as the scheduler does
    for match in named(given, "pipeline_(.+)_sigmas"):
        name, (top, *mid, lowest) = match[1], given[match[0]].tolist()
        sampler = Multistep(tuple(mid), t_max=top, boundary=lowest if mid else 0.0)
        noise = Stored(given["x"], *given.get(f"pipeline_{name}_noise", []))
        images = sampler(clipped, EDM(), noise, model.image_shape, labels)
        close((images + 1) / 2, given[f"pipeline_{name}"].double())


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("betas", BETAS)
@torch.no_grad()
def test_the_model_is_diffusers_x0_between_the_schedules_points_too(
    betas: str, prediction: str, tmp_path: Path
) -> None:
    """diffusers' Euler scheduler on σ's between the table's: its time step is a fraction, its x̂_0 is ours."""
    options = {"prediction_type": prediction, **BETAS[betas]}
    model = load(written(tmp_path / "pipeline", options))
    table = diffusers.DDPMScheduler(**options).betas
    table = table[table < 1].tolist()  # the last is 1 at zero SNR, where σ is infinite
    euler = diffusers.EulerDiscreteScheduler(
        len(table), trained_betas=table, use_karras_sigmas=True, prediction_type=prediction
    )
    euler.set_timesteps(7)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    network = model.network.module
    inside = [i for i, sigma in enumerate(euler.sigmas[:-1]) if model.sigma_min <= sigma <= model.sigma_max]
    assert len(inside) >= 5
    for i in inside:
        sigma, n = euler.sigmas[i], euler.timesteps[i]
        noisy = x * (1 + sigma)
        euler._step_index = i
        raw = network(euler.scale_model_input(noisy, n), n).sample
        close(model(noisy, sigma), euler.step(raw, n, noisy).pred_original_sample, 1e-4)


@torch.no_grad()
def test_at_the_schedules_points_the_time_is_whole() -> None:
    model = DDPMPrecond(torch.nn.Linear(1, 1))
    assert torch.allclose(model.step(model.levels), torch.arange(1000.0), atol=2e-3)
    beyond = torch.tensor([0.0, 1e-4, 1e6])
    assert model.step(beyond).tolist() == [0, 0, 999]


def test_a_tuned_folder_is_stored_and_read_without_importing_diffusers(tmp_path: Path) -> None:
    """The class of diffusers' network is the only one that a stored model imports."""
    model = load(written(tmp_path / "pipeline", BETAS["cosine"], num_class_embeds=3))
    again = load(model.save(tmp_path / "model"))
    x, labels = torch.ones(2, 1, 8, 8), torch.tensor([0, 2])
    assert torch.equal(again(x, 1.7, labels), model(x, 1.7, labels))
    assert torch.equal(again.levels, model.levels)
    with pytest.raises(UserError, match="3 labels for 3 classes, and none for no label"):
        model(x, 1.7)


def test_layouts_of_a_folder(tmp_path: Path) -> None:
    """A pipeline, its UNet's folder, the flat layout of old uploads, and a UNet alone, which assumes."""
    pipeline = written(tmp_path / "pipeline", BETAS["scaled"])
    flat = tmp_path / "flat"
    shutil.copytree(pipeline / "unet", flat)
    shutil.copy(pipeline / "scheduler/scheduler_config.json", flat)
    shutil.copy(pipeline / "model_index.json", flat)
    levels = load(pipeline).levels
    assert torch.equal(load(pipeline / "unet").levels, levels)
    assert torch.equal(load(flat).levels, levels)
    shutil.copytree(pipeline / "unet", tmp_path / "alone")
    alone = load(tmp_path / "alone")
    close(alone.levels.log(), DDPMPrecond(torch.nn.Linear(1, 1)).levels.log(), 1e-4)
    assert "DDPM" in alone.card.assumed[0]


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample' is not known"),
        ("scheduler/scheduler_config.json", {"_class_name": "ScoreSdeVeScheduler"}, "ScoreSdeVeScheduler"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDPMPipeline"}, "'DDPMPipeline' is not known"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "no such"}, "no such"),
        ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "not an image network"),
        ("unet/config.json", {"sample_size": None}, "does not say how large"),
        ("unet/config.json", {"block_out_channels": [8, 24]}, "cannot be read|do not fit"),
        ("unet/config.json", {"block_out_channels": [80_000, 80_000]}, "weights, there are"),
        ("unet/config.json", {"layers_per_block": 10**30}, "layers_per_block is 1000"),
        ("unet/config.json", {"layers_per_block": "2"}, "no network is built"),
        ("unet/config.json", {"dropout": math.nan}, "cannot be called"),
        ("unet/config.json", {"freq_shift": [0]}, "cannot be called"),
        ("unet/config.json", {"norm_eps": {}}, "cannot be called"),
        ("unet/config.json", {"sample_size": "8"}, "does not say how large"),
        ("unet/config.json", {"sample_size": [8, 8, 8]}, "does not say how large"),
        ("unet/config.json", {"sample_size": 10**9}, "does not say how large"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "EDMEulerScheduler", "sigma_data": [0.5]},
            "sigma_data is",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "CMStochasticIterativeScheduler"},
            "sigma_data is",
        ),
        ("unet/diffusion_pytorch_model.safetensors", None, "there is no diffusion_pytorch_model"),
        ("unet/config.json", None, "config.json cannot be read"),
    ],
)
def test_what_is_not_known_is_one_line(file: str, change: Any, said: str, tmp_path: Path) -> None:
    path = written(tmp_path / "pipeline") / file
    if change is None:
        path.unlink()
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path / "pipeline")
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_model_folder(tmp_path: Path) -> None:
    from consistune.interop.checkpoints import import_checkpoint

    pipeline = written(tmp_path / "pipeline")
    said = import_checkpoint(pipeline, tmp_path / "model")
    assert "ddpm preconditioning, images [1, 8, 8]" in said
    assert store.is_model_folder(tmp_path / "model")


# Out -------------------------------------------------------------------------------------------------------


def tuned(model: Preconditioned, **card: Any) -> Preconditioned:
    """The model as a training leaves it: with the card of a consistency model."""
    redraw_weights(model, 0)
    model.card = model.card.without("objective").updated(objective="consistency", **card)
    return model.eval()


def reopened(model: Preconditioned, folder: Path) -> Any:
    """The exported pipeline, loaded by diffusers itself."""
    out = export_model(model.save(folder / "model"), folder / "out", "diffusers")
    own = {"custom_pipeline": str(out), "trust_remote_code": True} if (out / "pipeline.py").exists() else {}
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(out), local_files_only=True, **own)
    pipe.set_progress_bar_config(disable=True)
    return pipe


FORMS = {
    "consistency": lambda: wrap(unet(num_class_embeds=4, in_channels=3, out_channels=3), (3, 8, 8), 3),
    "epsilon": lambda: DDPMPrecond(wrap(unet(), (1, 8, 8)).network),
    "v": lambda: DDPMPrecond(wrap(unet(num_class_embeds=3), (1, 8, 8), 3).network, "v_prediction"),
    "ours": lambda: store.build(
        {
            "network": {"kind": "mlp", "image_shape": (1, 8, 8), "width": 32, "num_classes": 3},
            "precond": {"kind": "edm"},
        }
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_tuned_model_samples_inside_diffusers_as_here(form: str, tmp_path: Path) -> None:
    model = tuned(FORMS[form](), mid_t=(0.8,))
    pipe = reopened(model, tmp_path)
    expected_class = "ConsistencyModelPipeline" if form == "consistency" else "FewStepsPipeline"
    assert type(pipe).__name__ == expected_class
    noise = torch.randn(2, 2, *model.image_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([2, 1]) if model.num_classes else None
    blocks = iter(noise)
    own = Multistep()(model, EDM(), lambda *shape: next(blocks), model.image_shape, labels)
    options = {} if labels is None else {"class_labels": labels.tolist()}
    theirs = pipe(2, latents=noise[0].clone(), output_type="pt", **options).images
    close(theirs, (own.clamp(-1, 1) + 1) / 2, 2e-5)


def test_a_network_of_ours_loads_in_a_fresh_process(tmp_path: Path) -> None:
    """diffusers finds the class of the network only where its module has been imported."""
    out = export_model(tuned(FORMS["ours"]()).save(tmp_path / "model"), tmp_path / "out", "diffusers")
    code = (
        "import sys; from diffusers import DiffusionPipeline as P; f = sys.argv[1]\n"
        "pipe = P.from_pretrained(f, custom_pipeline=f, trust_remote_code=True, local_files_only=True)\n"
        "print(pipe(2, output_type='pt').images.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True)
    assert done.stdout.strip() == "torch.Size([2, 1, 8, 8])", done.stderr


def test_a_learned_variance_is_left_out(tmp_path: Path) -> None:
    network = {"kind": "adm", "image_shape": (3, 8, 8), "out_channels": 6, "model_channels": 32}
    section = {"network": {**network, "channel_mult": (1, 2), "num_blocks": 1}, "precond": {"kind": "iddpm"}}
    model = tuned(store.build(section))
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own = Multistep()(model, EDM(), lambda *shape: noise, model.image_shape)
    theirs = reopened(model, tmp_path)(2, latents=noise.clone(), output_type="pt").images
    close(theirs, (own.clamp(-1, 1) + 1) / 2, 2e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["mlp", "patch-unet", "dit", "song", "adm", "edm2"])
def test_our_networks_compute_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    from consistune.interop.diffusers_network import Network

    sizes = {
        "mlp": {"width": 32, "blocks": 1},
        "patch-unet": {"patch": 2, "model_channels": 16},
        "dit": {"patch": 2, "width": 32, "blocks": 1, "heads": 2},
        "adm": {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1},
    }
    small = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
    section = {"kind": kind, "image_shape": [3, 8, 8], "num_classes": 3, **sizes.get(kind, small)}
    network = Network(network=section).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    x, times, labels = torch.randn(2, 3, 8, 8, generator=generator), torch.tensor([0.3, 0.7]), torch.arange(2)
    with torch.no_grad():
        expected = network(x, times, labels).sample
        half = network.to(dtype)(x.to(dtype), times, labels).sample
    assert half.dtype == dtype
    assert float((half.float() - expected).abs().max()) < 0.05 * float(expected.abs().max())


@pytest.mark.parametrize("label", [1.5, "1", [0, 1, 2], 3, True])
def test_labels_that_are_none_are_refused(label: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="integers in 0 … 2"):
        reopened(tuned(FORMS["ours"]()), tmp_path)(2, class_labels=label)


def test_a_consistency_pipeline_starts_at_its_own_highest_level(tmp_path: Path) -> None:
    scheduler = diffusers.CMStochasticIterativeScheduler(40, sigma_min=0.002, sigma_max=20.0)
    network = unet(in_channels=3, out_channels=3)
    diffusers.ConsistencyModelPipeline(network, scheduler).save_pretrained(tmp_path / "out")
    model = load(tmp_path / "out")
    assert default_sampler(model, 1).times(EDM()) == [20.0]
    assert json.loads(metadata(model)["sigmas"])[0] == 20.0
    with pytest.raises(ValueError, match="between 20 and 0"):
        default_sampler(model, 2, [30.0])


def test_a_tuned_pipeline_starts_where_its_training_did(tmp_path: Path) -> None:
    """DDPM's form with scaled betas is for levels up to 15; a training here learns all up to 80."""
    model = load(written(tmp_path / "ddpm", BETAS["scaled"]))
    assert model.sigma_max < 20
    assert default_sampler(model, 4).times(EDM())[0] == pytest.approx(model.sigma_max)
    model.card = model.card.without("objective").updated(objective="consistency", data="mine")
    assert default_sampler(model, 1).times(EDM()) == [80.0]
    assert json.loads(metadata(model)["sigmas"])[0] == 80.0


def test_the_second_step_is_the_cards_and_a_generator_repeats_it(tmp_path: Path) -> None:
    model = tuned(FORMS["epsilon"](), mid_t=(0.8,))
    pipe = reopened(model, tmp_path)
    draws = torch.Generator().manual_seed(3)
    expected = Multistep((0.8,))(
        model, EDM(), lambda *shape: torch.randn(2, *shape, generator=draws), model.image_shape
    )
    images = [
        pipe(2, generator=torch.Generator().manual_seed(3), num_inference_steps=2, output_type="pt").images
        for _ in range(2)
    ]
    assert torch.equal(*images)
    close(images[0], (expected.clamp(-1, 1) + 1) / 2, 2e-5)
    assert pipe(1).images[0].size == (8, 8)
    with pytest.raises(ValueError, match="takes 1 … 2 steps, got 3"):
        pipe(1, num_inference_steps=3)
    with pytest.raises(ValueError, match="has no classes"):
        pipe(1, class_labels=1)


def test_a_pipeline_that_went_out_comes_in_again(tmp_path: Path) -> None:
    model = tuned(FORMS["consistency"]())
    again = load(export_model(model.save(tmp_path / "model"), tmp_path / "out", "diffusers"))
    x, labels = torch.ones(3, 3, 8, 8), torch.tensor([0, 1, 2])
    assert (again.num_classes, again.card.is_diffusion) == (3, False)
    assert torch.equal(again(x, 5.0, labels), model(x, 5.0, labels))


@pytest.mark.parametrize(
    ("card", "said"),
    [({"objective": "diffusion"}, "is a diffusion model"), ({"latents": {}}, "makes latents")],
)
def test_a_model_that_has_no_pipeline_is_refused(card: Any, said: str, tmp_path: Path) -> None:
    model = FORMS["ours"]()
    model.card = model.card.updated(**{"objective": "consistency", **card})
    with pytest.raises(UserError, match=said):
        export_model(model.save(tmp_path / "model"), tmp_path / "out", "diffusers")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_pipeline_of_ours_is_not_taken_for_a_diffusion_model(tmp_path: Path) -> None:
    """It has no scheduler, and what its network predicts is not ε of DDPM."""
    out = export_model(tuned(FORMS["epsilon"]()).save(tmp_path / "model"), tmp_path / "out", "diffusers")
    for folder in (out, out / "unet"):
        with pytest.raises(UserError, match="without a scheduler does not say what its network predicts"):
            load(folder)
