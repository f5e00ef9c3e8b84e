// The figures of the summary: duration, frames, scaling, stop reasons, ladder.
const COSTS = {
  visual_tokens: 'visual tokens',
  frames: 'frames',
  turns: 'turns',
  audio_s: 'seconds of sound',
  audio_tokens: 'sound tokens',
  prompt_tokens: 'prompt tokens',
  cached_tokens: 'cached prompt tokens',
  completion_tokens: 'tokens written',
  seconds: 'seconds',
  model_s: 'seconds in the model',
  media_s: 'seconds of decoding',
  gpu_s: 'GPU seconds',
  usd: 'US dollars',
};
const cost = (value) => (value && typeof value === 'object' ? value.value : value);
const shown = (list) => list.filter((one) => armOf(one.name) >= 0);
const accuracyAxis = {
  label: 'score',
  percent: true,
  write: (value) => `${percent(value)} %`,
  tick: (value) => `${number(100 * value)} %`,
};

function spread(index, n) {
  return n > 1 ? (index - (n - 1) / 2) * Math.min(0.12, 0.5 / n) : 0;
}

function bucketAxis(buckets) {
  const names = buckets.map((bucket) => String(bucket.name));
  return {
    label: 'duration of the video',
    splits: names.map((_, i) => i),
    range: [-0.5, names.length - 0.5],
    name: (value) => names[Math.round(value)] ?? '',
    tick: (value, width) => {
      const name = names[value] ?? '',
        fits = Math.max(4, Math.floor(width / names.length / 7));
      return name.length > fits ? `${name.slice(0, fits - 1)}…` : name;
    },
  };
}

function Duration() {
  const buckets = summary.buckets ?? [];
  const quantities = Object.keys(COSTS).filter((name) =>
    buckets.some((bucket) => Object.values(bucket.cost ?? {}).some((costs) => known(cost(costs?.[name])))),
  );
  const [quantity, choose] = useState(quantities[0]);
  const byScore = useMemo(
    () =>
      arms
        .map((arm, index) => ({
          arm: index,
          label: arm.name,
          points: buckets
            .map((bucket, i) => ({ ...bucket.arms?.[arm.name], i, bucket }))
            .filter((found) => known(found.value))
            .map(({ value, low, high, n, i, bucket }) => ({
              x: i + spread(index, arms.length),
              y: value,
              low,
              high,
              name: String(bucket.name),
              more: known(n) ? `n = ${number(n)}` : '',
            })),
        }))
        .filter((one) => one.points.length),
    [],
  );
  const byCost = useMemo(
    () =>
      arms
        .map((arm, index) => ({
          arm: index,
          label: arm.name,
          points: buckets
            .map((bucket, i) => ({
              x: i + spread(index, arms.length),
              y: cost(bucket.cost?.[arm.name]?.[quantity]),
              name: String(bucket.name),
            }))
            .filter((point) => known(point.y)),
        }))
        .filter((one) => one.points.length),
    [quantity],
  );
  const axis = useMemo(() => bucketAxis(buckets), []);
  const costAxis = useMemo(() => ({ label: COSTS[quantity], write: short }), [quantity]);
  if (!buckets.length) return null;
  return html`<${Section} id="duration" title="Against the length of the video">
    <div class="pair"><${Chart} series=${byScore} x=${axis} y=${accuracyAxis} label="Score against duration" />
    ${
      quantities.length > 0 &&
      html`<div><label class="inline">Cost: <select value=${quantity} onChange=${(event) => choose(event.target.value)}>
      ${quantities.map((name) => html`<option value=${name}>${COSTS[name]}</option>`)}</select> a question</label>
      <${Chart} series=${byCost} x=${axis} y=${costAxis} label=${`${COSTS[quantity]} against duration`}
        height=${232} /></div>`
    }</div>
    <${Slopes} /></${Section}>`;
}

function Slopes() {
  const found = (summary.arms ?? []).flatMap((arm) =>
    Object.entries(arm.slope ?? {})
      .filter(([, slope]) => known(slope?.value))
      .map(([name, slope]) => ({ arm: arm.name, name, slope })),
  );
  const turns = (summary.arms ?? []).filter((arm) => known(arm.turns_per_hour?.value));
  if (!found.length && !turns.length) return null;
  return html`<details class="more"><summary>Growth of cost with each hour of video</summary><div class="scroll">
    <table><thead><tr><th>arm</th><th>quantity</th><th class="num">per hour</th></tr></thead>
    <tbody>${found.map(({ arm, name, slope }) => html`<tr><td><${ArmNamed} name=${arm} /></td><td>
      ${COSTS[name] ?? String(name)}</td><td class="num"><${Interval} value=${slope} as=${short} /></td></tr>`)}
    ${turns.map((arm) => html`<tr><td><${ArmNamed} name=${arm.name} /></td><td>all turns over all hours</td>
      <td class="num"><${Interval} value=${arm.turns_per_hour} as=${short} /></td></tr>`)}
      </tbody></table></div></details>`;
}

