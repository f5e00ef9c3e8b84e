// One question: what was asked, the rulers, what it cost turn by turn, and every turn of every arm.
function Long({ text, limit = 480 }) {
  const [all, setAll] = useState(false);
  if (text.length <= limit) return html`<span class="said">${text}</span>`;
  return html`<span class="said">${all ? text : `${text.slice(0, limit)} …`}</span> <button class="link"
    onClick=${() => setAll(!all)}>${all ? 'show less' : `show all ${number(text.length)} characters`}</button>`;
}

function Asked({ detail, row }) {
  const { question, truth } = detail;
  const right = new Set(truth?.answers ?? []);
  const by = (label) => detail.arms.map((arm, index) => [arm, index]).filter(([arm]) => arm.answer === label);
  const options = question.options.length > 0;
  return html`<div class="asked-full"><p class="q"><bdi><${Long}
    text=${question.text || `${row.name} (its text is not in these files)`} limit=${1500} /></bdi></p>
    ${question.hint && html`<p class="quiet"><bdi>${question.hint}</bdi></p>`}
    ${options && html`<ol class="options">
      ${question.options.map(([label, text]) => html`<li class=${right.has(label) ? 'true' : ''}><b><bdi>${label}
      </bdi></b><bdi><${Long} text=${text} limit=${400} /></bdi>
      ${right.has(label) && html`<span class="chip truth">right answer</span>`}${by(label).map(([, index]) => html`<span class="chip"><${ArmName} arm=${index} /></span>`)}</li>`)}</ol>`}
    <ul class="answers">${!options && truth && html`<li><span class="chip truth">right answer</span><bdi>
      <${Long} text=${truth.answers.join(' or ')} limit=${300} /></bdi></li>`}
    ${detail.arms.map(
      (
        arm,
        index,
      ) => html`<li><${Sign} outcome=${arm} /><${ArmName} arm=${index} /> <bdi><${Long}
        text=${arm.answer ?? { failed: 'could not answer', missing: 'no answer is known', scored: 'no answer' }[arm.status]} limit=${300} /></bdi>
      ${arm.status === 'scored' && html`<span class="quiet">score ${percent(arm.score)} %</span>`}${arm.flags.filter((flag) => flag !== 'failed').map((flag) => html`<span class=${`chip ${flag}`} title=${FLAG_WORDS[flag]}>${flag}</span>`)}
      ${arm.detail && html`<span class="quiet"><bdi>${arm.stop}: ${arm.detail}</bdi></span>`}</li>`,
    )}</ul></div>`;
}

/** A small chart over turns. lines: [{arm, points: [[turn, value]], level}] */
function Turns({ lines, title, active, point, write, step = false }) {
  const width = 340,
    height = 120,
    left = 46,
    bottom = 20;
  const turns = Math.max(1, ...lines.flatMap((line) => line.points.map(([turn]) => turn)));
  const most =
    Math.max(1e-9, ...lines.flatMap((line) => [line.level ?? 0, ...line.points.map(([, value]) => value)])) * 1.08;
  const x = (turn) => left + ((width - left - 14) * (turn - (step ? 0 : 1))) / Math.max(1, turns - (step ? 0 : 1)),
    y = (value) => 8 + (height - bottom - 8) * (1 - value / most);
  const path = (points) =>
    points
      .map(([turn, value], i) =>
        i === 0 ? `M${x(turn)} ${y(value)}` : step ? `H${x(turn)}V${y(value)}` : `L${x(turn)} ${y(value)}`,
      )
      .join('');
  const every = Math.ceil(turns / 10);
  return html`<figure class="turns-chart"><figcaption>${title}</figcaption>
    <svg viewBox=${`0 0 ${width} ${height}`} role="img" aria-label=${title}>
    ${[0, most / 2.16, most / 1.08].map((value) => html`<g class="axis">
      <path d=${`M${left} ${y(value)}H${width - 8}`} /><text x=${left - 6} y=${y(value) + 4} text-anchor="end">
      ${write(value)}</text></g>`)}
    ${Array.from({ length: turns }, (_, i) => i + 1)
      .filter((turn) => turn % every === 0 || turn === 1)
      .map((turn) => html`<text class="axis-text" x=${x(turn)} y=${height - 5} text-anchor="middle">${turn}</text>`)}
    ${lines.map(
      (
        line,
      ) => html`<g class=${`line ${armClass(line.arm)}`}>${known(line.level) && html`<path class="level"
        d=${`M${left} ${y(line.level)}H${width - 8}`}><title>
        ${arms[line.arm].name}: ${write(line.level)} in all, before its one turn</title></path>`}
      ${line.points.length > 0 && html`<path d=${path(line.points)} />`}${line.points.filter(([turn]) => turn > 0).map(([turn, value]) => html`<circle class=${active && active.arm === line.arm && active.turn === turn ? 'active' : ''} cx=${x(turn)} cy=${y(value)} r="3.5" onMouseEnter=${() => point({ arm: line.arm, turn })} onMouseLeave=${() => point(null)}><title>${arms[line.arm].name}, turn ${turn}: ${write(value)}</title></circle>`)}</g>`,
    )}</svg></figure>`;
}

