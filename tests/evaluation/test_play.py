"""The playground: what it draws is what the command that it shows draws, and wrong wishes are one line."""

import copy
import io
import itertools
import shlex
import shutil
import socket
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from consistune.cli import main, play
from consistune.core.rng import Between
from consistune.errors import UserError
from consistune.evaluation.play import MOST_STEPS, Playground, Wish
from consistune.models import sample
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.pages.pictures import grid


def make(card: ModelCard, classes: int = 3, seed: int = 0, side: int = 8, **options: bool) -> EDMPrecond:
    torch.manual_seed(seed)
    network = ResidualMLP((1, side, side), num_classes=classes, width=16, blocks=1, **options)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model = EDMPrecond(network).eval()
    model.card = card
    return model


DIFFUSION = ModelCard(objective="diffusion")
FEW_STEPS = ModelCard(objective="consistency", mid_t=(0.8,), class_names=("a", "b", "c"))


@pytest.fixture
def game(tmp_path: Path) -> Playground:
    model = make(FEW_STEPS)
    model.save(tmp_path / "my model")
    return Playground(str(tmp_path / "my model"), model, make(DIFFUSION, seed=1))


def pixels(png: bytes, width: int) -> Tensor:
    """A PNG at the size at which its pictures stand beside each other without enlargement."""
    shown = torch.from_numpy(np.array(Image.open(io.BytesIO(png))))
    scale = shown.shape[1] // width
    assert torch.equal(shown, shown[::scale, ::scale].repeat_interleave(scale, 0).repeat_interleave(scale, 1))
    return shown[::scale, ::scale]


@pytest.mark.parametrize(
    "wish",
    [
        Wish(),
        Wish(seed=40, count=5, label=2, steps=2),
        Wish(count=9, steps=4, guidance=1.5),
    ],
)
def test_the_command_draws_the_same_pictures(
    wish: Wish, game: Playground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = game.draw(wish)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main.app, shlex.split(drawn.command)[1:])
    assert done.exit_code == 0, done.output
    columns = {16: 4, 5: 3, 9: 3}[wish.count]
    width = columns * 9 - 1
    assert torch.equal(pixels(drawn.own.png, width), pixels((tmp_path / drawn.name).read_bytes(), width))
    assert f"{wish.steps} evaluation" in drawn.own.words


def test_the_command_of_one_step_of_a_phased_model_says_so(game: Playground) -> None:
    phased = copy.deepcopy(game.model)
    phased.card = ModelCard(objective="consistency", edges=(0.8,))
    assert "--steps 1" in Playground("runs/phased", phased).command(Wish(steps=1))


def test_the_lines_of_python_draw_the_same_pictures(game: Playground) -> None:
    drawn = game.draw(Wish(seed=3, other=8, count=4, steps=3, label=1, guidance=2.0))
    scope: dict[str, Tensor] = {}
    exec(drawn.command, scope)
    assert torch.equal(pixels(drawn.own.png, 17), grid(scope["images"])[0])
    first, *_, last = scope["images"]
    ends = sample(game.model, [3, 8], 3, 1, mid_t=game.middle_t(3), guidance=2.0)
    assert torch.equal(torch.stack([first, last]), ends)


def test_between_seeds_without_a_class_all_have_the_first_ones(game: Playground) -> None:
    way = [Between(4, 5, share) for share in (0.0, 0.5, 1.0)]
    assert torch.equal(sample(game.model, way), sample(game.model, way, condition=1))


def test_the_teacher_draws_the_same_seeds_and_class(game: Playground) -> None:
    drawn = game.draw(Wish(count=4, label=2, guidance=3.0, teacher=True))
    assert drawn.teacher is not None
    assert torch.equal(pixels(drawn.teacher.png, 17), grid(sample(game.teacher, range(4), condition=2))[0])
    assert "35 evaluations" in drawn.teacher.words
    assert game.draw(Wish(count=4)).teacher is None


def evaluations(game: Playground, steps: int) -> int:
    """How often the network is asked for one picture."""
    seen: list[object] = []
    hook = game.model.network.register_forward_hook(lambda *given: seen.append(given))
    game.draw(Wish(count=1, steps=steps))
    hook.remove()
    return len(seen)


def test_the_steps_are_those_that_the_model_can_take(game: Playground) -> None:
    assert [game.middle_t(steps) for steps in (1, 2, 3)] == [(), (0.8,), (2.0, 0.8)]
    for model in (game.model, make(ModelCard(objective="mean-velocity"), second_time=True)):
        own = Playground("x", model)
        assert [evaluations(own, steps) for steps in own.steps] == [1, 2, 3, 4]
        times = own.middle_t(MOST_STEPS)
        assert all(80 > a > b > 0 for a, b in itertools.pairwise(times))
    high = Playground("x", make(ModelCard(objective="consistency", mid_t=(22.0,))))
    assert [evaluations(high, steps) for steps in high.steps] == [1, 2, 3]  # a third time would be 137
    truncated = Playground("x", make(ModelCard(objective="truncated", lowest=1.0)))
    assert [evaluations(truncated, steps) for steps in truncated.steps] == [1, 2, 3, 4]
    phased = Playground("x", make(ModelCard(objective="consistency", edges=(0.5, 5.0))))
    assert [evaluations(phased, steps) for steps in phased.steps] == [1, 3]
    teacher = Playground("x", make(DIFFUSION))
    assert evaluations(teacher, teacher.usual_steps) == 35