function Scaling() {
  const sweep = summary.sweep;
  const points = (sweep?.points ?? []).filter((point) => known(point.score?.value));
  const numeric = points.every((point) => typeof point.value === 'number');
  const values = unique(points.map((point) => point.value));
  const place = (value) => (numeric ? value : values.indexOf(value));
  const series = useMemo(
    () => [
      {
        arm: 0,
        label: `score by ${String(sweep?.setting)}`,
        points: points
          .map((point) => ({
            x: place(point.value),
            y: point.score.value,
            low: point.score.low,
            high: point.score.high,
            name: String(point.value),
            more: `${short(point.turns?.value)} turns, ${short(point.frames?.value)} frames`,
          }))
          .sort((a, b) => a.x - b.x),
      },
    ],
    [],
  );
  const axis = useMemo(
    () => ({
      label: String(sweep?.setting),
      scale: numeric && Math.min(...values) >= 0 ? 'log' : 'linear',
      splits: values.map(place).sort((a, b) => a - b),
      name: (value) => String(numeric ? value : values[value]),
      tick: (value) => String(numeric ? value : (values[value] ?? '')),
    }),
    [],
  );
  if (!points.length) return null;
  return html`<${Section} id="scaling" title="Test-time scaling"
    lead=${`The same questions with ${String(sweep.setting)} at ${count(values.length, 'value')}.`}>
    <${Chart} series=${series} x=${axis} y=${accuracyAxis} label="Score against the setting" />
    <div class="scroll"><table><thead><tr><th>${String(sweep.setting)}</th><th>arm</th><th class="num">score</th>
      <th class="num">turns</th><th class="num">frames</th></tr></thead><tbody>
    ${points.map((point) => html`<tr><td>${String(point.value)}</td><td><bdi>${String(point.arm)}</bdi></td>
      <td class="num"><${Interval} value=${point.score} /></td><td class="num"><${Interval} value=${point.turns}
      as=${short} /></td><td class="num"><${Interval} value=${point.frames} as=${short} /></td></tr>`)}</tbody>
      </table></div></${Section}>`;
}

const FRAME_TICKS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192];

/** Published figures with a number of frames, all of one metric: the one, in %, that most of them have. */
function placedOf(published) {
  const able = published.filter((one) => known(one.frames) && one.metric.includes('%'));
  const n = (metric) => able.filter((one) => one.metric === metric).length;
  const metric = unique(able.map((one) => one.metric)).sort((a, b) => n(b) - n(a))[0];
  return able.filter((one) => one.metric === metric);
}

function Frames() {
  const published = summary.published ?? [];
  const placed = placedOf(published);
  const series = useMemo(
    () =>
      shown(summary.arms ?? [])
        .filter((arm) => known(arm.cost?.frames?.value) && known(arm.score?.value))
        .map((arm) => ({
          arm: armOf(arm.name),
          label: arm.name,
          points: [
            {
              x: arm.cost.frames.value,
              y: arm.score.value,
              low: arm.score.low,
              high: arm.score.high,
              name: `${short(arm.cost.frames.value)} frames`,
            },
          ],
        })),
    [],
  );
  const extra = useMemo(
    () =>
      placed.map((one) => ({
        x: one.frames,
        y: one.value / 100,
        label: String(one.system),
        more: `${one.metric}; ${one.source}${one.note ? `; ${one.note}` : ''}`,
      })),
    [],
  );
  const axis = useMemo(() => {
    const xs = [...series.map((one) => one.points[0].x), ...extra.map((one) => one.x)];
    const most = Math.max(1, ...xs);
    const splits = FRAME_TICKS.filter((tick, i) => tick <= most * 1.3 && (most < 300 || i < 2 || i % 2 === 1));
    return {
      label: 'frames a question, on average',
      scale: 'log',
      splits,
      range: [Math.min(...xs) < 2 ? -0.3 : Math.min(...xs) / 2, most * 1.8],
      name: (value) => `${short(value)} frames`,
      tick: String,
    };
  }, []);
  if (!series.length && !published.length) return null;
  return html`<${Section} id="frames" title="Score against frames"
    lead="Published figures are other people's, on their set-up. They are shown for orientation and never tested against.">
    ${series.length > 0 && html`<${Chart} series=${series} extra=${extra} x=${axis} y=${accuracyAxis}
      height=${320} label="Score against frames a question" />`}
    ${
      published.length > 0 &&
      html`<details class="more"><summary>
        ${count(published.length, 'published figure')}, ${number(placed.length)} of them in the chart:
        ${' '}those of ${placed[0]?.metric ?? 'one metric'} with a stated number of frames</summary>
    <div class="scroll"><table><thead><tr><th>system</th><th>benchmark</th><th>metric</th><th class="num">value</th>
      <th class="num">frames</th><th>source</th><th>note</th></tr></thead><tbody>
    ${published.map((one) => html`<tr><td><bdi>${String(one.system)}</bdi></td><td>${String(one.benchmark)}</td><td>
      ${String(one.metric)}</td><td class="num">${short(one.value)}</td><td class="num">${short(one.frames)}</td><td>
      <bdi>${String(one.source)}</bdi></td><td><bdi>${String(one.note ?? '')}</bdi></td></tr>`)}</tbody></table></div>
      </details>`
    }</${Section}>`;
}