function Course({ detail, active, point }) {
  const tokens = detail.arms.flatMap((arm, index) => {
    if (arm.looks.some((look) => look.tokens === null)) return []; // made elsewhere, and not recorded
    const before = arm.looks.filter((look) => look.turn === 0).reduce((sum, look) => sum + look.tokens, 0);
    if (before > 0) return [{ arm: index, points: [], level: before }];
    if (!arm.turns.length || arms[index].kind !== 'agent') return [];
    let sum = 0;
    return [
      {
        arm: index,
        points: [
          [0, 0],
          ...arm.turns.map((turn, i) => [i + 1, (sum += turn.look === null ? 0 : arm.looks[turn.look].tokens)]),
        ],
      },
    ];
  });
  const entropy = detail.arms
    .map((arm, index) => ({
      arm: index,
      points: arm.turns.map((turn, i) => [i + 1, turn.entropy]).filter(([, value]) => known(value)),
    }))
    .filter((line) => line.points.length > 1);
  if (!tokens.length && !entropy.length) return null;
  return html`<div class="course">${tokens.length > 0 && html`<${Turns} lines=${tokens}
    title="Visual tokens so far, by turn; dashed: all at once" active=${active} point=${point} write=${short} step />`}
    ${entropy.length > 0 && html`<${Turns} lines=${entropy} title="Mean entropy of the tokens, nats, by turn"
      active=${active} point=${point} write=${(value) => number(value, 2)} />`}</div>`;
}

const BASE64 = /^[A-Za-z0-9+/=]+$/;

function Pictures({ look }) {
  const thumbs = look.thumbs.filter((one) => BASE64.test(one));
  return html`${thumbs.length > 0 && html`<div class="thumbs" tabindex="0" role="group"
    aria-label=${`${count(thumbs.length, 'frame')} shown`}>${thumbs.map((one, i) => html`<figure>
    <img alt=${`frame at ${clock(look.times[i], true)}`} src=${`data:image/webp;base64,${one}`} /><figcaption>
    ${clock(look.times[i], true)}</figcaption></figure>`)}</div>`}
    ${
      look.wave &&
      look.wave.length > 0 &&
      html`<svg class="wave" viewBox=${`0 0 ${look.wave.length} 40`} preserveAspectRatio="none" role="img"
        aria-label=${`sound, ${short(look.audio_s)} s`}>
        <path d=${`M0 20${look.wave.map((v, i) => `L${i} ${20 - v * 0.19}`).join('')}${look.wave
        .map((v, i) => [v, i])
        .reverse()
        .map(([v, i]) => `L${i} ${20 + v * 0.19}`)
        .join('')}Z`} /></svg>`
    }`;
}

