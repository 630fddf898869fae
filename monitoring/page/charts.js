// Lines over the last minutes, as SVG. All charts share one cursor: pointing at a moment in one reads it in all.
const NS = "http://www.w3.org/2000/svg";
const TOP = 8, BOTTOM = 22, RIGHT = 8;
const pen = document.createElement("canvas").getContext("2d");

const element = (name, attributes, parent, text) => {
  const made = document.createElementNS(NS, name);
  for (const key in attributes) made.setAttribute(key, attributes[key]);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};
const widthOf = (text) => {
  pen.font = "11px " + getComputedStyle(document.body).fontFamily;
  return pen.measureText(text).width;
};

// Steps of 1, 2, 2.5 or 5 so that about four lines cross the chart.
const ticksUpTo = (high) => {
  const rough = high / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((digit) => digit * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let at = 0; at * step <= high * 1.0001; at++) found.push(Number((at * step).toPrecision(12)));
  return found;
};
const TIME_STEPS_S = [30, 60, 120, 300, 600];

// The shared moment that is read: Unix seconds of a slot, or null for the newest.
export const cursor = { at: null, listeners: new Set(), move(at) {
  if (this.at === at) return;
  this.at = at;
  for (const listener of this.listeners) listener();
} };

/* One chart.
 *   place   where it goes
 *   spec    { series: [{ name, value(row), style, area, marks }], write(value), least, most }
 *           value gives null where nothing is known; least is the smallest top of the axis, most a fixed top
 *   said    { title, at, keys } elements beside the plot
 *   words   { clock(seconds, precise), name(key), now(), nothing(), tell(text), describe(values, time) }
 */
