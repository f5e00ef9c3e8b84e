"""The controls of the page; the only module that imports Gradio.

No Gradio component here takes or gives a file: uploads and downloads have routes of their own (`server`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import gradio as gr

from apr_plugin.errors import AprError
from apr_plugin.harnesses.app import render
from apr_plugin.harnesses.app.about import about_policy
from apr_plugin.harnesses.app.examples import Example, labelled
from apr_plugin.harnesses.app.form import BY_OPTIONS, KINDS, Form, most_turns
from apr_plugin.harnesses.app.uploads import Film
from apr_plugin.harnesses.app.view import View
from apr_plugin.harnesses.app.visitor import Visitor, Visitors

TITLE = "Watch an agent look"

_UPLOAD = """
<div class="apr-upload" data-token="${value}"><label>Upload a video
<input type="file" accept="video/*,.mkv,.ts,.flv"></label><progress max="1" value="0" hidden></progress>
<p role="status" class="apr-quiet"></p></div>
"""

_UPLOAD_JS = """
element.addEventListener('change', (event) => {
  const input = event.target, file = input.files && input.files[0];
  if (!file) return;
  const box = input.closest('.apr-upload'), bar = box.querySelector('progress'), said = box.querySelector('p');
  const most = Number(%d), send = new XMLHttpRequest();
  const end = (words) => { bar.hidden = true; said.textContent = words; input.value = ''; };
  if (file.size > most) return end('This file is larger than the %d MiB allowed.');
  send.upload.onprogress = (now) => { if (now.lengthComputable) bar.value = now.loaded / now.total; };
  send.onload = () => {
    end(send.status === 200 ? '' : send.responseText);
    if (send.status === 200) trigger('submit');
  };
  send.onerror = () => end('The upload did not reach the server.');
  bar.hidden = false; bar.value = 0; said.textContent = 'uploading ' + file.name;
  send.open('PUT', 'apr/upload/' + box.dataset.token + '?name=' + encodeURIComponent(file.name));
  send.send(file);
});
"""


def build(visitors: Visitors, examples: Sequence[Example]) -> gr.Blocks:
    """The page, ready to be mounted.

    Args:
        visitors: Who the open tabs are.
        examples: What it offers.
    """
    house = visitors.house
    budget = house.settings.config.budget
    limits = house.limits

    def visitor(request: gr.Request) -> Visitor:
        return visitors.of(str(request.session_hash))

    async def arrive(request: gr.Request) -> str:
        return visitor(request).token

    async def leave(request: gr.Request) -> None:
        await visitors.leave(str(request.session_hash))

    async def pick(label: Any, request: gr.Request) -> tuple[Any, ...]:
        example, me = labelled(examples, label), visitor(request)
        if example is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        try:
            me.choose(example.film)
        except AprError as error:
            return render.message_html(str(error), error=True), gr.skip(), gr.skip(), gr.skip()
        asked = (example.text, "\n".join(example.options), example.kind)
        return _video(me, example.film), *(asked if example.text else (gr.skip(),) * 3)

    async def uploaded(request: gr.Request) -> tuple[Any, Any]:
        me = visitor(request)
        return (gr.skip() if me.film is None else _video(me, me.film)), None

    async def ask(
        text: Any, options: Any, kind: Any, turns: Any, frames: Any, request: gr.Request
    ) -> AsyncIterator[tuple[Any, ...]]:
        before: tuple[Any, ...] = ()
        async for view in visitor(request).investigate(Form(text, options, kind, turns, frames)):
            now = _shown(view)
            if before:  # only what has changed is sent
                yield tuple(gr.skip() if a == b else b for a, b in zip(before, now, strict=True))
            else:
                yield now
            before = now

    async def stop(request: gr.Request) -> None:
        await visitor(request).stop()

    with gr.Blocks(analytics_enabled=False, title=TITLE) as page:
        gr.HTML(render.title_html(TITLE, about_policy(house.settings.policy)), elem_id="apr-policy")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                example = gr.Dropdown(
                    [one.label for one in examples], value=None, label="Example", elem_id="apr-example"
                )
                upload = gr.HTML(
                    "", html_template=_UPLOAD, js_on_load=_UPLOAD_JS % (limits.bytes, limits.mib), elem_id="apr-upload"
                )
                chosen = gr.HTML(render.message_html("No video is chosen."), elem_id="apr-video")
                text = gr.Textbox(label="Question", lines=2, elem_id="apr-question")
                options = gr.Textbox(
                    label="Options, one a line (none for an open question)", lines=4, elem_id="apr-options"
                )
                kind = gr.Dropdown(list(KINDS), value=BY_OPTIONS, label="Answer", elem_id="apr-kind")
                turns = gr.Number(
                    most_turns(budget),
                    label=f"Most turns (1 to {most_turns(budget):,})",
                    precision=0,
                    elem_id="apr-most-turns",
                )
                frames = gr.Number(
                    budget.frames_per_look,
                    label=f"Most frames of a look (1 to {budget.frames_per_look:,})",
                    precision=0,
                    elem_id="apr-most-frames",
                )
                with gr.Row():
                    begin = gr.Button("Ask", variant="primary", elem_id="apr-ask")
                    halt = gr.Button("Stop", variant="stop", elem_id="apr-stop")
            with gr.Column(scale=5, min_width=400):
                idle = _shown(View())
                parts = [
                    gr.HTML(html, elem_id=f"apr-{name}")
                    for name, html in zip(("status", "ruler", "turns", "ending"), idle, strict=True)
                ]
        # Waiting and running investigations hold a place of Gradio's own queue; a stop needs one besides.
        page.max_threads = house.desk.places + house.desk.waiting + 40
        page.queue(default_concurrency_limit=None)
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(arrive, None, upload, **quiet)
        page.unload(leave)
        example.input(pick, example, [chosen, text, options, kind], **quiet)
        upload.submit(uploaded, None, [chosen, example], **quiet)
        begin.click(ask, [text, options, kind, turns, frames], parts, **quiet)
        halt.click(stop, None, None, **quiet)
    return page


def _video(visitor: Visitor, film: Film) -> str:
    # The number makes the browser load the new video at the same address.
    return render.video_html(film.name, film.facts, f"apr/video/{visitor.token}?{abs(hash(film.path))}")


def _shown(view: View) -> tuple[str, str, str, str]:
    made = render.pieces(view)
    return made.status, made.ruler, made.turns, made.ending