def test_guidance_needs_a_trained_unlabelled_branch(game: Playground) -> None:
    assert game.guided
    assert not Playground("x", make(FEW_STEPS.updated(label_dropout=0.0))).guided
    plain = Playground("x", make(FEW_STEPS, classes=0))
    assert not plain.guided
    with pytest.raises(UserError, match=r"Guidance: 1\.5 is not between 1 and 1"):
        plain.draw(Wish(guidance=1.5))


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Wish(count=0), "Pictures: 0"),
        (Wish(count=65), "Pictures: 65"),
        (Wish(seed=-1), "Seed: -1"),
        (Wish(seed=1 << 70), "Seed"),
        (Wish(other=-4), "Other seed: -4"),
        (Wish(label=3), "Class: 3 is not between 0 and 2"),
        (Wish(guidance=float("nan")), "Guidance: nan"),
        (Wish(guidance=9.0), "Guidance: 9"),
        (Wish(steps=5), r"Steps: 5 is not one of \[1, 2, 3, 4\]"),
        (Wish(teacher=True), "there is no teacher"),
    ],
)
def test_a_wish_that_cannot_be_drawn_is_one_line(wish: Wish, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Playground("x", make(FEW_STEPS)).draw(wish)


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        (make(FEW_STEPS), "is no diffusion model"),
        (make(DIFFUSION, classes=0), "other classes: 0, the model has 3"),
        (make(DIFFUSION, side=4), r"other images: \[1, 4, 4\]"),
    ],
)
def test_a_teacher_of_other_pictures_is_refused(teacher: EDMPrecond, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Playground("x", make(FEW_STEPS), teacher)


def test_what_is_no_picture_is_refused() -> None:
    model = EDMPrecond(ResidualMLP((2, 4, 4), width=8, blocks=1))
    model.card = FEW_STEPS
    with pytest.raises(UserError, match="2 channels are no pictures"):
        Playground("x", model)


# The command -----------------------------------------------------------------------------------------------


def test_without_gradio_the_command_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "consistune\[play\]"'):
        play.play(Path("emoji64"))


def test_options_are_checked_before_the_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(play, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="--teacher: belongs to a model"):
        play.play(teacher=Path("x"))
    with pytest.raises(UserError, match=r"--host: '256\.1\.1\.1' is no address"):
        play.play(host="256.1.1.1")
    with pytest.raises(UserError, match=r"--host: cannot answer on 192\.0\.2\.1"):  # reserved for examples
        play.play(host="192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: cannot answer on 127.0.0.1:{port} .*--port {port + 1}"):
            play.play(port=port)
    free = port
    with pytest.raises(UserError, match="no such model folder"):
        play.play(Path("no-such-model"), port=free)


# The page --------------------------------------------------------------------------------------------------


@pytest.fixture
def page(game: Playground):
    """The module of the page, and an open page in a headless Chromium."""
    for package in ("gradio", "playwright"):
        if util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install gradio playwright")
    from playwright.sync_api import Error, sync_playwright

    from consistune.evaluation import play_page

    with sync_playwright() as tool:
        try:
            browser = tool.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        except Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        blocks = play_page.page([game])
        address = play_page.serve(blocks, "127.0.0.1", port)
        opened = browser.new_page(viewport={"width": 390, "height": 900})
        opened.visited = []
        opened.on("request", lambda request: opened.visited.append(request.url))
        opened.goto(address)
        opened.get_by_text("35 evaluations a picture; 16 pictures in").wait_for()
        yield opened
        browser.close()
        blocks.close()


def chromium() -> str | None:
    """The system's Chromium; None: the one that playwright has installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.browser
def test_the_page_draws_what_is_clicked(page, game: Playground) -> None:
    def command() -> str:
        return page.locator(".command .cm-content").inner_text()

    def wait_for(words: str) -> None:
        page.locator(".command", has_text=words).wait_for()

    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".sheet img").count() == 2
    page.get_by_label("Teacher beside it").uncheck()
    page.get_by_text("35 evaluations").wait_for(state="hidden")
    page.get_by_role("radio", name="3").check()
    wait_for("--steps 3 --mid-t 2,0.8")
    page.get_by_label("Class").click()
    page.get_by_role("option", name="b").click()
    wait_for("--classes 1")
    page.get_by_role("button", name="Next seeds").click()
    wait_for("--seeds 16-31")
    assert page.get_by_label("Seed", exact=True).input_value() == "16"
    with page.expect_download() as download:
        page.get_by_text("Download PNG").click()
    shown = game.draw(Wish(seed=16, label=1, steps=3))
    assert Path(download.value.path()).read_bytes() == shown.own.png
    assert download.value.suggested_filename == shown.name
    assert command() == shown.command
    page.get_by_label("Interpolate to another seed").check()
    page.get_by_label("Other seed", exact=True).fill("5")
    page.get_by_role("button", name="Draw").click()
    wait_for("Between(16, 5, i / 15)")
    page.get_by_label("Seed", exact=True).fill("")
    page.get_by_role("button", name="Draw").click()
    page.get_by_text("write a number as the seed").wait_for()
    hosts = {url.split("/")[2] for url in page.visited if url.startswith("http")}
    assert hosts == {page.url.split("/")[2]}  # nothing is asked of another machine