const STOP_WORDS = {
  answered: 'answered',
  forced: 'answered when forced',
  turns: 'turns used up',
  tokens: 'tokens used up',
  wall_clock: 'out of time',
  media_unreadable: 'media unreadable',
  policy_unavailable: 'policy unavailable',
  cancelled: 'cancelled',
  error: 'error',
};

function Stops() {
  const found = shown(summary.arms ?? []).filter((arm) => arm.stops && Object.keys(arm.stops).length);
  if (!found.length) return null;
  const failing = ['media_unreadable', 'policy_unavailable', 'cancelled', 'error'];
  return html`<${Section} id="stops" title="How episodes ended"
    lead="From every question that was asked down to the right answers; what was lost on the way is named on the right.">
    <div class="funnels">${found.map((arm) => {
      const of = (names) => names.reduce((sum, name) => sum + (arm.stops[name] ?? 0), 0);
      const asked = Object.values(arm.stops).reduce((sum, n) => sum + n, 0),
        ran = asked - of(failing);
      const right = rows.filter((row) => row.outcomes[armOf(arm.name)].right).length;
      const lost = (names) =>
        names
          .filter((name) => arm.stops[name])
          .map((name) => `${STOP_WORDS[name] ?? name} ${number(arm.stops[name])}`)
          .join(', ');
      const steps = [
        ['asked', asked, ''],
        ['ran to its end', ran, lost(failing)],
        ['gave an answer', of(['answered', 'forced']), lost(['turns', 'tokens', 'wall_clock'])],
        ['without being forced', of(['answered']), lost(['forced'])],
        ['right answers', right, ''],
      ];
      return html`<div class=${`funnel ${armClass(armOf(arm.name))}`}><h3><${ArmNamed} name=${arm.name} /></h3><dl>
        ${steps.map(
        ([name, n, gone]) => html`<div><dt>${name}</dt>
        <dd><span class="track"><span class="fill"
          style=${{ width: `${asked ? Math.min(100, (100 * n) / asked) : 0}%` }}></span></span><b>${number(n)}</b>
          <small>${gone ? `− ${gone}` : ''}</small></dd></div>`,
      )}</dl></div>`;
    })}</div></${Section}>`;
}

function Ladder() {
  const ladder = summary.ladder;
  const steps = ladder ? ['blind', 'passive', 'agent', 'oracle'].filter((name) => known(ladder[name]?.value)) : [];
  if (!steps.length) return null;
  const words = { blind: 'no look', passive: 'passive', agent: 'agent', oracle: 'shown the evidence' };
  return html`<div class="ladder"><h3>From no look to the evidence</h3>${steps.map((name) => html`<div class="rung">
    <span>${words[name]}</span><${Dot} value=${ladder[name]} /><${Interval} value=${ladder[name]} /></div>`)}
    ${[['realised', 'no look'], ['realised_over_passive', 'passive']].map(
      ([name, from]) =>
        known(ladder[name]?.value) &&
        html`<p>Of the way from ${from} to the evidence shown, the agent covers${' '}
          <${Interval} value=${ladder[name]} /> %.</p>`,
    )}</div>`;
}

/** A value and its interval on a line from 0 to 1. */
function Dot({ value, arm = null }) {
  if (!value || !known(value.value)) return null;
  const at = (v) => 4 + 112 * Math.max(0, Math.min(1, v));
  return html`<svg class=${`dot ${arm === null ? 'plainarm' : armClass(arm)}`} width="120" height="14"
    viewBox="0 0 120 14" aria-hidden="true"><path class="base" d="M4 7H116" />
    ${known(value.low) && known(value.high) && html`<path class="whisker"
      d=${`M${at(value.low)} 7H${at(value.high)}M${at(value.low)} 4V10M${at(value.high)} 4V10`} />`}
      <circle cx=${at(value.value)} cy="7" r="4" /></svg>`;
}
