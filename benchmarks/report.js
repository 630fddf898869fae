"use strict";
// Draws the plots that benchmarks/plots.py describes, as SVG; hover, drag to zoom, double click to show all again,
// a click on the legend to hide and show.
(() => {
  const NS = "http://www.w3.org/2000/svg";
  const INK = "#1f2933", GRID = "#e4e7eb", DIM = "#64748b", BAND = "rgba(100,116,139,0.12)";
  const pen = document.createElement("canvas").getContext("2d");
  const family = getComputedStyle(document.body).fontFamily;

  const element = (name, attributes, parent, text) => {
    const made = document.createElementNS(NS, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    if (parent) parent.append(made);
    return made;
  };
  const widthOf = (text, size) => {
    pen.font = size + "px " + family;
    return pen.measureText(text).width;
  };
  const short = (value) => {
    if (typeof value !== "number") return value;
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 100000 || size < 0.001) return value.toPrecision(3);
    return String(Number(value.toPrecision(4)));
  };

  const linearTicks = (low, high, count) => {
    const rough = (high - low) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((digit) => digit * power).find((each) => each >= rough * 0.999);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at++) found.push(Number((at * step).toPrecision(12)));
    return found;
  };
  const logTicks = (low, high, count) => {
    if (high / low < 6) return linearTicks(low, high, count).filter((tick) => tick > 0);
    for (const digits of [[1, 2, 5], [1]]) {
      const found = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
        for (const digit of digits) {
          const tick = Number((digit * 10 ** power).toPrecision(3));
          if (tick >= low * 0.999 && tick <= high * 1.001) found.push(tick);
        }
      if (found.length <= count + 2) return found;
      if (digits.length === 1) {
        const every = Math.ceil(found.length / Math.max(1, count));
        return found.filter((_, at) => at % every === 0);
      }
    }
  };

  // Axis of values or names -> how to place one, its ticks and how they are written.
  const scaleOf = (axis, values, from, to, zoom) => {
    const room = Math.abs(to - from);
    if (axis.categories) {
      const step = (to - from) / axis.categories.length;
      const index = new Map(axis.categories.map((name, at) => [name, at]));
      return { place: (name) => from + (index.get(name) + 0.5) * step, ticks: axis.categories, write: (name) => name, step };
    }
    let low = Infinity, high = -Infinity;
    for (const value of values) {
      if (axis.log && value <= 0) continue;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (low > high) [low, high] = axis.log ? [1, 10] : [0, 1];
    if (axis.range) [low, high] = axis.range;
    else if (axis.log) [low, high] = [low / 1.08, high * 1.08];
    else {
      if (axis.zero) low = Math.min(0, low);
      if (low === high) [low, high] = [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
      const pad = (high - low) * 0.04;
      high += pad;
      if (!(axis.zero && low === 0)) low -= pad;
    }
    if (zoom) [low, high] = zoom;
    const map = axis.log ? Math.log : (value) => value;
    const a = map(low), b = map(high);
    const place = (value) => from + ((map(value) - a) / (b - a)) * (to - from);
    const back = (pixel) => {
      const at = a + ((pixel - from) / (to - from)) * (b - a);
      return axis.log ? Math.exp(at) : at;
    };
    const ticks = (axis.log ? logTicks : linearTicks)(low, high, Math.max(2, room / (axis.vertical ? 42 : 84)));
    const write = axis.percent ? (value) => short(value * 100) + "%" : (value) => value >= 1000 ? value.toLocaleString("en") : short(value);
    return { place, back, ticks, write };
  };

  const SHAPES = {
    square: (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
    diamond: (x, y, r) => `M${x} ${y - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}z`,
    hollow: (x, y, r) => `M${x} ${y - r}l${r} ${r}l${-r} ${r}l${-r} ${-r}z`,
    cross: (x, y, r) => `M${x - r} ${y - r}l${2 * r} ${2 * r}m0 ${-2 * r}l${-2 * r} ${2 * r}`,
    tick: (x, y, r) => `M${x} ${y - r}v${2 * r}`,
  };
  const marks = (trace, x, y, group) => {
    const size = trace.size || 6, shape = SHAPES[trace.symbol];
    let path = "";
    if (!shape) {
      // A line of no length with round ends is a disc: one element for any number of points.
      for (let at = 0; at < x.length; at++) path += `M${x[at].toFixed(1)} ${y[at].toFixed(1)}h0`;
      element("path", { d: path, stroke: trace.colour, "stroke-width": size, "stroke-linecap": "round", fill: "none" }, group);
      return;
    }
    for (let at = 0; at < x.length; at++) path += shape(x[at], y[at], size / 2);
    const solid = trace.symbol === "square" || trace.symbol === "diamond";
    element("path", { d: path, fill: solid ? trace.colour : trace.symbol === "hollow" ? "#fff" : "none", stroke: trace.colour, "stroke-width": solid ? 0 : 1.8 }, group);
  };

  const draw = (place, plot, state) => {
    const width = Math.max(200, place.clientWidth), narrow = width < 480, font = narrow ? 11 : 12;
    const svg = element("svg", { width, height: plot.height, viewBox: `0 0 ${width} ${plot.height}`, role: "img" });
    element("title", {}, svg, place.dataset.title);
    const shown = plot.traces.filter((trace) => !state.hidden.has(trace.name || ""));

    // The legend, wrapped where it does not fit.
    const named = plot.traces.filter((trace) => trace.name && !trace.quiet);
    let legendX = 0, legendY = 10;
    if (named.length > 1)
      for (const trace of named) {
        const long = 22 + widthOf(trace.name, font) + 14;
        if (legendX + long > width && legendX > 0) [legendX, legendY] = [0, legendY + 20];
        const entry = element("g", { class: "legend", tabindex: 0, role: "button", opacity: state.hidden.has(trace.name) ? 0.35 : 1 }, svg);
        element("rect", { x: legendX, y: legendY - 10, width: long, height: 20, fill: "transparent" }, entry);
        if (trace.kind === "line") element("path", { d: `M${legendX} ${legendY}h16`, stroke: trace.colour, "stroke-width": 2.5, "stroke-dasharray": trace.dash || "none" }, entry);
        else marks({ ...trace, size: 9 }, [legendX + 8], [legendY], entry);
        element("text", { x: legendX + 22, y: legendY, "dominant-baseline": "central", "font-size": font, fill: INK }, entry, trace.name);
        const toggle = () => {
          state.hidden.has(trace.name) ? state.hidden.delete(trace.name) : state.hidden.add(trace.name);
          draw(place, plot, state);
        };
        entry.addEventListener("click", toggle);
        entry.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
        legendX += long;
      }
    const top = named.length > 1 ? legendY + 18 : 8;
    const bottom = plot.height - (plot.x.title ? 44 : 26);

    // Rows from top to bottom, by weight.
    const space = plot.rows.map((row) => (row.heading ? 26 : plot.rows.length > 1 ? 12 : 0));
    const total = plot.rows.reduce((sum, row) => sum + (row.weight || 1), 0);
    const height = bottom - top - space.reduce((sum, each) => sum + each, 0);
    let at = top;
    const rows = plot.rows.map((row, number) => {
      const begin = at + (row.heading ? space[number] : 0);
      const end = begin + (height * (row.weight || 1)) / total;
      at = end + (row.heading ? 0 : space[number]);
      const values = shown.filter((trace) => (trace.row || 0) === number).flatMap((trace) => trace.y);
      const axis = { ...row, vertical: true };
      const scale = row.categories ? scaleOf(axis, [], begin, end) : scaleOf(axis, values, end, begin);
      return { row, begin, end, scale };
    });
    const most = narrow ? width * 0.36 : 260;
    const labels = Math.max(...rows.flatMap(({ scale }) => scale.ticks.map((tick) => widthOf(scale.write(tick), font))), 10);
    const titled = plot.rows.some((row) => row.title);
    const left = Math.ceil(Math.min(labels, most)) + 10 + (titled ? 20 : 0), right = width - 14;
    const x = scaleOf(plot.x, shown.flatMap((trace) => [...trace.x, ...(trace.error || []).flat()]), left, right, state.zoom);

    for (const band of plot.bands || []) {
      const begin = Math.max(left, x.place(band.from)), end = Math.min(right, x.place(band.to));
      if (end <= begin) continue;
      element("rect", { x: begin, y: rows[0].begin, width: Math.max(1, end - begin), height: bottom - rows[0].begin, fill: BAND }, svg);
      if (band.label && widthOf(band.label, 11) < end - begin) element("text", { x: (begin + end) / 2, y: rows[0].begin + 14, "text-anchor": "middle", "font-size": 11, fill: DIM }, svg, band.label);
    }
    const used = { end: -Infinity };
    for (const tick of x.ticks) {
      const px = x.place(tick);
      for (const { begin, end } of rows) element("path", { d: `M${px} ${begin}V${end}`, stroke: GRID }, svg);
      const label = x.write(tick), half = widthOf(label, font) / 2;
      if (px - half < used.end + 6) continue;
      used.end = px + half;
      element("text", { x: Math.min(px, width - half), y: bottom + 16, "text-anchor": "middle", "font-size": font, fill: DIM }, svg, label);
    }
    for (const { row, begin, end, scale } of rows) {
      for (const tick of scale.ticks) {
        const py = scale.place(tick);
        if (!row.categories) element("path", { d: `M${left} ${py}H${right}`, stroke: GRID }, svg);
        let label = scale.write(tick);
        while (label.length > 3 && widthOf(label, font) > most) label = label.slice(0, -2) + "…";
        const text = element("text", { x: left - 8, y: py, "text-anchor": "end", "dominant-baseline": "central", "font-size": font, fill: row.categories ? INK : DIM }, svg, label);
        if (label !== tick && row.categories) element("title", {}, text, tick);
      }
      element("path", { d: `M${left} ${begin}V${end}H${right}`, stroke: "#cbd2d9", fill: "none" }, svg);
      if (row.heading) element("text", { x: left, y: begin - 9, "font-size": font + 1, fill: INK }, svg, row.heading);
      if (row.title) element("text", { transform: `translate(11 ${(begin + end) / 2}) rotate(-90)`, "text-anchor": "middle", "font-size": font, fill: INK }, svg, row.title);
    }
    if (plot.x.title) element("text", { x: (left + right) / 2, y: bottom + 37, "text-anchor": "middle", "font-size": font, fill: INK }, svg, plot.x.title);

    const clip = "clip-" + place.id;
    element("rect", { x: left - 7, y: top - 8, width: right - left + 14, height: bottom - top + 12 }, element("clipPath", { id: clip }, element("defs", {}, svg)));
    const ground = element("g", { "clip-path": `url(#${clip})` }, svg);
    for (const line of plot.lines || []) element("path", { d: `M${x.place(line.x)} ${rows[0].begin}V${bottom}`, stroke: INK, "stroke-dasharray": "2 4", "stroke-width": 1.4 }, ground);
    const near = [];
    const bars = shown.filter((trace) => trace.kind === "bars");
    for (const trace of shown) {
      const { scale } = rows[trace.row || 0];
      const px = trace.x.map(x.place), py = trace.y.map(scale.place);
      const group = element("g", { opacity: trace.opacity || 1 }, ground);
      if (trace.kind === "line") {
        let path = "";
        for (let i = 0; i < px.length; i++) if (isFinite(py[i])) path += `${path ? "L" : "M"}${px[i].toFixed(1)} ${py[i].toFixed(1)}`;
        element("path", { d: path, fill: "none", stroke: trace.colour, "stroke-width": trace.width || 2.4, "stroke-linejoin": "round", "stroke-dasharray": trace.dash || "none" }, group);
      } else if (trace.kind === "bars") {
        const thick = (scale.step * 0.7) / bars.length;
        px.forEach((end, i) => {
          const y = py[i] - (thick * bars.length) / 2 + thick * bars.indexOf(trace);
          element("rect", { x: left, y, width: Math.max(0, end - left), height: thick, fill: trace.colour }, group);
          py[i] = y + thick / 2;
        });
      } else {
        if (trace.error) {
          const path = trace.error.map(([low, high], i) => `M${x.place(low).toFixed(1)} ${py[i]}H${x.place(high).toFixed(1)}`).join("");
          element("path", { d: path, stroke: trace.colour, "stroke-width": trace.width || 1.3 }, group);
        }
        marks(trace, px, py, group);
      }
      if (trace.hover) near.push({ trace, px, py, write: scale.write });
    }

    // What is under the pointer.
    const tip = element("g", { class: "tip", visibility: "hidden" });
    const box = element("rect", { rx: 5, fill: INK, opacity: 0.94 }, tip);
    const said = element("text", { "font-size": 12, fill: "#fff", "dominant-baseline": "central" }, tip);
    const ring = element("circle", { r: 5.5, fill: "none", stroke: INK, "stroke-width": 1.6, visibility: "hidden" }, svg);
    const selected = element("rect", { y: top, height: bottom - top, fill: "rgba(47,109,181,0.15)", visibility: "hidden" }, svg);
    svg.append(tip);
    const hide = () => [tip, ring].forEach((each) => each.setAttribute("visibility", "hidden"));
    const show = (event) => {
      const bounds = svg.getBoundingClientRect(), mx = event.clientX - bounds.left, my = event.clientY - bounds.top;
      let best = 900, found = null;
      for (const each of near)
        for (let i = 0; i < each.px.length; i++) {
          if (each.px[i] < left - 1 || each.px[i] > right + 1) continue;
          const far = (each.px[i] - mx) ** 2 + (each.py[i] - my) ** 2;
          if (far < best) [best, found] = [far, [each, i]];
        }
      if (!found) return hide();
      const [{ trace, px, py, write }, i] = found;
      const values = { x: short(trace.x[i]), y: typeof trace.y[i] === "number" ? write(trace.y[i]) : trace.y[i], text: trace.text ? trace.text[i] : "" };
      said.textContent = trace.hover.replace(/\{(x|y|text)\}/g, (_, key) => values[key]);
      const long = widthOf(said.textContent, 12) + 18;
      const tx = Math.max(2, Math.min(px[i] - long / 2, width - long - 2)), ty = py[i] > 44 ? py[i] - 38 : py[i] + 14;
      for (const [key, value] of Object.entries({ x: tx, y: ty, width: long, height: 26 })) box.setAttribute(key, value);
      said.setAttribute("x", tx + 9);
      said.setAttribute("y", ty + 13);
      ring.setAttribute("cx", px[i]);
      ring.setAttribute("cy", py[i]);
      [tip, ring].forEach((each) => each.setAttribute("visibility", "visible"));
    };
    let from = null;
    svg.addEventListener("pointerdown", (event) => {
      const px = event.clientX - svg.getBoundingClientRect().left;
      // A finger scrolls the page; a mouse zooms.
      if (event.pointerType === "mouse" && x.back && px > left && px < right) from = px;
      else show(event);
    });
    svg.addEventListener("pointermove", (event) => {
      if (from === null) return show(event);
      hide();
      const px = Math.max(left, Math.min(right, event.clientX - svg.getBoundingClientRect().left));
      selected.setAttribute("x", Math.min(from, px));
      selected.setAttribute("width", Math.abs(px - from));
      selected.setAttribute("visibility", Math.abs(px - from) > 6 ? "visible" : "hidden");
    });
    svg.addEventListener("pointerup", (event) => {
      const px = Math.max(left, Math.min(right, event.clientX - svg.getBoundingClientRect().left));
      if (from !== null && Math.abs(px - from) > 6) {
        state.zoom = [x.back(Math.min(from, px)), x.back(Math.max(from, px))];
        draw(place, plot, state);
      }
      from = null;
    });
    svg.addEventListener("pointerleave", () => { from = null; hide(); selected.setAttribute("visibility", "hidden"); });
    svg.addEventListener("dblclick", () => { state.zoom = null; draw(place, plot, state); });
    place.replaceChildren(svg);
    place.dataset.drawn = "yes";
  };

  // Each plot when it comes near the screen, so that opening the page is quick however many there are.
  const sources = [...document.querySelectorAll("script.data")];
  const plots = new Map(sources.map((source) => [document.getElementById("plot-" + source.dataset.plot), source]));
  const begun = new Map();
  const begin = (place) => {
    if (begun.has(place)) return;
    begun.set(place, { plot: JSON.parse(plots.get(place).textContent), state: { hidden: new Set(), zoom: null }, width: place.clientWidth });
    const { plot, state } = begun.get(place);
    draw(place, plot, state);
    resized.observe(place);
  };
  const resized = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const known = begun.get(target);
      if (known.width === target.clientWidth) continue;
      known.width = target.clientWidth;
      draw(target, known.plot, known.state);
    }
  });
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) { near.unobserve(target); begin(target); }
  }, { rootMargin: "400px" });
  for (const place of plots.keys()) near.observe(place);
  addEventListener("beforeprint", () => { for (const place of plots.keys()) begin(place); });
})();
