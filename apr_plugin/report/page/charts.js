// One chart: series with intervals over a number axis, drawn by uPlot and redrawn when the colours or the width change.
const colour = (name, from = document.documentElement) => getComputedStyle(from).getPropertyValue(name).trim();
const repaint = new Set();
for (const query of ['(prefers-color-scheme: dark)', 'print'])
  matchMedia(query).addEventListener('change', () => repaint.forEach((draw) => draw()));

/**
 * Args: series [{arm, label, points: [{x, y, low, high}]}], extra (hollow points [{x, y, label}]), x {label, splits, values, scale}, y {label, percent}.
 */
function Chart({ series, extra = [], x, y, height = 260, label }) {
  const place = useRef(null);
  const [at, setAt] = useState(null);
  useLayoutEffect(() => {
    let plot = null,
      width = 0;
    const draw = () => {
      if (plot) plot.destroy();
      width = Math.max(220, Math.floor(place.current.clientWidth));
      plot = chart(place.current, { series, extra, x, y, width, height, onPoint: setAt });
    };
    draw();
    repaint.add(draw);
    const watch = new ResizeObserver(() => {
      if (Math.abs(place.current.clientWidth - width) > 2) draw();
    });
    watch.observe(place.current);
    return () => {
      watch.disconnect();
      repaint.delete(draw);
      plot.destroy();
    };
  }, [series, extra, x, y, height]);
  return html`<figure class="chart" role="group" aria-label=${label}>
    <div class="keys">${series.map((one) => html`<span class="key"><${Mark} arm=${one.arm} /><bdi>${one.label}</bdi>
      </span>`)}
      ${extra.length > 0 && html`<span class="key"><svg class="mark" width="12" height="12"
        viewBox="0 0 12 12" aria-hidden="true"><circle class="hollow" cx="6" cy="6" r="4.5" />
        </svg>published, not measured here</span>`}</div>
    <div class="plot" ref=${place} role="img" aria-label=${label}></div>
    <figcaption aria-live="polite">${at ?? html`<span class="quiet">
      ${y.label} over ${x.label}; bars are intervals. Point at a mark for its figures.</span>`}</figcaption></figure>`;
}

