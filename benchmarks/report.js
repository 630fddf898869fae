"use strict";
(async () => {
  const root = document.documentElement;
  const sources = [...document.querySelectorAll("script.data")];
  const placeOf = (source) => document.getElementById("plot-" + source.dataset.plot);
  const pause = () => new Promise((done) => setTimeout(done, 0));
  const unpack = async () => {
    const packed = await (await fetch("data:application/octet-stream;base64," + document.getElementById("plotly").textContent)).blob();
    return new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).blob();
  };
  const run = (code) => new Promise((done, failed) => {
    const script = document.createElement("script");
    script.src = URL.createObjectURL(code);
    script.onload = done;
    script.onerror = () => failed(new Error("the plots cannot be loaded"));
    document.head.append(script);
  });
  try {
    await pause();  // the tables first
    const code = await unpack();
    await pause();
    await run(code);
  } catch (error) {
    for (const place of sources.map(placeOf)) {
      place.textContent = root.dataset.missing;
      place.classList.add("missing");
    }
    root.dataset.drawn = "no";
    return;
  }
  const narrow = matchMedia("(max-width: 760px)").matches;
  let left = sources.length;
  const draw = async (source) => {
    const place = placeOf(source);
    const figure = JSON.parse(source.textContent);
    if (narrow) {
      // A finger must scroll the page and not zoom the plot.
      figure.layout.dragmode = false;
      figure.layout.margin = { ...figure.layout.margin, l: 40, r: 10, b: 50 };
      figure.layout.font.size = 11;
    }
    // Drag zooms and a double click shows all again; the tool bar would cover the legend.
    await Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displayModeBar: false });
    place.style.height = "";
    left -= 1;
    if (left === 0) root.dataset.drawn = "yes";
  };
  // Each plot when it comes near the screen, one at a time, so that no single task holds the page.
  const waiting = [];
  let busy = false;
  const work = async () => {
    if (busy) return;
    busy = true;
    while (waiting.length) {
      await draw(waiting.shift());
      await pause();
    }
    busy = false;
  };
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      waiting.push(sources.find((source) => placeOf(source) === target));
    }
    work();
  }, { rootMargin: "600px" });
  for (const source of sources) near.observe(placeOf(source));
  // A print shows what was never on the screen.
  addEventListener("beforeprint", () => {
    near.disconnect();
    for (const source of sources) if (!placeOf(source).classList.contains("js-plotly-plot")) draw(source);
  });
})();
