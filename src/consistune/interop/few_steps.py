"""A pipeline of diffusers for models of one or a few steps; `consistune export` copies it as pipeline.py.

pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
image = pipe(generator=torch.Generator().manual_seed(0)).images[0]
"""

import json
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class FewStepsPipeline(DiffusionPipeline):  # type: ignore[misc]
    """x ← D(σ_1·ε; σ_1); for each further level x ← D(x + σ·ε; σ), D = c_skip·x + c_out·F(c_in·x, c_noise).

    Args:
        unet: F(x [B, C, H, W], times [B], labels [B]), whose result has the images as `sample`.
        form: JSON text, for a pipeline's configuration holds no lists: {"levels": one row
            (σ, c_skip, c_out, c_in, c_noise) a step, from the highest level down; "image_shape": (C, H, W);
            "classes": the number of labels that may be given, 0: none}.
    """

    def __init__(self, unet: Any, form: str = "{}") -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(form=form)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Any = None,
        num_inference_steps: int = 1,
        generator: Any = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images, "pil", or "np" and "pt" in [0, 1].

        class_labels: one integer, or one for each image; None: at random. latents: standard normals
        [batch_size, C, H, W]. Raises ValueError for more steps than there are levels, and for wrong labels.
        """
        form = json.loads(self.config.form)
        rows = form["levels"]
        if not 1 <= num_inference_steps <= len(rows):
            raise ValueError(f"this model takes 1 … {len(rows)} steps, got {num_inference_steps}")
        device, dtype = self._execution_device, self.unet.dtype
        shape = (batch_size, *form["image_shape"])
        labels = _labels(form["classes"], class_labels, batch_size, generator, device)
        x = torch.zeros(shape, device=device)
        for sigma, c_skip, c_out, c_in, c_noise in rows[:num_inference_steps]:
            noise = randn_tensor(shape, generator, device, torch.float32) if latents is None else latents
            x, latents = x + sigma * noise.to(x), None
            times = torch.full((batch_size,), c_noise, device=device)
            more = () if labels is None else (labels,)
            raw = self.unet((c_in * x).to(dtype), times, *more).sample
            x = c_skip * x + c_out * raw[:, : x.shape[1]].to(x)  # without a learned variance
        images: Any = (x.clamp(-1, 1) + 1) / 2
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images) if return_dict else (images,)


def _labels(classes: int, given: Any, count: int, generator: Any, device: Any) -> torch.Tensor | None:
    if classes == 0:
        if given is not None:
            raise ValueError("this model has no classes")
        return None
    if given is None:
        first = generator[0] if isinstance(generator, list) else generator
        place = "cpu" if first is None else first.device
        return torch.randint(classes, (count,), generator=first, device=place).to(device)
    told = f"class_labels={given!r:.60}: give one or {count} integers in 0 … {classes - 1}"
    try:
        labels = torch.as_tensor(given, device=device).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(told) from error
    whole = labels.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not whole or len(labels) not in (1, count) or bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(told)
    return labels.expand(count)
