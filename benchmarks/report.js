"use strict";
(async () => {
  const source = document.getElementById("plots");
  const plots = JSON.parse(source.textContent);
  const places = Object.keys(plots).map((name) => [document.getElementById("plot-" + name), plots[name]]);
  try {
    const packed = atob(document.getElementById("plotly").textContent);
    const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  } catch (error) {
    for (const [place] of places) {
      place.textContent = source.dataset.missing;
      place.classList.add("missing");
    }
    return;
  }
  const narrow = matchMedia("(max-width: 760px)").matches;
  const draw = (place, figure) => {
    if (narrow) {
      // A finger must scroll the page and not zoom the plot.
      figure.layout.dragmode = false;
      figure.layout.margin = { l: 40, r: 10, t: 16, b: 50 };
      figure.layout.font.size = 11;
    }
    // Drag zooms and a double click shows all again; the tool bar would cover the legend.
    const options = { responsive: true, displayModeBar: false };
    return Plotly.newPlot(place, figure.data, figure.layout, options);
  };
  // One by one, so that no single task holds the page.
  for (const [place, figure] of places) {
    await draw(place, figure);
    await new Promise((done) => setTimeout(done, 0));
  }
  document.documentElement.dataset.drawn = "yes";
})();
