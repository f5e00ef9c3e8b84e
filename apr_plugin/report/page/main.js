// The page: sections, the list, the question that is open, and the keyboard.
const keyOf = (row) => [row.task, row.split, row.doc, row.repeat].map(encodeURIComponent).join('/');
const fromHash = () => {
  const found = /^#q=(.*)$/.exec(location.hash);
  return found ? (rows.find((row) => keyOf(row) === found[1])?.number ?? null) : null;
};

function Contents() {
  const parts = [
    ['result', 'Result', true],
    ['pairs', 'Pairs', summary.pairs?.length],
    ['flips', 'Flips', summary.pairs?.length],
    ['duration', 'Duration', summary.buckets?.length],
    ['scaling', 'Scaling', summary.sweep?.points?.length],
    ['frames', 'Frames', summary.arms?.length],
    ['stops', 'Stops', summary.arms?.some((arm) => Object.keys(arm.stops ?? {}).length)],
    ['aiming', 'Aiming', summary.ladder || Object.keys(summary.aiming ?? {}).length],
    ['questions', 'Questions', true],
  ];
  const go = (event, id) => {
    event.preventDefault();
    document.getElementById(id)?.scrollIntoView();
  };
  return html`<nav class="contents" aria-label="Contents">
    ${parts.filter(([, , there]) => there).map(([id, word]) => html`<a href=${`#${id}`}
    onClick=${(event) => go(event, id)}>${word}</a>`)}</nav>`;
}

function App() {
  const [filter, setFilterState] = useState(NOTHING);
  const [at, setAt] = useState(0);
  const [opened, setOpened] = useState(fromHash);
  const found = useMemo(() => filtered(filter), [filter]);
  const search = useRef(null),
    list = useRef(null);
  const setFilter = (next) => {
    setFilterState(next);
    setAt(0);
  };
  const open = (number_) => {
    setOpened(number_);
    history.replaceState(null, '', number_ === null ? '#' : `#q=${keyOf(rows[number_])}`);
  };
  const close = () => {
    open(null);
    setTimeout(() => list.current.focus({ preventScroll: true }));
  };
  const place = opened === null ? -1 : found.findIndex((row) => row.number === opened);
  const step = (by) => {
    const next = place < 0 ? 0 : place + by;
    if (found[next]) {
      setAt(next);
      open(found[next].number);
    }
  };
  const choose = (outcome, scored) => {
    setFilter({ ...NOTHING, outcome, scored: scored || [] });
    document.getElementById('questions').scrollIntoView();
    list.current.focus({ preventScroll: true });
  };
  const move = (to) => {
    setAt(Math.max(0, Math.min(found.length - 1, to)));
    list.current.focus({ preventScroll: document.activeElement === list.current });
  };
  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest?.('input, select, textarea');
    const act = (what) => {
      event.preventDefault();
      what();
    };
    if (event.key === 'Escape') return opened !== null ? act(close) : typing && event.target.blur();
    if (typing) return event.key === 'Enter' && event.target === search.current && act(() => move(at));
    if (opened !== null) {
      if (event.key === 'j' || event.key === 'ArrowRight') return act(() => step(1));
      if (event.key === 'k' || event.key === 'ArrowLeft') return act(() => step(-1));
      return undefined;
    }
    if (event.key === '/')
      return act(() => {
        search.current.focus();
        search.current.select();
      });
    const inList = document.activeElement === list.current;
    const steps = {
      j: 1,
      k: -1,
      ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -1e9, End: 1e9 } : {}),
    };
    if (event.key in steps) return act(() => move(at + steps[event.key]));
    if (event.key === 'Enter' && inList && found[at]) return act(() => open(found[at].number));
    return undefined;
  };
  const latest = useRef(onKey);
  latest.current = onKey;
  useEffect(() => {
    const listen = (event) => latest.current(event);
    const moved = () => setOpened(fromHash());
    addEventListener('keydown', listen);
    addEventListener('hashchange', moved);
    return () => {
      removeEventListener('keydown', listen);
      removeEventListener('hashchange', moved);
    };
  }, []);
  useLayoutEffect(() => document.body.classList.toggle('reading', opened !== null), [opened]);
  return html`<div class="page" inert=${opened !== null}><${Contents} /><main><${Title} /><${Headline} /><${Pairs} />
    <${Flips} choose=${choose} /><${Duration} /><${Scaling} /><${Frames} /><${Stops} /><${Aiming} />
    <${Section} id="questions" title="Questions"><${Filters} filter=${filter} setFilter=${setFilter}
      found=${found} search=${search} />
      <p class="hint"><kbd>j</kbd> <kbd>k</kbd> or arrows move, <kbd>Enter</kbd> opens, <kbd>Esc</kbd> closes, <kbd>/</kbd> searches</p>
      <${List} found=${found} at=${at} setAt=${setAt} open=${open} list=${list} /></${Section}>
    <footer>Made ${String(summary.made || document.body.dataset.made)}. Everything is in this one file; it loads nothing.</footer></main></div>
    ${opened !== null && html`<${Question} row=${rows[opened]}
      place=${place < 0 ? '' : `${number(place + 1)} of ${number(found.length)}`} close=${close} step=${step} />`}`;
}

const root = document.getElementById('app');
root.textContent = '';
render(html`<${App} />`, root);
document.body.dataset.ready = String(Math.round(performance.now()));

if (document.body.dataset.live) {
  setInterval(async () => {
    try {
      const answer = await fetch('/version', { cache: 'no-store' });
      if (answer.ok && (await answer.text()) !== document.body.dataset.live) location.reload();
    } catch {
      /* the server has ended; the page stays as it is */
    }
  }, 2000);
}