function lookWords(look) {
  const window =
    look.start === look.end ? `at ${clock(look.start, true)}` : `${clock(look.start, true)} – ${clock(look.end, true)}`;
  return `${look.kind === 'frames' && look.counted ? count(look.times.length, 'frame') : look.kind} ${window}`;
}

function Look({ look, turn }) {
  return html`<p class="look">${look.hit !== null && html`<span class=${`chip ${look.hit ? 'hit' : 'miss'}`}>
    ${look.hit ? '◆ hit' : '✕ miss'}</span>`}${look.repeat && html`<span class="chip repeat">repeat</span>`}
    <b>${lookWords(look)}</b><span class="quiet">
      ${[look.size[0] && `${look.size[0]} × ${look.size[1]} px`, look.tokens && `${number(look.tokens)} tokens`, look.audio_s && `${short(look.audio_s)} s of sound`].filter(Boolean).join(', ')}</span>
    ${look.remark && html`<span class="quiet"><bdi>${look.remark}</bdi></span>`}</p><${Pictures} look=${look} />`;
}

function TurnCard({ arm, index, turn, n, active, point }) {
  const look = turn.look === null ? null : arm.looks[turn.look];
  const facts = [
    known(turn.tokens[0]) &&
      `${number(turn.tokens[0])} in${turn.tokens[2] ? ` (${number(turn.tokens[2])} cached)` : ''}`,
    known(turn.tokens[1]) && `${number(turn.tokens[1])} out`,
    turn.seconds[0] > 0 && `${short(turn.seconds[0])} s`,
    turn.seconds[1] > 0 && `+ ${short(turn.seconds[1])} s decoding`,
    known(turn.confidence) && `confidence ${number(turn.confidence, 2)}`,
    known(turn.entropy) && `entropy ${number(turn.entropy, 2)}`,
    turn.finish === 'length' && 'cut off',
  ].filter(Boolean);
  const plain = !turn.observation && !turn.think;
  return html`<li class=${`turn-card${active && active.arm === index && active.turn === n ? ' active' : ''}`}
    id=${`turn-${index}-${n}`} tabindex="-1" onMouseEnter=${() => point({ arm: index, turn: n })}
    onMouseLeave=${() => point(null)}>
    <div class="no">${n}</div><div class="body">
    ${turn.forced && html`<p><span class="chip forced">forced</span> <span class="quiet"><bdi>${turn.forced}</bdi>
      </span></p>`}
    ${turn.observation && html`<p class="o"><i>Observed</i><bdi><${Long} text=${turn.observation} /></bdi></p>`}
    ${turn.think && html`<p class="t"><i>Thought</i><bdi><${Long} text=${turn.think} /></bdi></p>`}
    ${plain && turn.text && html`<p class="o"><i>Wrote</i><bdi><${Long} text=${turn.text} /></bdi></p>`}
    ${known(turn.answer) ? html`<p class="a"><i>Answered</i><bdi><${Long} text=${turn.answer} limit=${300} /></bdi>
      </p>` : turn.words && html`<p class="a"><i>Did</i><code><${Long} text=${turn.words} limit=${300} /></code></p>`}
    ${turn.error && html`<p class="error"><b>${turn.error[0]}</b> <bdi>${turn.error[1]}</bdi></p>`}
    ${look && html`<${Look} look=${look} turn=${n} />`}
    <p class="facts">${facts.join(' · ')}</p>
    ${!plain && turn.text && html`<details class="raw">
      <summary>as written${turn.repairs.length ? `, with ${count(turn.repairs.length, 'repair')}` : ''}</summary>
      ${turn.repairs.length > 0 && html`<p class="quiet">${turn.repairs.join('; ')}</p>`}<pre><bdi>${turn.text}</bdi>
      </pre></details>`}</div></li>`;
}