export const chart = (place, spec, said, words) => {
  let rows = [], from = 0, to = 1, spacing = 2, note = null;
  const svg = element("svg", { "aria-hidden": "true" });
  place.append(svg);

  const shown = () => rows.filter((row) => row.at >= from && row.at <= to);
  const seriesOf = (visible) => spec.series.filter((each) => !each.when || each.when(visible));
  const rowAt = (visible, at) => {
    if (!visible.length) return null;
    if (at === null) return visible[visible.length - 1];
    return visible.reduce((best, row) => (Math.abs(row.at - at) < Math.abs(best.at - at) ? row : best));
  };

  const read = (visible, series) => {
    const row = rowAt(visible, cursor.at);
    said.at.textContent = cursor.at === null || !row ? words.now() : words.clock(row.at, true);
    said.keys.replaceChildren(...series.map((each) => {
      const item = document.createElement("li"), value = row ? each.value(row) : null;
      const swatch = element("svg", { width: 18, height: 10, "aria-hidden": "true" });
      element("path", { d: "M1 5h16", class: "line " + each.style, "stroke-width": 2.4, fill: "none" }, swatch);
      const figure = document.createElement("b");
      figure.textContent = value === null || value === undefined ? "–" : spec.write(value);
      item.append(swatch, words.name(each.name) + " ", figure);
      return item;
    }));
    return row;
  };
  const sentence = () => {
    const visible = shown(), row = rowAt(visible, cursor.at);
    const values = seriesOf(visible).map((each) => {
      const value = row ? each.value(row) : null;
      return words.name(each.name) + " " + (value === null || value === undefined ? "–" : spec.write(value));
    });
    return words.describe(said.title.textContent, values.join(", "), row ? words.clock(row.at, true) : words.now());
  };

  let geometry = null;
  const paint = () => {
    const width = Math.floor(place.clientWidth) - 8;
    const height = Math.floor(place.clientHeight);
    if (width < 40 || height < 40) return;
    const visible = shown(), series = seriesOf(visible);
    const lines = series.map((each) => visible.map(each.value));
    let high = spec.least;
    for (const values of lines) for (const value of values) if (value > high) high = value;
    if (spec.most) high = spec.most;
    else high *= 1.08;
    const ticks = ticksUpTo(high);
    const left = Math.ceil(Math.max(...ticks.map((tick) => widthOf(spec.tick(tick))))) + 8, right = width - RIGHT;
    const x = (at) => left + ((at - from) / (to - from)) * (right - left);
    const y = (value) => height - BOTTOM - (value / high) * (height - BOTTOM - TOP);
    const ground = element("g", {});
    for (const tick of ticks) {
      element("path", { d: `M${left} ${y(tick)}H${right}`, class: "grid" }, ground);
      element("text", { x: left - 7, y: y(tick), "text-anchor": "end", "dominant-baseline": "central" }, ground, spec.tick(tick));
    }
    const room = widthOf("00:00:00") + 18;
    const step = TIME_STEPS_S.find((each) => ((right - left) * each) / (to - from) >= room) || 600;
    // Steps count from the hour of the reader's own clock.
    for (let at = Math.ceil(from / step) * step; at <= to; at += step) {
      const px = x(at), half = widthOf(words.clock(at, step < 60)) / 2;
      if (px - half < left - 2 || px + half > width) continue;
      element("path", { d: `M${px} ${height - BOTTOM}v4`, class: "grid" }, ground);
      element("text", { x: px, y: height - 5, "text-anchor": "middle" }, ground, words.clock(at, step < 60));
    }
    let known = false;
    const base = y(0).toFixed(1);
    series.forEach((each, number) => {
      // What follows too late is another line: a hole in what is known is not drawn over.
      const parts = [];
      let last = -Infinity;
      visible.forEach((row, at) => {
        const value = lines[number][at];
        if (value === null || value === undefined) return;
        if (row.at - last > Math.max(spacing * 1.5, each.gap || 0)) parts.push([]);
        parts[parts.length - 1].push([x(row.at).toFixed(1), y(Math.min(value, high)).toFixed(1)]);
        last = row.at;
      });
      known ||= parts.length > 0;
      const path = parts.map((points) => "M" + points.map((point) => point.join(" ")).join("L")).join("");
      const area = parts.map((points) => `M${points[0][0]} ${base}L${points.map((point) => point.join(" ")).join("L")}V${base}Z`).join("");
      if (each.area) element("path", { d: area, class: "area " + each.style }, ground);
      element("path", { d: path, class: "line " + each.style }, ground);
    });
    if (!known) element("text", { x: (left + right) / 2, y: height / 2 - 6, "text-anchor": "middle", class: "nothing" }, ground, note || words.nothing());
    const row = read(visible, series);
    if (cursor.at !== null && row) {
      element("path", { d: `M${x(row.at)} ${TOP}V${height - BOTTOM}`, class: "cursor" }, ground);
      series.forEach((each) => {
        const value = each.value(row);
        if (value !== null && value !== undefined) element("circle", { cx: x(row.at), cy: y(Math.min(value, high)), r: 4, class: "point " + each.style.split(" ")[0] }, ground);
      });
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren(ground);
    place.setAttribute("aria-label", sentence());
    geometry = { left, right };
  };

  const pointed = (event) => {
    if (!geometry) return;
    const px = event.clientX - svg.getBoundingClientRect().left;
    const at = from + ((px - geometry.left) / (geometry.right - geometry.left)) * (to - from);
    const row = rowAt(shown(), at);
    cursor.move(row ? row.at : null);
  };
  place.addEventListener("pointermove", pointed);
  place.addEventListener("pointerdown", pointed);
  place.addEventListener("pointerleave", () => cursor.move(null));
  place.addEventListener("blur", () => cursor.move(null));
  place.addEventListener("keydown", (event) => {
    const visible = shown();
    if (event.key === "Escape") { cursor.move(null); return; }
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (steps === undefined || !visible.length) return;
    event.preventDefault();
    const here = visible.indexOf(rowAt(visible, cursor.at));
    cursor.move(visible[Math.max(0, Math.min(visible.length - 1, here + steps))].at);
    words.tell(sentence());
  });
  cursor.listeners.add(paint);
  new ResizeObserver(paint).observe(place);

  return (given, begin, end, seconds, why) => {
    [rows, from, to, spacing, note] = [given, begin, end, seconds, why];
    paint();
  };
};
