// The list of questions with its filters; only the rows in view are in the document.
const OUTCOMES = ['any', 'right', 'wrong', 'failed', 'missing'];
const TOLD = {
  any: 'any outcome',
  right: 'right',
  wrong: 'wrong',
  'wrong*': 'wrong or no score',
  failed: 'failed',
  missing: 'missing',
};
const NOTHING = { text: '', task: '', bucket: '', kind: '', outcome: {}, flags: [], scored: [] };

const isOutcome = (one, wanted) =>
  wanted === 'any' ||
  (wanted === 'right'
    ? one.right
    : wanted === 'wrong'
      ? one.status === 'scored' && !one.right
      : wanted === 'wrong*'
        ? !one.right
        : one.status === wanted);

function filtered(filter) {
  const words = filter.text.toLowerCase().split(/\s+/).filter(Boolean);
  const outcomes = Object.entries(filter.outcome);
  const flags = filter.flags.reduce((bits, name) => bits | FLAG[name], 0);
  return rows.filter(
    (row) =>
      (!filter.task || row.task === filter.task) &&
      (!filter.bucket || row.bucket === filter.bucket) &&
      (!filter.kind || row.kind === filter.kind) &&
      outcomes.every(([arm, wanted]) => isOutcome(row.outcomes[arm], wanted)) &&
      filter.scored.every((arm) => row.outcomes[arm].status === 'scored') &&
      (!flags || (row.outcomes.reduce((bits, one) => bits | one.flags, 0) & flags) === flags) &&
      words.every((word) => row.words.includes(word)),
  );
}

const changed = (filter) => JSON.stringify(filter) !== JSON.stringify(NOTHING);

function Choice({ label, value, values, onChoose, names = {}, all }) {
  return html`<label class="choice"><span>${label}</span><select value=${value}
    onChange=${(event) => onChoose(event.target.value)}>
    ${all !== undefined && html`<option value="">${all}</option>`}${values.map((one) => html`<option value=${one}>
      ${names[one] ?? one}</option>`)}</select></label>`;
}

function Filters({ filter, setFilter, found, search }) {
  const set = (change) => setFilter({ ...filter, ...change });
  const tasks = useMemo(() => unique(rows.map((row) => row.task)), []),
    kinds = useMemo(() => unique(rows.map((row) => row.kind)).filter(Boolean), []);
  const buckets = useMemo(() => {
    const order = (summary.buckets ?? []).map((bucket) => bucket.name);
    return unique(rows.map((row) => row.bucket)).sort((a, b) => order.indexOf(a) - order.indexOf(b));
  }, []);
  const flags = useMemo(
    () =>
      head.flags
        .map((name) => [name, rows.filter((row) => row.outcomes.some((one) => one.flags & FLAG[name])).length])
        .filter(([, n]) => n),
    [],
  );
  const outcome = (arm, wanted) => {
    const next = { ...filter.outcome, [arm]: wanted };
    if (wanted === 'any') delete next[arm];
    set({ outcome: next, scored: [] });
  };
  return html`<div class="filters" role="search" aria-label="Filter the questions">
    <label class="choice grow"><span>Search</span><input ref=${search} type="search" value=${filter.text}
      placeholder="words, doc id, video, answer" aria-keyshortcuts="/"
      onInput=${(event) => set({ text: event.target.value })} /></label>
    ${tasks.length > 1 && html`<${Choice} label="Task" value=${filter.task} values=${tasks} all="every task"
      onChoose=${(task) => set({ task })} />`}
    ${buckets.length > 1 && html`<${Choice} label="Duration" value=${filter.bucket} values=${buckets}
      all="every duration" onChoose=${(bucket) => set({ bucket })} />`}
    ${kinds.length > 1 && html`<${Choice} label="Kind" value=${filter.kind} values=${kinds} all="every kind"
      onChoose=${(kind) => set({ kind })} />`}
    ${arms.map((arm, index) => html`<${Choice} label=${html`<${ArmName} arm=${index} />`}
      value=${filter.outcome[index] ?? 'any'}
      values=${filter.outcome[index] === 'wrong*' ? [...OUTCOMES, 'wrong*'] : OUTCOMES} names=${TOLD}
      onChoose=${(wanted) => outcome(index, wanted)} />`)}
    <div class="flags" role="group" aria-label="Flags">${flags.map(([name, n]) => {
      const on = filter.flags.includes(name);
      return html`<button class="flag" aria-pressed=${on ? 'true' : 'false'} title=${FLAG_WORDS[name]}
        onClick=${() => set({ flags: on ? filter.flags.filter((one) => one !== name) : [...filter.flags, name] })}>
        ${name}<small>${number(n)}</small></button>`;
    })}
      ${changed(filter) && html`<button class="clear" onClick=${() => setFilter(NOTHING)}>Show all</button>`}</div>
    <p class="found" role="status">
      ${found.length === rows.length ? count(rows.length, 'question') : `${number(found.length)} of ${count(rows.length, 'question')}`}</p></div>`;
}

