// The whole video as a ruler: every look is a bar in its lane, every arm a group of lanes, evidence and frame times on the same axis.
const LANES = ['frames', 'clip', 'audio'];
const BAR = 14,
  GAP = 4,
  HEAD = 24;

/** Distances between the marks of a time axis, in seconds. */
const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400];

function timeTicks(duration, width) {
  const step = STEPS.find((one) => duration / one <= Math.max(2, width / 80)) ?? 86400 * Math.ceil(duration / 864000);
  const ticks = [];
  for (let i = 0; i * step <= duration + 1e-6; i++) ticks.push(i * step);
  return { ticks, fine: step < 1 };
}

/** Looks on as few lines as possible, without overlap, in their order. */
function packed(looks, x, right) {
  const ends = [];
  return looks.map((look) => {
    const from = x(look.start),
      width = Math.max(3, x(look.end) - from),
      start = Math.min(from, right - width);
    const wanted = start + width + 16;
    let line = ends.findIndex((end) => end <= start);
    if (line < 0) line = ends.push(0) - 1;
    ends[line] = wanted;
    return { look, start, width, line, lines: ends };
  });
}

function answerSpans(answer) {
  try {
    const spans = JSON.parse(answer);
    return Array.isArray(spans)
      ? spans.filter((span) => Array.isArray(span) && span.length === 2 && span.every(Number.isFinite))
      : [];
  } catch {
    return [];
  }
}

/** What is drawn for one video: groups of lanes with their places. */
function layout(detail, video, width, gutter) {
  const film = detail.question.videos[video] ?? {};
  const looks = detail.arms.flatMap((arm) => arm.looks.filter((look) => look.video === video));
  const evidence = (detail.truth?.evidence ?? []).filter((span) => span[2] === video);
  const duration = film.duration || Math.max(1, ...looks.map((look) => look.end), ...evidence.map((span) => span[1]));
  const x = (time) => gutter + ((width - gutter - 12) * Math.max(0, Math.min(duration, time ?? 0))) / duration;
  let y = 30;
  const groups = detail.arms.flatMap((arm, index) => {
    const own = arm.looks
      .map((look, order) => ({ ...look, order }))
      .filter((look) => look.video === video && look.kind !== 'images');
    const spans = detail.question.kind === 'grounding' && video === 0 && arm.answer ? answerSpans(arm.answer) : [];
    if (!arms[index].looks && !spans.length) return [];
    const top = y;
    y += HEAD;
    const lanes = LANES.map((kind) => [kind, own.filter((look) => look.kind === kind)])
      .filter(([, found]) => found.length)
      .map(([kind, found]) => {
        const bars = packed(found, x, width - 12),
          lane = { kind, bars, top: y };
        y += bars[0].lines.length * (BAR + GAP) + 3;
        return lane;
      });
    if (!lanes.length && !spans.length) y += BAR;
    const answered = spans.length ? { top: y, spans } : null;
    if (answered) y += BAR + GAP;
    y += 6;
    return [{ arm: index, outcome: arm, top, lanes, answered, looks: own.length }];
  });
  return { film, duration, evidence, x, groups, bottom: y };
}

function Bar({ bar, top, arm, active, point, choose, diverges }) {
  const { look, start, width, line } = bar;
  const y = top + line * (BAR + GAP);
  const state = look.hit === null ? 'unknown' : look.hit ? 'hit' : 'miss';
  const words = [
    `${look.turn ? `turn ${look.turn}` : 'before the first turn'}: ${look.kind} ${clock(look.start, true)} to ${clock(look.end, true)}`,
    look.times.length ? count(look.times.length, 'frame') : '',
    look.audio_s ? `${short(look.audio_s)} s of sound` : '',
    { hit: 'shows evidence', miss: 'shows no evidence', unknown: '' }[state],
    look.repeat ? 'taken before' : '',
    diverges ? 'first look that differs between the agents' : '',
  ]
    .filter(Boolean)
    .join(', ');
  const middle = y + BAR / 2;
  return html`<g class=${`bar ${state}${active ? ' active' : ''}${look.repeat ? ' repeated' : ''} ${armClass(arm)}`} onMouseEnter=${() => point({ arm, turn: look.turn })} onMouseLeave=${() => point(null)} onClick=${() => choose({ arm, turn: look.turn })}>
    <title>${words}</title>
    <rect class="body" x=${start} y=${y} width=${width} height=${BAR} rx="3" />
    ${width > 6 && look.times.map((time) => html`<path class="tick"
      d=${`M${bar.x(time).toFixed(1)} ${y + 3}V${y + BAR - 3}`} />`)}
    <text class="turn" x=${start + width + 4} y=${y + BAR - 3}>${look.turn || '·'}</text>
    ${state === 'hit' && html`<path class="glyph"
      d=${`M${start - 4} ${middle}L${start} ${middle - 5}L${start + 4} ${middle}L${start} ${middle + 5}Z`} />`}
    ${state === 'miss' && html`<path class="glyph" d=${`M${start - 3} ${middle - 3}l6 6m0 -6l-6 6`} />`}
    ${diverges && html`<path class="split"
      d=${`M${start} ${y - 7}V${y + BAR + 2}M${start} ${y - 7}h8l-2 2.5l2 2.5h-8`} />`}</g>`;
}

