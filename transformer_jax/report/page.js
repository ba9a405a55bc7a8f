'use strict';
// Tables that sort and curves that can be hovered and toggled. No dependencies; the page works from disk.

// --- Tables -----------------------------------------------------------------------------------------------------------

function sortKey(row, column) {
  const value = row.cells[column].dataset.value;
  return value === undefined || value === '' ? null : isNaN(value) ? value : Number(value);
}

function compare(a, b) {
  return typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b));
}

for (const table of document.querySelectorAll('table.sortable')) {
  const original = [...table.tBodies[0].rows];
  const headers = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  headers.forEach((header, column) => header.querySelector('button').addEventListener('click', () => {
    const next = {ascending: 'descending', descending: 'none'}[header.getAttribute('aria-sort')] || 'ascending';
    headers.forEach(other => other.setAttribute('aria-sort', 'none'));
    header.setAttribute('aria-sort', next);
    const sign = next === 'descending' ? -1 : 1;
    const rows = next === 'none' ? original : [...original].sort((one, two) => {
      const [a, b] = [sortKey(one, column), sortKey(two, column)];
      if (a === null || b === null) return (a === null) - (b === null);  // what is missing stays at the end
      return sign * compare(a, b);
    });
    table.tBodies[0].append(...rows);
  }));
}

// --- Curves -----------------------------------------------------------------------------------------------------------

// The colors of Okabe and Ito, which color-blind readers can tell apart; then the same with dashes. References have
// the color of the text.
const COLORS = ['#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c8c8c'];
const DASHES = ['', '7 4', '2 3', '9 3 2 3'];
const MARGIN = {left: 58, right: 14, top: 12, bottom: 38};

function svg(name, attributes, parent, text) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const show = value => value === 0 ? '0' : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3
  ? value.toExponential(2) : String(Number(value.toPrecision(4)));

function linearTicks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= rough);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step)
    ticks.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
    for (const factor of high / low > 100 ? [1] : [1, 2, 5])
      if (factor * 10 ** power >= low && factor * 10 ** power <= high) ticks.push(factor * 10 ** power);
  return ticks.length > 1 ? ticks : [low, high];
}

class Chart {
  constructor(box, data) {
    this.data = data;
    this.box = box;
    this.hidden = new Set();
    this.plot = box.querySelector('.plot');
    this.tip = box.querySelector('.tip');
    this.quantity = box.querySelector('select');
    this.seeds = box.querySelector('.seeds');
    this.log = box.querySelector('.log');
    this.late = box.querySelector('.late');
    for (const control of [this.quantity, this.seeds, this.log, this.late])
      control.addEventListener('change', () => this.draw());
    box.querySelector('.all').addEventListener('click', () => this.toggleAll());
    this.plot.addEventListener('pointermove', event => this.hover(event));
    this.plot.addEventListener('pointerdown', event => this.hover(event));
    this.plot.addEventListener('pointerleave', () => this.leave());
    addEventListener('resize', () => { if (this.plot.clientWidth !== this.width) this.draw(); });
    let plain = 0;
    this.styles = data.variants.map(variant => {
      const place = data.references.indexOf(variant);
      return place >= 0 ? {color: 'var(--ink)', dash: DASHES[place % 4], width: 2.6}
        : {color: COLORS[plain % 7], dash: DASHES[Math.floor(plain++ / 7) % 4], width: 1.9};
    });
    this.drawLegend();
    this.draw();
  }

