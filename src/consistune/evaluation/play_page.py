"""The playground's page: controls, pictures and a download for each model, made of Gradio's parts.

Nothing is sent anywhere: Gradio's analytics are off, and the page uses the system's fonts.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consistune.errors import UserError
from consistune.evaluation.play import MOST_PICTURES, STRONGEST, Playground, Wish
from consistune.pages.page import counted

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio

IN_TURN = -1
"""The value of the class "all in turn"."""
STYLE = """
.sheet img {image-rendering: pixelated; object-fit: contain}
.command code {overflow-wrap: anywhere; white-space: pre-wrap}
footer {display: none !important}
"""
FONTS = ("system-ui", "sans-serif")


def page(games: Sequence[Playground]) -> gradio.Blocks:
    """The page: a tab for each model, where there are several."""
    with gradio.Blocks(title="consistune play", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        for game in games:
            if len(games) == 1:
                Panel(game, blocks)
                continue
            with gradio.Tab(game.name):
                Panel(game, blocks)
    return blocks


def serve(blocks: gradio.Blocks, host: str, port: int) -> str:
    """Start the server in threads of its own; returns the address."""
    theme = gradio.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))
    _, address, _ = blocks.queue(default_concurrency_limit=1).launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        ssr_mode=False,
        footer_links=[],
        run_history=False,
        theme=theme,
        css=STYLE,
    )
    return address


class Panel:
    """The controls and pictures of one model."""

    def __init__(self, game: Playground, blocks: gradio.Blocks) -> None:
        self.game = game
        self.folder = tempfile.TemporaryDirectory(prefix="consistune-play-")
        gradio.Markdown(f"## {game.name}\n{_about(game)}")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=280):
                self._controls()
            with gradio.Column(scale=2, min_width=300):
                self._results()
        self._events(blocks)

    def _controls(self) -> None:
        game = self.game
        self.seed = gradio.Number(0, label="Seed", precision=0)
        self.count = gradio.Slider(1, MOST_PICTURES, 16, step=1, label="Pictures")
        choices = [("all in turn", IN_TURN), *((name, i) for i, name in enumerate(game.classes))]
        self.label = gradio.Dropdown(choices, value=IN_TURN, label="Class", visible=bool(game.classes))
        if len(game.steps) <= 4:
            self.steps: Any = gradio.Radio(game.steps, value=game.usual_steps, label="Steps")
        else:
            self.steps = gradio.Slider(1, game.steps[-1], game.usual_steps, step=1, label="Steps")
        self.guidance = gradio.Slider(
            1, STRONGEST, 1, step=0.1, label="Guidance (1: none)", visible=game.guided
        )
        self.between = gradio.Checkbox(False, label="Interpolate to another seed")
        self.other = gradio.Number(1, label="Other seed", precision=0, visible=False)
        with_teacher = game.teacher is not None
        self.teacher = gradio.Checkbox(with_teacher, label="Teacher beside it", visible=with_teacher)
        with gradio.Row():
            self.again = gradio.Button("Draw", variant="primary", min_width=120)
            self.next = gradio.Button("Next seeds", min_width=120)

    def _results(self) -> None:
        with gradio.Row():
            _, self.words, self.picture = self._sheet(True)
            self.beside, self.teacher_words, self.teacher_picture = self._sheet(self.game.teacher is not None)
        self.download = gradio.DownloadButton("Download PNG")
        self.command = gradio.Code(
            label="The same pictures without this page",
            language=None,
            lines=1,
            interactive=False,
            show_line_numbers=False,
            wrap_lines=True,
            elem_classes="command",
        )

    def _sheet(self, visible: bool) -> tuple[Any, Any, Any]:
        """A column of a caption and a picture."""
        with gradio.Column(min_width=240, visible=visible) as column:
            words = gradio.Markdown()
            picture = gradio.Image(
                type="filepath",
                format="png",
                interactive=False,
                show_label=False,
                buttons=["fullscreen"],
                elem_classes="sheet",
            )
        return column, words, picture

    def _events(self, blocks: gradio.Blocks) -> None:
        given = [self.seed, self.count, self.label, self.steps, self.guidance]
        given += [self.between, self.other, self.teacher]
        shown = [self.words, self.picture, self.beside, self.teacher_words, self.teacher_picture]
        shown += [self.command, self.download]
        together: dict[str, Any] = {"concurrency_id": "draw", "show_progress": "minimal"}
        gradio.on(
            [
                blocks.load,
                self.again.click,
                self.seed.submit,
                self.other.submit,
                self.count.release,
                self.guidance.release,
                self.label.input,
                self.steps.input,
                self.teacher.input,
            ],
            self.draw,
            given,
            shown,
            trigger_mode="always_last",
            **together,
        )
        self.between.input(
            lambda on: gradio.update(visible=on), self.between, self.other, show_progress="hidden"
        ).then(self.draw, given, shown, **together)
        self.next.click(
            lambda seed, count: int(seed or 0) + int(count), [self.seed, self.count], self.seed
        ).then(self.draw, given, shown, **together)

    def draw(
        self,
        seed: float | None,
        count: float,
        label: int,
        steps: float,
        guidance: float,
        between: bool,
        other: float | None,
        teacher: bool,
    ) -> tuple[Any, ...]:
        """The values of the page's pictures, words, command and download for those of its controls."""
        if seed is None or (between and other is None):
            raise gradio.Error("write a number as the seed", print_exception=False)
        if None in (count, steps, guidance):
            raise gradio.Error("choose pictures, steps and guidance", print_exception=False)
        wish = Wish(
            int(seed),
            int(count),
            None if label == IN_TURN else label,
            int(steps),
            guidance,
            int(other) if between and other is not None else None,
            teacher,
        )
        try:
            drawn = self.game.draw(wish)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        for old in Path(self.folder.name).iterdir():
            old.unlink()
        path = self._file(drawn.name, drawn.own.png)
        words = f"**{self.game.name}**: {drawn.own.words}"
        beside: tuple[Any, ...] = (gradio.update(visible=False), None, None)
        if drawn.teacher is not None:
            file = self._file(f"teacher-{drawn.name}", drawn.teacher.png)
            beside = (gradio.update(visible=True), f"**teacher**: {drawn.teacher.words}", file)
        return words, path, *beside, drawn.command, path

    def _file(self, name: str, png: bytes) -> str:
        """The PNG as a file in a folder that goes when the program ends; Gradio takes a copy."""
        path = Path(self.folder.name) / name
        path.write_bytes(png)
        return str(path)


def _about(game: Playground) -> str:
    """What the model is, and how fast."""
    shape = "×".join(map(str, game.picture_shape[1:]))
    kind = "diffusion model" if game.model.card.is_diffusion else "one-step model"
    took = 1000 * game.latency()
    steps = counted(game.usual_steps, "step")
    return f"{shape} pixels, {kind}, on {game.device}: **one picture in {steps} takes {took:,.0f} ms**."
