// What every part uses: reading blocks, numbers as text, the arms' colours and marks.
const { html, render, useState, useEffect, useLayoutEffect, useRef, useMemo } = htmPreact;

/** The JSON value in a block: base64 of raw deflated UTF-8. */
function unpack(base64) {
  const raw = atob(base64);
  const bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return JSON.parse(fflate.strFromU8(fflate.inflateSync(bytes)));
}

const head = unpack(document.getElementById('index').textContent);
const summary = head.summary;
const arms = head.arms;

/** A question's small row by name; arms' cells likewise. */
const rows = head.rows.map((row, number) => {
  const [task, split, doc, repeat, bucket, kind, text, video, duration, truth, cells] = row;
  const outcomes = cells.map(([status, score, flags, answer, looks, frames, tokens, stop]) => ({
    status: head.statuses[status],
    score,
    flags,
    answer,
    looks,
    frames,
    tokens,
    stop: stop === null ? null : head.stops[stop],
    right: status === 0 && score >= 0.5,
  }));
  const name = [task, doc, ...(repeat ? [`repeat ${repeat}`] : [])].join(' · ');
  const words = [text, task, doc, video, truth, bucket, ...outcomes.map((one) => one.answer ?? '')]
    .join('\n')
    .toLowerCase();
  return { number, task, split, doc, repeat, bucket, kind, text, video, duration, truth, outcomes, name, words };
});

const FLAG = Object.fromEntries(head.flags.map((name, bit) => [name, 1 << bit]));
const FLAG_WORDS = {
  repeat: 'it took a look that it had taken before',
  'no look': 'the agent answered without a look',
  forced: 'a limit was reached, and the answer came from a last, text-only call',
  hit: 'a look showed some of the evidence',
  miss: 'no look showed the evidence',
  unsupported: 'right, but no look showed the evidence',
  failed: 'the question could not be answered',
  refused: 'an action was refused, or could not be read',
};

const unique = (values) => [...new Set(values)];
const number = (value, digits = 0) =>
  value.toLocaleString('en-US', { minimumFractionDigits: digits, maximumFractionDigits: digits });
const count = (value, noun) => `${number(value)} ${noun}${value === 1 ? '' : 's'}`;
const known = (value) => value !== null && value !== undefined;

/** Three or four digits that matter. */
function short(value) {
  if (!known(value)) return '–';
  const size = Math.abs(value);
  if (size >= 1e6) return `${number(value / 1e6, size >= 1e7 ? 0 : 1)}M`;
  if (size >= 1e4) return `${number(value / 1e3, size >= 1e5 ? 0 : 1)}k`;
  if (size >= 100 || Number.isInteger(value)) return number(value);
  return number(value, size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 4);
}

const percent = (value) => (known(value) ? number(100 * value, 1) : '–');
const points = (value) =>
  known(value) ? `${value > 0 ? '+' : value < 0 ? '−' : ''}${number(100 * Math.abs(value), 1)}` : '–';
const probability = (p) => (!known(p) ? '–' : p < 0.001 ? '< 0.001' : number(p, 3));

/** Seconds as m:ss or h:mm:ss. */
function clock(seconds, fine = false) {
  if (!known(seconds)) return '–';
  const tenths = fine ? Math.round(seconds * 10) / 10 : Math.round(seconds);
  const h = Math.floor(tenths / 3600),
    m = Math.floor((tenths % 3600) / 60),
    s = tenths % 60;
  const rest = fine ? s.toFixed(1).padStart(4, '0') : String(s).padStart(2, '0');
  return h ? `${h}:${String(m).padStart(2, '0')}:${rest}` : `${m}:${rest}`;
}

const PALETTE = 8;
const armClass = (index) => `arm${index % PALETTE}`;
const armOf = (name) => arms.findIndex((arm) => arm.name === name);

/** The arm's own mark: a shape in its colour, so that arms differ without colour too. */
const SHAPES = [
  'M6 1.2A4.8 4.8 0 1 1 6 10.8A4.8 4.8 0 1 1 6 1.2Z',
  'M1.6 1.6H10.4V10.4H1.6Z',
  'M6 .8L11.2 10.4H.8Z',
  'M6 .4L11.6 6L6 11.6L.4 6Z',
  'M4 1H8V4H11V8H8V11H4V8H1V4H4Z',
  'M6 11.2L.8 1.6H11.2Z',
  'M3.2 1H8.8L11.4 6L8.8 11H3.2L.6 6Z',
  'M1 4H11V8H1Z',
];
const Mark = ({
  arm,
  size = 12,
}) => html`<svg class=${`mark ${armClass(arm)}`} width=${size} height=${size} viewBox="0 0 12 12"
  aria-hidden="true"><path d=${SHAPES[arm % SHAPES.length]} /></svg>`;
const ArmName = ({ arm }) => html`<span class="armname"><${Mark} arm=${arm} /><bdi>${arms[arm].name}</bdi></span>`;
const ArmNamed = ({ name }) =>
  armOf(name) < 0 ? html`<bdi>${String(name)}</bdi>` : html`<${ArmName} arm=${armOf(name)} />`;

/** What came of a question, as a sign in colour and shape. */
function Sign({ outcome, label }) {
  const kind = outcome.status !== 'scored' ? outcome.status : outcome.right ? 'right' : 'wrong';
  const paths = {
    right: html`<circle cx="8" cy="8" r="7" class="disc" /><path d="M4.6 8.3L7 10.6L11.4 5.6" />`,
    wrong: html`<circle cx="8" cy="8" r="6.2" class="ring" /><path d="M5.7 5.7L10.3 10.3M10.3 5.7L5.7 10.3" />`,
    failed: html`<path class="ring" d="M8 1.6L15 14H1Z" /><path d="M8 6V9.6M8 11.4V12.2" />`,
    missing: html`<path d="M4 8H12" />`,
  };
  const partial = outcome.status === 'scored' && outcome.score > 0 && outcome.score < 1;
  const words = `${label ? `${label}: ` : ''}${kind}${partial ? ` (${percent(outcome.score)})` : ''}`;
  return html`<svg class=${`sign ${kind}`} width="16" height="16" viewBox="0 0 16 16" role="img" aria-label=${words}>
    <title>${words}</title>${paths[kind]}</svg>`;
}

/** An interval as its value with the two ends in small print. */
function Interval({ value, as = percent, signed = false }) {
  if (!value || !known(value.value)) return html`<span class="none">–</span>`;
  const write = signed ? points : as;
  return html`<span class="interval"><b>${write(value.value)}</b>
    ${known(value.low) && known(value.high) && html`<small> ${write(value.low)} to ${write(value.high)}</small>`}
    </span>`;
}

const Section = ({ id, title, lead, children }) => html`<section id=${id} aria-labelledby=${`${id}-title`}>
  <h2 id=${`${id}-title`}>${title}</h2>${lead && html`<p class="lead">${lead}</p>`}${children}</section>`;