function Ruler({ detail, video, active, point, choose }) {
  const place = useRef(null);
  const [width, setWidth] = useState(900);
  useLayoutEffect(() => {
    const measure = () => place.current.clientWidth && setWidth(place.current.clientWidth);
    measure();
    const watch = new ResizeObserver(measure);
    watch.observe(place.current);
    return () => watch.disconnect();
  }, []);
  const gutter = width < 560 ? 54 : 72;
  const { film, duration, evidence, x, groups, bottom } = useMemo(
    () => layout(detail, video, width, gutter),
    [detail, video, width],
  );
  const { ticks, fine } = timeTicks(duration, width - gutter);
  const several = detail.question.videos.length > 1;
  return html`<figure class="ruler" ref=${place}><figcaption>${several && html`<b>Video ${video}</b> `}<bdi>
    ${film.name ?? ''}</bdi> <span class="quiet">
    ${clock(duration, duration < 10)}${film.audio === false ? ', no sound' : ''}</span></figcaption>
    <svg width=${width} height=${bottom + 4} role="img"
      aria-label=${`Looks on ${clock(duration)} of video: ${groups.map((group) => `${arms[group.arm].name} ${count(group.looks, 'look')}`).join(', ')}`}>
    ${ticks.map((time) => html`<g class="axis"><path d=${`M${x(time)} 22V${bottom}`} /><text x=${x(time)}
      y="14" text-anchor=${time === 0 ? 'start' : x(time) > width - 30 ? 'end' : 'middle'}>${clock(time, fine)}</text>
      </g>`)}
    ${evidence.map(([start, end]) => html`<g class="evidence">
      <title>evidence ${clock(start, true)} to ${clock(end, true)}</title>
      <rect x=${x(start) - (x(end) - x(start) < 3 ? 1.5 : 0)} y="20" width=${Math.max(3, x(end) - x(start))}
      height=${bottom - 20} /><path d=${`M${x(start)} 20H${Math.max(x(end), x(start) + 3)}`} /></g>`)}
    ${groups.map(
      (
        group,
      ) => html`<g><path class="group" d=${`M0 ${group.top}H${width}`} /><g class=${armClass(group.arm)}
        transform=${`translate(0 ${group.top + 7})`}><path class="shape" d=${SHAPES[group.arm % SHAPES.length]} /></g>
      <text class="name" x="17" y=${group.top + 17}>${arms[group.arm].name}<tspan class="quiet" dx="8">
        ${count(group.looks, 'look')}${group.outcome.status === 'scored' ? (group.outcome.right ? ', right' : ', wrong') : `, ${group.outcome.status}`}</tspan></text>
      ${group.lanes.map(
        (lane) => html`<text class="lane" x=${gutter - 10} y=${lane.top + BAR - 3} text-anchor="end">${lane.kind}</text>
        ${lane.bars.map((bar) => html`<${Bar} bar=${{ ...bar, x }} top=${lane.top} arm=${group.arm}
          active=${active && active.arm === group.arm && active.turn === bar.look.turn} point=${point}
          choose=${choose} diverges=${arms[group.arm].kind === 'agent' && detail.divergence === bar.look.order + 1} />`)}`,
      )}
      ${group.answered && html`<text class="lane" x=${gutter - 10} y=${group.answered.top + BAR - 3}
        text-anchor="end">answer</text>
        ${group.answered.spans.map(([start, end]) => html`<path class=${`span ${armClass(group.arm)}`}
        d=${`M${x(start)} ${group.answered.top + 2}v9h${Math.max(2, x(end) - x(start))}v-9`}>
        <title>answered ${clock(start, true)} to ${clock(end, true)}</title></path>`)}`}</g>`,
    )}</svg></figure>`;
}

const RulerKeys = ({ detail }) => html`<p class="keys">
  ${
    detail.truth?.evidence.length > 0 &&
    html`<span class="key"><svg width="18" height="12" aria-hidden="true"><g class="evidence"><rect width="18"
      height="12" /></g></svg>evidence</span>
  <span class="key"><svg width="24" height="14" aria-hidden="true"><g class="bar hit"><rect class="body" x="5"
    y="1" width="18" height="12" rx="3" /><path class="glyph" d="M1 7L5 2L9 7L5 12Z" /></g>
    </svg>look that shows evidence</span>
  <span class="key"><svg width="24" height="14" aria-hidden="true"><g class="bar miss"><rect class="body" x="5"
    y="1" width="18" height="12" rx="3" /><path class="glyph" d="M2 4l6 6m0 -6l-6 6" /></g>
    </svg>look that shows none</span>`
  }
  <span class="key">lines in a bar: frames · number: turn</span>
  ${known(detail.divergence) && html`<span class="key"><svg width="12" height="14" aria-hidden="true">
    <path class="split" d="M2 1V14M2 1h8l-2 2.5l2 2.5h-8" /></svg>first divergence: look ${detail.divergence}</span>`}
    </p>`;