function Episodes({ detail, active, point }) {
  const found = detail.arms
    .map((arm, index) => [arm, index])
    .filter(([arm]) => arm.turns.length || arm.looks.length || arm.lost);
  if (!found.length) return html`<p class="quiet">No arm has turns for this question.</p>`;
  return html`<div class="episodes">${found.map(
    ([
      arm,
      index,
    ]) => html`<section class=${`episode ${armClass(index)}`} aria-label=${`Turns of ${arms[index].name}`}><h3>
      <${ArmName} arm=${index} /><span class="quiet">
      ${[`${count(arm.turns.length, 'turn')}${arm.allowed ? ` of ${arm.allowed}` : ''}`, arm.stop && (STOP_WORDS[arm.stop] ?? arm.stop), known(arm.seconds) && `${short(arm.seconds)} s`].filter(Boolean).join(', ')}</span></h3>
    ${arm.lost && html`<p class="lost-note">Pictures and sound can't be shown: <bdi>${arm.lost}</bdi></p>`}
    <ol>${arm.looks.some((look) => look.turn === 0) && html`<li class="turn-card"><div class="no">·</div>
      <div class="body"><p class="quiet">Shown before the one turn</p>
      ${arm.looks.filter((look) => look.turn === 0).map((look) => html`<${Look} look=${look} turn=${0} />`)}</div>
      </li>`}
    ${arm.turns.map((turn, i) => html`<${TurnCard} arm=${arm} index=${index} turn=${turn} n=${i + 1}
      active=${active} point=${point} />`)}</ol></section>`,
  )}</div>`;
}

const details = new Map();

/** A question's details; null while the page is still being read. */
function detailOf(number) {
  if (!details.has(number)) {
    const block = document.getElementById(`q${number}`);
    if (!block) return null;
    if (details.size > 20) details.delete(details.keys().next().value);
    details.set(number, unpack(block.textContent));
  }
  return details.get(number);
}

function Question({ row, place, close, step }) {
  const [active, point] = useState(null);
  const [, setRead] = useState(0);
  const top = useRef(null);
  useEffect(() => {
    top.current.scrollTop = 0;
    top.current.focus({ preventScroll: true });
  }, [row.number]);
  const detail = detailOf(row.number);
  useEffect(() => {
    if (detail) return undefined;
    const timer = setInterval(() => setRead((n) => n + 1), 100);
    return () => clearInterval(timer);
  }, [detail]);
  const choose = ({ arm, turn }) => {
    const card = document.getElementById(`turn-${arm}-${turn}`);
    if (card) {
      card.scrollIntoView({ block: 'center' });
      card.focus({ preventScroll: true });
    }
  };
  const facts = [row.task, row.split, row.doc, row.bucket !== 'all' && row.bucket, row.kind].filter(Boolean);
  return html`<div class="question" role="dialog" aria-modal="true" aria-label=${`Question ${row.name}`}
    tabindex="-1" ref=${top}>
    <nav class="bar-top" aria-label="Question"><span class="facts"><bdi>${facts.join(' · ')}</bdi></span>
      <span class="steps"><span class="quiet">${place}</span>
      <button onClick=${() => step(-1)} aria-label="Previous question" aria-keyshortcuts="k">←</button>
        <button onClick=${() => step(1)} aria-label="Next question" aria-keyshortcuts="j">→</button>
        <button onClick=${close} aria-label="Close" aria-keyshortcuts="Escape">Close</button></span></nav>
    ${
      detail
        ? html`<div class="inner" key=${row.number}><${Asked} detail=${detail} row=${row} />
      ${detail.question.videos.map((_, video) => html`<${Ruler} detail=${detail} video=${video}
        active=${active} point=${point} choose=${choose} />`)}
      ${detail.question.videos.length > 0 && html`<${RulerKeys} detail=${detail} />`}
      <${Course} detail=${detail} active=${active} point=${point} /><${Episodes} detail=${detail}
        active=${active} point=${point} /></div>`
        : html`<p class="wait">Reading …</p>`
    }</div>`;
}
