// The top of the page: headline, arms, pairs, flips, aiming.
function Title() {
  const tasks = summary.tasks ?? [];
  const facts = [
    count(summary.n ?? rows.length, 'question'),
    known(summary.common) && arms.length > 1 && `${number(summary.common)} with a score from every arm`,
    tasks.join(', '),
  ].filter(Boolean);
  return html`<header class="title"><h1>${String(summary.title || 'Report')}</h1><p class="facts">${facts.join(' · ')}
    </p></header>`;
}

function Headline() {
  const said = summary.headline ?? [],
    notes = summary.notes ?? [];
  return html`<section id="result" aria-label="Result"><div class="headline">${said.map((line) => html`<p>
    ${String(line)}</p>`)}</div>
    <${Arms} />
    ${notes.length > 0 && html`<div class="notes"><h3>Notes</h3><ul>${notes.map((note) => html`<li>${String(note)}
      </li>`)}</ul></div>`}</section>`;
}

function Arms() {
  const found = shown(summary.arms ?? []);
  if (!found.length) return null;
  const several = found.length > 1;
  const costs = [
    'frames',
    'visual_tokens',
    'turns',
    'seconds',
    'usd',
    'audio_s',
    'prompt_tokens',
    'completion_tokens',
  ].filter((name) => found.some((arm) => known(arm.cost?.[name]?.value)));
  const graded = found.some((arm) => known(arm.accuracy?.value) && arm.accuracy.value !== arm.score?.value);
  const lost = (arm) =>
    [
      [arm.failed, 'failed'],
      [arm.missing, 'missing'],
    ]
      .filter(([n]) => n)
      .map(([n, word]) => `${number(n)} ${word}`)
      .join(', ');
  return html`<div class="scroll"><table class="arms"><thead>
    <tr><th scope="col">arm</th><th scope="col">score, %</th><th class="wide"><span class="scale"><i>0</i><i>50</i>
      <i>100</i></span></th>
      ${graded && html`<th class="num">right, %</th>`}${several && html`<th class="num">common subset, %</th>`}
      <th class="num">questions</th>
    ${costs.map((name) => html`<th class="num">${COSTS[name]}</th>`)}</tr></thead><tbody>
    ${found.map(
      (
        arm,
      ) => html`<tr><th scope="row"><${ArmNamed} name=${arm.name} />${arm.kind !== arm.name && html`<small>
        ${String(arm.kind)}</small>`}</th>
      <td><${Interval} value=${arm.score} /></td><td class="wide"><${Dot} value=${arm.score} arm=${armOf(arm.name)} />
        </td>
      ${graded && html`<td class="num"><${Interval} value=${arm.accuracy} /></td>`}${several && html`<td class="num">
        <${Interval} value=${arm.common_score} /></td>`}
      <td class="num">${number(arm.scored ?? 0)} of ${number(arm.n ?? 0)}${lost(arm) && html`<small class="lost">
        ${lost(arm)}</small>`}</td>
      ${costs.map((name) => html`<td class="num">${arm.imported && !known(arm.cost?.[name]?.value) ? html`<small>
        not recorded</small>` : html`<${Interval} value=${arm.cost?.[name]} as=${short} />
        ${arm.imported && arm.cost[name].n < arm.n && html`<small>n = ${number(arm.cost[name].n)}</small>`}`}</td>`)}</tr>`,
    )}</tbody></table></div>
    <details class="more"><summary>Where the arms come from</summary>${found.map(
      (arm) => html`<div class="about"><h3><${ArmNamed} name=${arm.name} /></h3><dl>
      ${Object.entries({ ...arms[armOf(arm.name)].about, ...(arm.about ?? {}) })
        .filter(([, value]) => known(value) && value !== '')
        .map(
          ([name, value]) =>
            html`<div><dt>${String(name)}</dt><dd><bdi>
              ${typeof value === 'object' ? JSON.stringify(value) : String(value)}</bdi></dd></div>`,
        )}</dl>
      ${(arm.notes ?? []).length > 0 && html`<ul>${arm.notes.map((note) => html`<li>${String(note)}</li>`)}</ul>`}
        </div>`,
    )}
      ${summary.command && html`<p class="command"><code>${String(summary.command)}</code></p>`}</details>`;
}