function chart(place, { series, extra, x, y, width, height, onPoint }) {
  const ink = colour('--ink-2'),
    line = colour('--line'),
    ground = colour('--paper');
  const probe = document.createElement('i');
  place.append(probe);
  const paint = series.map((one) => {
    probe.className = armClass(one.arm);
    return colour('--arm', probe);
  });
  probe.remove();
  const data = uPlot.join(
    [
      ...series.map((one) => [one.points.map((p) => p.x), one.points.map((p) => p.y)]),
      ...(extra.length
        ? [[unique(extra.map((p) => p.x)).sort((a, b) => a - b), unique(extra.map((p) => p.x)).map(() => null)]]
        : []),
    ].map((table) => {
      const order = table[0].map((_, i) => i).sort((a, b) => table[0][a] - table[0][b]);
      return table.map((column) => order.map((i) => column[i]));
    }),
  );
  const all = [
    ...series.flatMap((one) => one.points.flatMap((p) => [p.low, p.y, p.high])),
    ...extra.map((p) => p.y),
  ].filter(known);
  const most = Math.max(...all, 0),
    least = Math.min(...all, most);
  const span = most - least || most || 1;
  const range = y.percent
    ? [Math.max(0, Math.floor(10 * (least - 0.15 * span)) / 10), Math.min(1, Math.ceil(10 * (most + 0.1 * span)) / 10)]
    : [0, most * 1.1 || 1];
  const xs = [...series.flatMap((one) => one.points.map((p) => p.x)), ...extra.map((p) => p.x)];
  const wide = Math.max(...xs) - Math.min(...xs) || 1;
  const font = '12px system-ui, sans-serif';
  const axis = { stroke: ink, font, grid: { stroke: line, width: 1 }, ticks: { show: false } };
  const marks = [];
  const draw = (plot) => {
    const ctx = plot.ctx,
      ratio = devicePixelRatio;
    const px = (value) => plot.valToPos(value, 'x', true),
      py = (value) => plot.valToPos(value, 'y', true);
    marks.length = 0;
    ctx.save();
    ctx.lineWidth = 1.5 * ratio;
    series.forEach((one, index) => {
      ctx.strokeStyle = ctx.fillStyle = paint[index];
      for (const point of one.points) {
        if (!known(point.y)) continue;
        const cx = px(point.x),
          cy = py(point.y);
        if (known(point.low) && known(point.high)) {
          ctx.beginPath();
          ctx.moveTo(cx, py(point.low));
          ctx.lineTo(cx, py(point.high));
          for (const end of [point.low, point.high]) {
            ctx.moveTo(cx - 4 * ratio, py(end));
            ctx.lineTo(cx + 4 * ratio, py(end));
          }
          ctx.stroke();
        }
        ctx.save();
        ctx.translate(cx - 6 * ratio, cy - 6 * ratio);
        ctx.scale(ratio, ratio);
        const shape = new Path2D(SHAPES[one.arm % SHAPES.length]);
        ctx.lineWidth = 3;
        ctx.strokeStyle = ground;
        ctx.stroke(shape);
        ctx.fill(shape);
        ctx.restore();
        marks.push({
          cx: cx / ratio,
          cy: cy / ratio,
          text: `${one.label}, ${point.name ?? x.name(point.x)}: ${y.write(point.y)}${known(point.low) && known(point.high) ? ` (${y.write(point.low)} to ${y.write(point.high)})` : ''}${point.more ? `, ${point.more}` : ''}`,
        });
      }
    });
    ctx.font = `${11 * ratio}px system-ui, sans-serif`;
    ctx.textBaseline = 'middle';
    ctx.textAlign = 'left';
    const taken = marks.map((mark) => [mark.cx - 8, mark.cy - 8, mark.cx + 8, mark.cy + 8]);
    for (const point of extra) {
      const cx = px(point.x),
        cy = py(point.y);
      ctx.strokeStyle = ink;
      ctx.fillStyle = ground;
      ctx.beginPath();
      ctx.arc(cx, cy, 4.5 * ratio, 0, 2 * Math.PI);
      ctx.fill();
      ctx.stroke();
      const words = point.label.length > 30 ? `${point.label.slice(0, 29)}…` : point.label;
      const long = ctx.measureText(words).width / ratio;
      const left = cx / ratio + 9 + long > plot.bbox.left / ratio + plot.bbox.width / ratio;
      const from = left ? cx / ratio - 9 - long : cx / ratio + 9;
      const box = [from, cy / ratio - 7, from + long, cy / ratio + 7];
      marks.push({
        cx: cx / ratio,
        cy: cy / ratio,
        text: `published, not measured here: ${point.label}, ${x.name(point.x)}: ${y.write(point.y)}${point.more ? `; ${point.more}` : ''}`,
      });
      if (
        from < plot.bbox.left / ratio ||
        taken.some((t) => box[0] < t[2] && t[0] < box[2] && box[1] < t[3] && t[1] < box[3])
      )
        continue;
      taken.push(box);
      ctx.fillStyle = ink;
      ctx.fillText(words, from * ratio, cy);
    }
    ctx.restore();
  };
  return new uPlot(
    {
      width,
      height,
      padding: [12, 16, 0, 0],
      legend: { show: false },
      cursor: { x: false, y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: {
        x: {
          time: false,
          distr: x.scale === 'log' ? 4 : 1,
          asinh: 1,
          range: () => x.range ?? [Math.min(...xs) - 0.06 * wide, Math.max(...xs) + 0.06 * wide],
        },
        y: { range: () => range },
      },
      axes: [
        {
          ...axis,
          label: x.label,
          labelFont: font,
          labelSize: 22,
          size: 32,
          splits: x.splits && (() => x.splits),
          filter: (_, splits) => splits,
          values: (_, splits) => splits.map((value) => x.tick(value, width)),
          grid: { show: false },
        },
        { ...axis, size: 54, values: (_, splits) => splits.map(y.tick ?? y.write) },
      ],
      series: [
        {},
        ...series.map((one, index) => ({
          stroke: paint[index],
          width: 1.5,
          spanGaps: true,
          points: { show: false },
          paths: one.points.length > 1 ? undefined : () => null,
        })),
        ...(extra.length ? [{ show: false }] : []),
      ],
      hooks: {
        draw: [draw],
        setCursor: [
          (plot) => {
            const bounds = plot.bbox,
              ratio = devicePixelRatio;
            const at = [plot.cursor.left + bounds.left / ratio, plot.cursor.top + bounds.top / ratio];
            let best = null,
              least_ = 24 ** 2;
            for (const mark of marks) {
              const away = (mark.cx - at[0]) ** 2 + (mark.cy - at[1]) ** 2;
              if (away < least_) {
                best = mark;
                least_ = away;
              }
            }
            onPoint(best ? best.text : null);
          },
        ],
      },
    },
    data,
    place,
  );
}