  drawLegend() {
    const legend = this.box.querySelector('.legend');
    this.data.variants.forEach((variant, index) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.setAttribute('aria-pressed', 'true');
      const {color, dash, width} = this.styles[index];
      svg('line', {x1: 1, x2: 25, y1: 5, y2: 5, stroke: color, 'stroke-dasharray': dash, 'stroke-width': width},
        svg('svg', {viewBox: '0 0 26 10'}, button));
      const curves = Object.values(this.data.curves).flat().filter(curve => curve.variant === variant);
      const count = Math.max(...curves.map(curve => Object.keys(curve.seeds).length)), planned = this.data.planned;
      button.append(count < planned ? `${variant} (${count} of ${planned} seeds)` : variant);
      button.addEventListener('click', () => {
        if (!this.hidden.delete(variant)) this.hidden.add(variant);
        this.draw();
      });
      legend.append(button);
    });
  }

  toggleAll() {
    this.hidden = new Set(this.hidden.size ? [] : this.data.variants);
    this.draw();
  }

  visible() {
    const curves = this.data.curves[this.quantity.value];
    const last = Math.max(...curves.flatMap(curve => Object.values(curve.seeds)).map(seed => seed[seed.length - 1][0]));
    const shown = points => points.filter(([step]) => !this.late.checked || step >= last / 2);
    return curves.filter(curve => !this.hidden.has(curve.variant)).map(({variant, mean, seeds}) => (
      {variant, mean: shown(mean), seeds: Object.values(seeds).map(shown)}));
  }

  draw() {
    this.leave();
    this.box.querySelectorAll('.legend button').forEach((button, index) => {
      button.setAttribute('aria-pressed', String(!this.hidden.has(this.data.variants[index])));
      button.hidden = !this.data.curves[this.quantity.value].some(c => c.variant === this.data.variants[index]);
    });
    this.width = this.plot.clientWidth;
    const width = Math.max(280, this.width), height = width < 560 ? 280 : 380;
    this.plot.replaceChildren();
    this.plot.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.plot.style.height = `${height}px`;
    const drawn = this.visible(), single = !this.seeds.checked;
    const points = drawn.flatMap(c => single && c.mean.length ? c.mean : c.seeds.flat())
      .filter(([, value]) => value !== null && (!this.log.checked || value > 0));
    if (!points.length) return void svg('text', {x: width / 2, y: height / 2, 'text-anchor': 'middle'}, this.plot,
      'nothing to draw');
    this.scales(points, width, height);
    this.axes(width, height);
    for (const curve of drawn) {
      const style = this.styles[this.data.variants.indexOf(curve.variant)];
      if (this.seeds.checked)
        for (const seed of curve.seeds) this.path(seed, {...style, width: 1}, .38);
      this.path(curve.mean, style, 1);
    }
    this.cursor = svg('g', {}, this.plot);
  }

  scales(points, width, height) {
    const range = index => points.reduce(([low, high], p) => [Math.min(low, p[index]), Math.max(high, p[index])],
      [Infinity, -Infinity]);
    const warp = this.log.checked ? Math.log : value => value;
    const [first, last] = range(0);
    let [low, high] = range(1);
    if (low === high) [low, high] = this.log.checked ? [low / 2, high * 2] : [low - .5, high + .5];
    const pad = (warp(high) - warp(low)) * .04;
    const [bottom, top] = [warp(low) - pad, warp(high) + pad];
    const inner = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
    this.x = step => MARGIN.left + (last > first ? (step - first) / (last - first) : .5) * inner[0];
    this.y = value => MARGIN.top + (top - warp(value)) / (top - bottom) * inner[1];
    Object.assign(this, {first, last, low, high});
  }

  axes(width, height) {
    const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
    const ticks = this.log.checked ? logTicks(this.low, this.high) : linearTicks(this.low, this.high, 6);
    for (const tick of ticks) {
      svg('line', {class: 'grid', x1: MARGIN.left, x2: right, y1: this.y(tick), y2: this.y(tick)}, this.plot);
      svg('text', {x: MARGIN.left - 8, y: this.y(tick) + 4, 'text-anchor': 'end'}, this.plot, show(tick));
    }
    for (const tick of this.last > this.first ? linearTicks(this.first, this.last, width / 110) : [this.first])
      svg('text', {x: this.x(tick), y: bottom + 16, 'text-anchor': 'middle'}, this.plot, tick.toLocaleString('en'));
    svg('text', {x: (MARGIN.left + right) / 2, y: height - 5, 'text-anchor': 'middle'}, this.plot, 'step');
  }

  path(points, {color, dash, width}, opacity) {
    let d = '', pen = 'M';
    for (const [step, value] of points) {
      if (value === null || (this.log.checked && value <= 0)) { pen = 'M'; continue; }  // a gap
      d += `${pen}${this.x(step).toFixed(1)} ${this.y(value).toFixed(1)}`;
      pen = 'L';
    }
    svg('path', {d, opacity, style: `stroke:${color}`, 'stroke-width': width, 'stroke-dasharray': dash}, this.plot);
  }

  hover(event) {
    const drawn = this.visible().filter(curve => curve.mean.length);
    if (!drawn.length || !this.cursor) return;
    const box = this.plot.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const nearest = points => points.reduce((best, p) => Math.abs(this.x(p[0]) - x) < Math.abs(this.x(best[0]) - x)
      ? p : best);
    const step = nearest(drawn.map(curve => nearest(curve.mean)))[0];
    const found = drawn.map(curve => ({curve, value: (curve.mean.find(p => p[0] === step) || [])[1]}))
      .filter(({value}) => value !== undefined && value !== null && (!this.log.checked || value > 0))
      .map(entry => ({...entry, distance: Math.abs(this.y(entry.value) - y)})).sort((a, b) => a.distance - b.distance);
    this.cursor.replaceChildren();
    svg('line', {class: 'cursor', x1: this.x(step), x2: this.x(step), y1: MARGIN.top,
      y2: box.height - MARGIN.bottom}, this.cursor);
    this.tip.replaceChildren(Object.assign(document.createElement('div'),
      {className: 'faint', textContent: `step ${step.toLocaleString('en')}`}));
    const listed = found.slice(0, 12).sort((a, b) => b.value - a.value);
    for (const {curve, value} of listed) {
      const color = this.styles[this.data.variants.indexOf(curve.variant)].color;
      svg('circle', {cx: this.x(step), cy: this.y(value), r: 3.4, style: `fill:${color}`}, this.cursor);
      const line = document.createElement('div'), number = document.createElement('b');
      line.className = curve === found[0].curve ? 'near' : '';
      number.textContent = Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3) ? show(value)
        : value.toPrecision(4);
      line.append(curve.variant, number);
      this.tip.append(line);
    }
    this.tip.hidden = false;
    const frame = this.box.getBoundingClientRect(), left = box.left - frame.left + this.x(step) + 14;
    const flip = left + this.tip.offsetWidth > frame.width;
    this.tip.style.left = `${flip ? Math.max(4, left - this.tip.offsetWidth - 28) : left}px`;
    this.tip.style.top = `${box.top - frame.top + Math.max(0, Math.min(y, box.height - this.tip.offsetHeight))}px`;
  }

  leave() {
    this.tip.hidden = true;
    if (this.cursor) this.cursor.replaceChildren();
  }
}

const data = document.getElementById('curves-data');
if (data) new Chart(document.querySelector('.chart'), JSON.parse(data.textContent));

// --- Heads ------------------------------------------------------------------------------------------------------------

for (const box of document.querySelectorAll('.probed')) {
  const slider = box.querySelector('input'), steps = [...box.querySelectorAll('.heads')];
  if (!slider) continue;
  const update = () => {
    steps.forEach((step, index) => { step.hidden = index !== Number(slider.value); });
    box.querySelector('output').textContent = `step ${Number(steps[slider.value].dataset.step).toLocaleString('en')}`;
  };
  slider.addEventListener('input', update);
  update();
}