const FlagChips = ({ bits }) =>
  head.flags
    .filter((name) => bits & FLAG[name] && name !== 'hit' && name !== 'miss')
    .map((name) => html`<span class="chip" title=${FLAG_WORDS[name]}>${name}</span>`);

function Row({ row, height, top, active, n, of, onOpen }) {
  const facts = [
    row.task,
    row.doc,
    row.bucket !== 'all' && row.bucket,
    row.kind,
    row.duration > 0 && clock(row.duration),
  ].filter(Boolean);
  return html`<div class=${`row${active ? ' active' : ''}`} role="option" id=${`row${row.number}`}
    aria-selected=${active ? 'true' : 'false'} aria-posinset=${n} aria-setsize=${of}
    style=${{ top: `${top}px`, height: `${height}px` }} onClick=${onOpen}>
    <span class="signs">${row.outcomes.map((one, index) => html`<${Sign} outcome=${one}
      label=${arms[index].name} />`)}</span>
    <span class="asked"><bdi>${row.text || row.name}</bdi></span><span class="where"><bdi>${facts.join(' · ')}</bdi>
      </span>
    <span class="chips"><${FlagChips} bits=${row.outcomes.reduce((bits, one) => bits | one.flags, 0)} /></span></div>`;
}

function List({ found, at, setAt, open, list }) {
  const narrow = matchMedia('(max-width: 720px)').matches;
  const height = narrow ? 76 : 52;
  const [scroll, setScroll] = useState(0);
  const [room, setRoom] = useState(600);
  useLayoutEffect(() => {
    const watch = new ResizeObserver(() => setRoom(list.current.clientHeight));
    watch.observe(list.current);
    return () => watch.disconnect();
  }, []);
  useLayoutEffect(() => {
    const top = at * height,
      view = list.current;
    if (top < view.scrollTop) view.scrollTop = top;
    else if (top + height > view.scrollTop + view.clientHeight) view.scrollTop = top + height - view.clientHeight;
  }, [at, height]);
  const first = Math.max(0, Math.floor(scroll / height) - 8),
    last = Math.min(found.length, Math.ceil((scroll + room) / height) + 8);
  return html`<div class="list" role="listbox" tabindex="0" aria-label="Questions"
    aria-activedescendant=${found[at] ? `row${found[at].number}` : undefined} ref=${list}
    onScroll=${(event) => setScroll(event.target.scrollTop)}><div class="all"
      style=${{ height: `${found.length * height}px` }}>
    ${found.slice(first, last).map(
      (row, i) =>
        html`<${Row} key=${row.number} row=${row} height=${height} top=${(first + i) * height}
          active=${first + i === at} n=${first + i + 1} of=${found.length} onOpen=${() => {
          setAt(first + i);
          open(row.number);
        }} />`,
    )}
    ${!found.length && html`<p class="empty">No question passes these filters.</p>`}</div></div>`;
}
