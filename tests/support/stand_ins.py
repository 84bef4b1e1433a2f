"""Small files under the names that the pages use, so that their commands can be run."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import consistune as ct
from consistune.nn.precond import EDMPrecond
from consistune.nn.song import SongUNet
from tests.support.curves import write_run
from tests.support.forge import write_snapshot
from tests.support.inception import write_inception
from tests.support.makers import cifar_files, class_folders, edm_zip, encoded, imagenet_batches, pixels, tar

LABELS = [k % 3 for k in range(24)]


def photos(path: Path) -> None:
    """Two classes of twelve images of 8×10 pixels in colour, dark and light."""
    random = np.random.default_rng(0)
    for name, base in (("dark", 40), ("light", 200)):
        (path / name).mkdir(parents=True)
        for i in range(12):
            image = random.normal(base, 20, (8, 10, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(image).save(path / name / f"{i}.png")


def cifar(path: Path) -> None:
    tar(path, cifar_files(pixels(40, 3, 32, 32), [k % 10 for k in range(40)], 2, 10))


def prepared_cifar(path: Path) -> None:
    """As `data prepare` makes it of `cifar`."""
    from consistune.data.prepare.run import PrepareOptions, prepare

    path.parent.mkdir(exist_ok=True)
    archive = path.parent / "cifar.tar.gz"
    cifar(archive)
    prepare(archive, path, PrepareOptions())


def imagenet(path: Path) -> None:
    imagenet_batches(path, pixels(12, 3, 64, 64), [k % 3 + 1 for k in range(12)], True, 4)


def kaggle(path: Path) -> None:
    folder = path / "ILSVRC" / "Data" / "CLS-LOC"
    class_folders(folder / "train", pixels(6, 70, 80, 3), ["n01", "n02"] * 3)
    (folder / "val").mkdir()
    (folder / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(encoded(pixels(1, 70, 80, 3)[0], "JPEG"))
    (path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n02 1 2 3 4\n"
    )


def tiny_imagenet(path: Path) -> None:
    root = path.parent / "tiny-imagenet-200"
    for wnid in ("n01", "n02"):
        class_folders(root / "train" / wnid, pixels(3, 64, 64, 3), ["images"] * 3)
    class_folders(root / "val", pixels(1, 64, 64, 3), ["images"])
    (root / "val" / "val_annotations.txt").write_text("0000.png\tn02\t0\t0\t63\t63\n")
    with tarfile.open(path, "w:xz") as archive:
        archive.add(root, root.name)
    shutil.rmtree(root)


def zipped(*shape: int) -> Callable[[Path], None]:
    """24 images in three classes and eight groups."""

    def make(path: Path) -> None:
        edm_zip(path, pixels(24, *shape), LABELS, group=[k // 3 for k in range(24)])

    return make


def edm_snapshot(path: Path) -> None:
    """EDM's file, with a network of 8 channels."""
    torch.manual_seed(0)
    network = SongUNet(
        (3, 32, 32), 0, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], augment_dim=9
    )
    write_snapshot(EDMPrecond(network), path)


def inception(path: Path) -> None:
    write_inception(path.parent, path.name)


def model(path: Path, *keys: str) -> None:
    """The folder of a run of digits-edm: two steps, a checkpoint at each."""
    from typer.testing import CliRunner

    from consistune.cli.main import app

    few = ["train.images=128", "train.batch=64", "train.checkpoint_images=64", "train.trackers=[]"]
    result = CliRunner().invoke(app, ["train", "digits-edm", "--out", str(path), *few, *keys])
    assert result.exit_code == 0, result.output


def snapshots(path: Path) -> None:
    model(
        path, "train.ema=[{kind: power, std: 0.05}, {kind: power, std: 0.1}]", "train.ema_snapshot_images=64"
    )


def tuned(path: Path) -> None:
    ct.tune(ct.train("mlp", "digits", images=64, batch=64), "digits", images=64, batch=64, out=path)


def colour_model(path: Path) -> None:
    """Three classes of 16×16 pixels."""
    data = ct.as_split(pixels(24, 3, 16, 16), torch.tensor(LABELS))
    ct.train({"kind": "patch-unet", "model_channels": 8}, data, images=64, batch=32, out=path)


def samples(path: Path) -> None:
    np.savez(path, arr_0=pixels(16, 8, 8, 1))


def hub_folder(path: Path) -> None:
    """A pipeline's folder of diffusers, with a UNet2DModel of 32 channels."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(path)


def onnx_model(path: Path) -> None:
    ct.export(ct.train("mlp", "digits", images=64, batch=64, conditional=False), path)


def made_up_run(path: Path) -> None:
    write_run(path, ord(path.name[-1]), "emoji64-latent-sct")


FILES: dict[str, Callable[[Path], object]] = {
    "photos": photos,
    "cifar-10-python.tar.gz": cifar,
    "data/cifar10": prepared_cifar,
    "Imagenet64_train_npz": imagenet,
    "imagenet-kaggle": kaggle,
    "tiny-imagenet-200.tar.xz": tiny_imagenet,
    "mnist10k.zip": zipped(32, 32),
    "emoji32.zip": zipped(32, 32, 3),
    "emoji64.zip": zipped(64, 64, 3),
    "edm-cifar10-32x32-uncond-vp.pkl": edm_snapshot,
    "inception-2015-12-05.pt": inception,
    "runs/NAME": model,
    "runs/mine": tuned,
    "runs/demo/ect": model,
    "runs/demo/sct": model,
    "runs/emoji64-edm2": snapshots,
    "samples.npz": samples,
    "hf-folder": hub_folder,
    "digits.onnx": onnx_model,
    **dict.fromkeys(("runs/a", "runs/b", "runs/c", "runs/d"), made_up_run),
}
"""The name on a page → what makes it."""
OF_PAGES: dict[str, dict[str, Callable[[Path], object]]] = {"deploy.md": {"runs/photos": colour_model}}
"""Names that other pages make themselves."""
