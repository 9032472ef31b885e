"""The page: controls on one side, what comes of them on the other. Gradio serves it, and tells each browser."""

import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from autolora_jax.config import ConfigError
from autolora_jax.pictures import read_settings
from autolora_jax.schedules import SOLVERS, own_scheduler
from autolora_jax.settings.pictures import GenerateConfig
from autolora_jax.settings.rules import ROLES, RULES
from autolora_jax.ui import copies
from autolora_jax.ui.controls import LARGEST_SEED, MOST_LORAS, Controls, LoraRow, of_settings
from autolora_jax.ui.studio import AXES, Event, Stopped, Studio

TITLE = "AutoLoRA"
PREVIEW_STEPS = 6
MOST_KEPT = 60  # pictures of the history that are shown
COPIES = ("Command", "Python", "Job: autolora batch job.yaml --out OUT")
COLOURS = {  # that can be read: Gradio's own are paler
    "button_primary_background_fill": "#4338ca",
    "button_primary_background_fill_hover": "#3730a3",
    "button_primary_text_color": "white",
    "button_cancel_background_fill": "#b91c1c",
    "button_cancel_background_fill_hover": "#991b1b",
    "button_cancel_text_color": "white",
}
COMPARED = ("Base model", "LoRA", "AutoLoRA")
CSS = """
#said {min-height: 1.6em}
.gradio-container {
    --block-info-text-color: #52525b; --block-label-text-color: #3f3f46; --input-placeholder-color: #6b7280;
    --pale: #52525b; --chosen: #3730a3;
}
.dark .gradio-container, .gradio-container.dark {
    --block-info-text-color: #d4d4d8; --block-label-text-color: #d4d4d8; --input-placeholder-color: #a1a1aa;
    --pale: #d4d4d8; --chosen: #c7d2fe;
}
.min_value, .max_value, .cm-gutters {color: var(--pale) !important}
button[role=tab][aria-selected=true] {color: var(--chosen) !important}
.gradio-container {max-width: 1400px !important}
footer {display: none !important}
#picture img, .contained img {width: 100%; height: 100%; object-fit: contain}
@media (max-width: 640px) {
    .gradio-container {padding: 8px !important}
    h1 {font-size: 1.3rem !important}
    #shown {order: -1}
    #picture {height: 340px !important}
}
"""
# What Gradio leaves without a role, or without a name: empty pictures, and pictures that open when they are clicked.
HEAD = """<script>
const LACKING = [['div.empty[aria-label]:not([role])', 'role', 'img'],
    ['button:has(> .image-frame):not([aria-label])', 'aria-label', 'Enlarge the picture']];
new MutationObserver(() => LACKING.forEach(([what, name, value]) =>
    document.querySelectorAll(what).forEach((found) => found.setAttribute(name, value))
)).observe(document, {childList: true, subtree: true});
</script>"""
NEW_SEED = f"() => Math.floor(Math.random() * {LARGEST_SEED})"


