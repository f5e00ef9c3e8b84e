"""The page of `apr app`: pick or upload a video, ask, and watch the agent look.

| module | content |
|---|---|
| `about` | the default policy, and what the page says about a policy |
| `view` | what a visitor sees, as a value: a function of the events so far |
| `ruler`, `render` | a view as HTML; every text is escaped |
| `form` | a visitor's form as a question and a configuration |
| `watched`, `scene` | a policy whose prompts are seen before it answers; an episode that tells what happens in it |
| `desk` | how many investigations run and wait at once |
| `uploads`, `examples` | the only files that a visitor may ask about |
| `visitor` | one visitor: the video, the running investigation, its stop, the finished one |
| `records` | trajectories on disk, and the downloads of a finished investigation |
| `page` | the controls; the only module that imports Gradio |
| `guard`, `server` | which requests are answered; the server |

Nothing here is imported by `import apr_plugin`; Gradio is in the extra `demo`.
"""