function Pairs() {
  const pairs = summary.pairs ?? [];
  if (!pairs.length) return null;
  return html`<${Section} id="pairs" title="Pairs"
    lead="The same questions, answered by two arms. A difference is in percentage points; its interval is paired.">
    <div class="scroll"><table><thead><tr><th>pair</th><th class="num">n</th><th class="num">difference</th>
      <th class="num">p</th><th>test</th><th class="num">smallest visible</th><th class="num">questions needed</th>
      </tr></thead><tbody>
    ${pairs.map(
      (
        pair,
      ) => html`<tr><th scope="row"><${ArmNamed} name=${pair.a} /> <span class="minus">−</span> <${ArmNamed}
        name=${pair.b} /></th><td class="num">${number(pair.n)}</td><td class="num"><${Interval}
        value=${pair.diff} signed /></td>
      <td class="num">${probability(pair.p)}</td><td>${String(pair.test ?? '')}</td><td class="num">
        ${points(pair.visible).replace('+', '')}</td><td class="num">${known(pair.needed) ? number(pair.needed) : '–'}
        </td></tr>`,
    )}</tbody></table></div>
    ${
      pairs.some((pair) => pair.buckets?.length) &&
      html`<details class="more" open=${pairs.length === 1}>
        <summary>By duration, corrected with Holm's method</summary><div class="scroll"><table><thead><tr>
        <th>pair</th><th>duration</th><th class="num">n</th><th class="num">difference</th><th class="num">p</th>
        <th class="num">p, Holm</th></tr></thead><tbody>
    ${pairs.flatMap((pair) => (pair.buckets ?? []).map((bucket) => html`<tr><td><${ArmNamed}
      name=${pair.a} /> <span class="minus">−</span> <${ArmNamed} name=${pair.b} /></td><td>${String(bucket.name)}
      </td><td class="num">${number(bucket.n)}</td><td class="num"><${Interval} value=${bucket.diff} signed /></td>
      <td class="num">${probability(bucket.p)}</td><td class="num">${probability(bucket.p_holm)}</td></tr>`))}</tbody>
      </table></div></details>`
    }</${Section}>`;
}

/** The four cells of a pair; a question without a score counts as wrong where the pair is about every question. */
function flipsOf(pair) {
  const a = armOf(pair.a),
    b = armOf(pair.b);
  if (a < 0 || b < 0) return null;
  const all = pair.n === rows.length;
  const asked = rows.filter(
    (row) => all || (row.outcomes[a].status === 'scored' && row.outcomes[b].status === 'scored'),
  );
  const n = (x, y) => asked.filter((row) => row.outcomes[a].right === x && row.outcomes[b].right === y).length;
  return { a, b, all, both: n(true, true), onlyA: n(true, false), onlyB: n(false, true), neither: n(false, false) };
}

function Flips({ choose }) {
  const pairs = (summary.pairs ?? []).map((pair) => ({ pair, flips: flipsOf(pair) })).filter((one) => one.flips);
  if (!pairs.length) return null;
  return html`<${Section} id="flips" title="Flips"
    lead="Which questions the two arms disagree on. Choose a cell to list its questions.">
    <div class="flips">${pairs.map(({ pair, flips: { a, b, all, both, onlyA, onlyB, neither } }) => {
      const cell = (n, x, y, words, kind) =>
        html`<button class=${`cell ${kind}`} onClick=${() => choose({ [a]: x, [b]: y }, !all && [a, b])}
          aria-label=${`${count(n, 'question')}: ${words}`}><b>${number(n)}</b><span>${words}</span></button>`;
      const name = (index) => arms[index].name;
      return html`<div class="flip"><div class="versus"><${ArmName} arm=${a} /><span class="minus">against</span>
        <${ArmName} arm=${b} /></div>
        <div class="cells">${cell(onlyA, 'right', 'wrong*', `right in ${name(a)}, wrong in ${name(b)}`, armClass(a))}${cell(onlyB, 'wrong*', 'right', `right in ${name(b)}, wrong in ${name(a)}`, armClass(b))}
        ${cell(both, 'right', 'right', 'right in both', 'same')}${cell(neither, 'wrong*', 'wrong*', 'wrong in both', 'same')}</div>
        <p>Difference <${Interval}
          value=${pair.diff} signed /> points, p ${probability(pair.p).startsWith('<') ? '' : '= '}${probability(pair.p)}</p></div>`;
    })}</div></${Section}>`;
}

const AIMING = {
  hit: ['hit', 'questions in which a look showed some of the evidence', percent],
  spans_hit: ['spans hit', 'share of the spans of evidence of which something was shown', percent],
  coverage: ['coverage', 'share of the seconds of evidence that the looks cover', percent],
  looks_to_hit: ['looks to the hit', 'looks until the first that showed evidence', short],
  wasted: ['wasted', 'share of looks that showed no evidence', percent],
  repeats: ['repeats', 'share of looks that had been taken before', percent],
  no_look: ['no look', 'questions answered without a look', percent],
  supported: ['right, supported', 'questions answered rightly after evidence was shown', percent],
  unsupported: ['right, unsupported', 'questions answered rightly although no evidence was shown', percent],
};

function Aiming() {
  const aiming = Object.entries(summary.aiming ?? {}).filter(([name]) => armOf(name) >= 0);
  const columns = Object.keys(AIMING).filter((name) => aiming.some(([, found]) => known(found?.[name]?.value)));
  if (!columns.length && !summary.ladder) return null;
  return html`<${Section} id="aiming" title="Aiming"
    lead="Whether the looks went to where the evidence is; for questions that say where. In %, except for counts of looks.">
    ${
      columns.length > 0 &&
      html`<div class="scroll"><table><thead><tr><th>arm</th>${columns.map((name) => html`<th class="num"
        title=${AIMING[name][1]}>${AIMING[name][0]}</th>`)}</tr></thead><tbody>
    ${aiming.map(([arm, found]) => html`<tr><th scope="row"><${ArmNamed} name=${arm} /></th>
      ${columns.map((name) => html`<td class="num"><${Interval} value=${found[name]} as=${AIMING[name][2]} /></td>`)}
      </tr>`)}</tbody></table></div>`
    }
    <${Ladder} /></${Section}>`;
}