class Page:
    """The components, and what happens when they are used."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        flow = studio.pipe.canvas.scheduler.flow
        self.schedulers = [name for name in SOLVERS if name.startswith("flow") == flow]
        self.own_scheduler = own_scheduler(studio.pipe.canvas.scheduler)
        now = Controls.of(studio.start, studio.pipe.family.guidance_scale, studio.size, self.own_scheduler)
        with gr.Blocks(title=TITLE, analytics_enabled=False) as self.blocks:
            gr.Markdown(f"# {TITLE}\nA tuned model guided by the base model that it was tuned from.")
            with gr.Row(equal_height=True):
                self.prompt = gr.Textbox(now.prompt, label="Prompt", lines=2, scale=4, autofocus=True, elem_id="prompt")
                self.draw = gr.Button("Draw", variant="primary", scale=1, min_width=90, elem_id="draw")
                self.stop = gr.Button("Stop", variant="stop", scale=1, min_width=90, elem_id="stop")
            with gr.Row(elem_id="both"):
                with gr.Column(scale=2, min_width=300):
                    self.controls = self._controls(now)
                with gr.Column(scale=3, min_width=300, elem_id="shown"):
                    self.said = gr.HTML(_said("Ready."), elem_id="said")
                    with gr.Tabs():
                        self._tab_picture()
                        self._tab_compare()
                        self._tab_grid()
                        self._tab_history()
                        self._tab_copy()

    def serve(self, **options: Any) -> str:
        """Serves the page, with Gradio's options of `launch`; the address. Raises OSError where no port is free."""
        dark = {f"{name}_dark": value for name, value in COLOURS.items()}
        _, address, _ = self.blocks.launch(
            css=CSS,
            head=HEAD,
            theme=gr.themes.Default(primary_hue="indigo").set(**COLOURS, **dark),
            allowed_paths=[str(self.studio.folder.path.absolute())],
            footer_links=[],
            **options,
        )
        return str(address)

    # ---- what is set -------------------------------------------------------------------------------------------------

    def _controls(self, now: Controls) -> list[gr.components.Component]:
        """In the order of `_read`."""
        self.gamma = gr.Slider(
            0,
            4,
            now.gamma,
            step=0.05,
            label="γ",
            info="1: the LoRA as it is. Above: away from the base model",
            elem_id="gamma",
        )
        self.w = gr.Slider(
            0, 15, now.w, step=0.1, label="w", info="Classifier-free guidance of both models", elem_id="w"
        )
        self.live = gr.Checkbox(True, label=f"Draw when a slider is let go: {PREVIEW_STEPS} steps, then all")
        with gr.Row():
            seed = gr.Number(now.seed, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, elem_id="seed")
            other = gr.Button("Another", elem_id="another")
        self.scales: list[gr.Slider] = []
        rows: list[gr.components.Component] = []
        groups: list[gr.Group] = []
        with gr.Accordion("LoRAs", open=True):
            for i in range(MOST_LORAS):
                row = now.loras[i] if i < len(now.loras) else LoraRow()
                with gr.Group(visible=i <= len(now.loras)) as group:
                    source = gr.Textbox(row.source, label=f"LoRA {i + 1}", placeholder="path, folder or hub id")
                    scale = gr.Slider(-1, 2, row.scale, step=0.05, label="Scale", elem_id=f"scale-{i}")
                    role = gr.Dropdown(list(ROLES), value=row.role, label="Role", info=None if i else _ROLES)
                rows += [source, scale, role]
                self.scales.append(scale)
                groups.append(group)
            for filled, group in zip(rows[::3], groups[1:], strict=False):  # the next row comes when one is filled
                assert isinstance(filled, gr.Textbox)
                filled.change(lambda text: gr.update(visible=bool(text.strip())), filled, group, queue=False)
            upload = gr.UploadButton("Upload a LoRA", file_types=[".safetensors"])
        with gr.Accordion("More", open=False):
            negative = gr.Textbox(now.negative, label="Negative prompt")
            rule = gr.Dropdown(list(RULES), value=now.rule, label="Guidance")
            steps = gr.Slider(1, 100, now.steps, step=1, label="Steps")
            size = gr.Textbox(now.size, label="Size", info="WIDTHxHEIGHT in pixels")
            scheduler = gr.Dropdown(self.schedulers, value=now.scheduler, label="Solver")
            model = gr.Textbox(self.studio.start.model.source or "", label="Model", placeholder="the built-in one")
            load = gr.Button("Load the model")
        controls = [self.prompt, negative, self.gamma, self.w, seed, rule, steps, size, scheduler, *rows]
        other.click(None, None, seed, js=NEW_SEED, queue=False)
        upload.upload(self._uploaded, [upload, *rows[::3]], rows[::3], queue=False)
        self._load_from = (load, model, size)
        return controls

    def _uploaded(self, path: str, *sources: str) -> list[str]:
        """The file in the first empty row; in the last one where none is empty."""
        free = next((i for i, source in enumerate(sources) if not source.strip()), len(sources) - 1)
        return [path if i == free else source for i, source in enumerate(sources)]

    def _read(self, values: Sequence[Any]) -> Controls:
        plain, rows = values[: -3 * MOST_LORAS], values[-3 * MOST_LORAS :]
        each = (rows[3 * i : 3 * i + 3] for i in range(MOST_LORAS))
        loras = tuple(LoraRow(source or "", float(scale or 0), role) for source, scale, role in each)
        read = Controls._make([*plain, loras])  # a browser sends 1 for 1.0, and nothing for a number that was taken out
        return read._replace(gamma=float(read.gamma or 0), w=float(read.w or 0), seed=int(read.seed or 0))

    def _config(self, values: Sequence[Any]) -> GenerateConfig:
        return self._read(values).config(self.studio.start, self.studio.size, self.own_scheduler)

    # ---- what comes of it --------------------------------------------------------------------------------------------

    def _tab_picture(self) -> None:
        with gr.Tab("Picture"):
            picture = gr.Image(
                label="Picture", show_label=False, format="png", interactive=False, height=520, elem_id="picture"
            )

        def draw(*values: Any) -> Iterator[Any]:
            yield from self._shown(lambda config: self.studio.picture(config), values, lambda event: event.pictures[0])

        def preview(live: bool, *values: Any) -> Iterator[Any]:
            if live:
                drawn = lambda config: self.studio.picture(config, PREVIEW_STEPS)  # noqa: E731
                yield from self._shown(drawn, values, lambda event: event.pictures[0])
            else:
                yield _said("Ready."), gr.skip()

        outputs = [self.said, picture]
        self.draw.click(draw, self.controls, outputs, **_QUIET)
        self.prompt.submit(draw, self.controls, outputs, **_QUIET)
        for slider in (self.gamma, self.w, *self.scales):
            slider.release(preview, [self.live, *self.controls], outputs, **_QUIET)
        self.stop.click(self._stopped, None, self.said, queue=False)
        load, model, size = self._load_from
        load.click(self._changed_model, model, [self.said, size], **_QUIET)

    def _stopped(self) -> str:
        self.studio.stop()
        return _said("Stopping: a step, or what is being compiled, comes to its end.")

    def _changed_model(self, source: str) -> Iterator[Any]:
        yield _said(f"Loading {source or 'the built-in model'} …"), gr.skip()
        try:
            self.studio.change_model(source)
        except Exception as e:  # whatever loading raises is the user's to read
            yield _said(str(e), error=True), gr.skip()
        else:
            yield _said("Loaded."), "{}x{}".format(*self.studio.size)

    def _tab_compare(self) -> None:
        with gr.Tab("Compare"):
            button = gr.Button("Draw base model, LoRA and AutoLoRA from one noise", elem_id="compare")
            with gr.Row():
                quiet: dict[str, Any] = {"interactive": False, "format": "png", "buttons": []}
                three = [
                    gr.Image(label=name, min_width=140, height=240, elem_classes="contained", **quiet)
                    for name in COMPARED
                ]
            with gr.Row():
                left, right = (
                    gr.Dropdown(list(COMPARED), value=value, label=label, min_width=140)
                    for value, label in ((COMPARED[1], "Left"), (COMPARED[2], "Right"))
                )
            slider = gr.ImageSlider(label="Before and after", type="pil", interactive=False, elem_id="slider")

        def compare(*values: Any) -> Iterator[Any]:
            pictures = lambda event: [*event.pictures, *[None] * 3][:3]  # noqa: E731
            for said, found in self._shown(self.studio.compared, values, pictures):
                yield (said, *(found if isinstance(found, list) else [found] * 3))

        def pair(first: str, second: str, *pictures: Any) -> Any:
            by_name = dict(zip(COMPARED, pictures, strict=True))
            return by_name[first], by_name[second]

        chosen = [left, right, *three]
        drawn = button.click(compare, self.controls, [self.said, *three], **_QUIET)
        drawn.then(pair, chosen, slider, **_QUIET)
        for choice in (left, right):
            choice.change(pair, chosen, slider, **_QUIET)

    def _tab_grid(self) -> None:
        with gr.Tab("Grid"):
            axes = []
            for label, name in (("Across", "γ"), ("Down", "scale")):
                with gr.Row():
                    axis = gr.Dropdown(list(AXES), value=name, label=label, min_width=120)
                    values = gr.Textbox(AXES[name][1], label="Values", min_width=160)
                axis.change(lambda name: AXES[name][1], axis, values, queue=False)
                axes += [axis, values]
            button = gr.Button("Draw the grid", elem_id="grid-button")
            picture = gr.Image(label="Grid", show_label=False, format="png", interactive=False, elem_id="grid")

        def grid(x: str, xs: str, y: str, ys: str, *values: Any) -> Iterator[Any]:
            drawn = lambda config: self.studio.grid(config, (x, xs), (y, ys))  # noqa: E731
            yield from self._shown(drawn, values, lambda event: event.pictures[0])

        button.click(grid, [*axes, *self.controls], [self.said, picture], **_QUIET)

    def _tab_history(self) -> None:
        with gr.Tab("History") as tab:
            gallery = gr.Gallery([], label="Kept", columns=4, allow_preview=False, elem_id="history")
            gr.Markdown(
                f"Files of `{self.studio.folder.path}`, the newest first. Choose one to have its settings again."
            )

        def kept() -> list[str]:
            return [str(path) for path in reversed(self.studio.folder.saved[-MOST_KEPT:])]

        def again(chosen: gr.SelectData, *values: Any) -> list[Any]:
            path = Path(kept()[chosen.index])
            now = of_settings(read_settings(path), self._read(values))
            return [
                *now[:-1],
                *(value for row in (*now.loras, *[LoraRow()] * MOST_LORAS)[:MOST_LORAS] for value in row),
            ]

        tab.select(kept, None, gallery, queue=False)
        gallery.select(again, self.controls, self.controls, queue=False)

    def _tab_copy(self) -> None:
        with gr.Tab("Copy") as tab:
            gr.Markdown("What the controls say, elsewhere.")
            blocks = [
                gr.Code(label=label, interactive=False, wrap_lines=True, lines=2, max_lines=24)
                for label in COPIES  # in one colour: those that Gradio gives languages are too pale to read
            ]

        def copied(*values: Any) -> list[str]:
            try:
                config = self._config(values)
            except ConfigError as e:
                return [f"# {e}"] * 3
            return [make(config) for make in (copies.command, copies.python, copies.job)]

        tab.select(copied, self.controls, blocks, queue=False)

    def _shown(
        self, draw: Callable[[GenerateConfig], Iterator[Event]], values: Sequence[Any], take: Callable[[Event], Any]
    ) -> Iterator[Any]:
        """(line, pictures) of a drawing as it goes on; what goes wrong is a line, too."""
        try:
            for event in draw(self._config(values)):
                yield _said(event.said), take(event) if event.pictures else gr.skip()
        except Stopped:
            yield _said("Stopped."), gr.skip()
        except Exception as e:  # whatever it is, the page goes on
            yield _said(str(e) or type(e).__name__, error=True), gr.skip()


_ROLES = "tuned: AutoLoRA's γ acts on it; all: on the base model, too, as a fast LoRA has to; base: on that alone"
_QUIET: dict[str, Any] = {"show_progress": "hidden", "trigger_mode": "always_last", "concurrency_limit": 4}


def _said(text: str, error: bool = False) -> str:
    kind = ' class="error" role="alert"' if error else ' role="status"'
    return f"<div{kind}>{html.escape(text)}</div>"
