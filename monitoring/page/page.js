import { TEXTS, EXAMPLES } from "./texts.js";
import { chart, cursor } from "./charts.js";

// Text from outside (models, errors, answers) only ever becomes textContent.
const $ = (id) => document.getElementById(id);
const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(key, value);
  made.append(...children.filter((each) => each !== null));
  return made;
};
const keep = (name, value) => { try { localStorage.setItem(name, value); } catch { /* a private window forgets */ } };
const kept = (name) => { try { return localStorage.getItem(name); } catch { return null; } };

// -- words and figures ------------------------------------------------------------------------------------

const language = () => document.documentElement.lang;
const say = (key, values = {}) => {
  const text = TEXTS[key][language() === "zh" ? 1 : 0];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
};
const locale = () => (language() === "zh" ? "zh-CN" : "en-GB");
const number = (value, digits = 0) =>
  value.toLocaleString(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits });
const known = (value) => value !== null && value !== undefined;
const rate = (value) => number(value, value < 100 ? 1 : 0);
const percent = (ratio, digits = 1) => number(ratio * 100, digits) + "%";
const inUnits = (ms) => (ms < 9999.5 ? [number(ms, ms < 9.995 ? 2 : ms < 99.95 ? 1 : 0), "ms"] : [number(ms / 1000, 1), "s"]);
const milliseconds = (ms) => inUnits(ms).join(" ");
// Several with one unit.
const together = (all) => {
  const long = Math.max(...all) >= 9999.5;
  return all.some((each) => !known(each)) ? "–" : all.map((each) => (long ? number(each / 1000, 1) : inUnits(each)[0])).join(" · ") + (long ? " s" : " ms");
};
const tickMs = (ms) => (ms === 0 ? "0" : ms >= 10000 ? number(ms / 1000) + " s" : number(ms, ms > 0 && ms < 1 ? 2 : 0) + " ms");
const bytes = (count) => {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let power = 0;
  while (count >= 1024 && power < 4) [count, power] = [count / 1024, power + 1];
  return number(count, power && count < 100 ? 1 : 0) + " " + units[power];
};
const clock = (seconds, precise = true) =>
  new Date(seconds * 1000).toLocaleTimeString(locale(), { hour: "2-digit", minute: "2-digit", second: precise ? "2-digit" : undefined, hour12: false });
const dayAndTime = (text) =>
  new Date(text).toLocaleString(locale(), { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hour12: false });

// -- what is known ----------------------------------------------------------------------------------------

const state = { rows: new Map(), slot_s: 2, columns: [], connected: null };

const take = (message) => {
  if (message.whole) {
    state.rows.clear();
    [state.columns, state.slot_s] = [message.columns, message.slot_s];
  }
  for (const row of message.rows) state.rows.set(row[0], Object.fromEntries(state.columns.map((name, at) => [name, row[at]])));
  const { rows, columns, ...parts } = message;
  Object.assign(state, parts);
  const oldest = state.now - 1800;
  for (const at of state.rows.keys()) if (at < oldest || at > state.now) state.rows.delete(at);
};

// -- drawing ----------------------------------------------------------------------------------------------

const fill = (id, ...children) => $(id).replaceChildren(...children);
// Replacing what has not changed would take the reader's selection and repeat it to screen readers.
const drawn = new Map();
const once = (id, content, draw) => {
  const key = language() + JSON.stringify(content ?? null);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  draw();
};

const drawConnection = () => {
  const word = state.connected === null ? "connecting" : state.connected ? "live" : "reconnecting";
  once("connection", word, () => {
    $("connection-text").textContent = say(word);
    $("connection").className = "pill " + (state.connected ? "live" : state.connected === false ? "lost" : "");
    document.body.classList.toggle("lost-connection", state.connected === false);
  });
};

const drawNotices = () => {
  const found = [];
  if (state.files && TEXTS["files_" + state.files.standing]) found.push(say("files_" + state.files.standing, state.files));
  if (state.server && TEXTS["server_" + state.server.standing]) found.push(say("server_" + state.server.standing, state.server));
  once("notices", found, () => fill("notices", ...found.map((text) => make("p", { class: "notice" }, text))));
};

const drawAlerts = () => once("alerts", state.alerts, () => {
  const { standing, firing, source } = state.alerts;
  if (standing !== "known") {
    const unknown = standing === "unreachable" || standing === "unusable";
    return fill("alerts-body", make("p", { class: "calm" + (unknown ? " unknown" : "") }, say("alerts_" + standing, state.alerts)));
  }
  if (!firing.length)
    return fill("alerts-body", make("p", { class: "calm good" }, "✓ " + say("alerts_none"), make("span", { class: "dim" }, say("alerts_by", { source }))));
  fill("alerts-body", ...firing.map((each) => {
    const labels = Object.entries(each.labels).map(([name, value]) => `${name}=${value}`).join(" ");
    const severity = TEXTS["severity_" + each.severity] ? "severity_" + each.severity : "severity_other";
    const link = each.runbook && make("a", { href: each.runbook, rel: "noreferrer", target: "_blank" }, say("runbook"));
    return make("div", { class: "alert" + (each.severity === "critical" ? " critical" : "") },
      make("p", { class: "head" }, make("b", {}, say(severity)), make("span", {}, each.name), make("span", {}, each.since ? say("alert_since", { time: dayAndTime(each.since) }) : "")),
      make("p", { class: "what" }, language() === "zh" ? each.summary_zh : each.summary),
      make("p", { class: "more" }, [language() === "zh" ? each.description_zh : each.description, labels].filter(Boolean).join(" · ") + " ", link));
  }));
});

const tiles = {};
const drawTiles = () => {
  const { rates, server } = state;
  const newest = state.rows.get(Math.max(...state.rows.keys())) || {};
  const before = state.rows.get(newest.at - state.slot_s) || {};
  const told = (name) => (known(newest[name]) ? newest[name] : before[name]);
  const latency = (ms) => (known(ms) ? inUnits(ms) : ["–", ""]);
  const served = server && server.standing === "known";
  const tokens = served && known(told("generated_tokens_s")) ? told("generated_tokens_s") + told("prompt_tokens_s") : rates.tokens_used_s;
  const waiting = served && known(told("waiting"));
  const content = {
    rate: [rate(rates.requests_s), "", say("tile_rate_note")],
    errors: [known(rates.error_ratio) ? number(rates.error_ratio * 100, 1) : "–", known(rates.error_ratio) ? "%" : "", say("tile_minute_note")],
    p50: [...latency(rates.p50_ms), say("tile_minute_note")],
    p95: [...latency(rates.p95_ms), say("tile_minute_note")],
    p99: [...latency(rates.p99_ms), say("tile_minute_note")],
    tokens: [rate(tokens), "", say("tile_tokens_note")],
    queue: [waiting ? number(told("waiting")) : "–", "", waiting ? say("tile_queue_note", { running: number(told("running")) }) : say("tile_queue_unknown")],
  };
  for (const [name, [value, unit, note]] of Object.entries(content)) {
    if (!tiles[name]) {
      tiles[name] = { name: make("dt"), value: make("span", { class: "value", id: "tile-" + name }), unit: make("span", { class: "unit" }), note: make("small") };
      tiles[name].box = make("div", { class: "tile" }, tiles[name].name, make("dd", {}, tiles[name].value, tiles[name].unit, make("br"), tiles[name].note));
      $("tiles").append(tiles[name].box);
    }
    const tile = tiles[name];
    for (const [part, text] of [["name", say("tile_" + name)], ["value", value], ["unit", unit], ["note", note]])
      if (tile[part].textContent !== text) tile[part].textContent = text;
  }
  tiles.errors.box.classList.toggle("bad", rates.error_ratio > 0);
};

const column = (name) => (row) => row[name];
const anyKnown = (name) => (rows) => rows.some((row) => known(row[name]));
const count = (value) => number(value, value > 0 && value < 1 ? 1 : 0);
const share = (value) => number(value) + "%";
const CHARTS = {
  requests: { write: rate, tick: count, least: 1, series: [
    { name: "series_ok", value: (row) => row.requests_s - row.errors_s, style: "c1", area: true },
    { name: "series_errors", value: column("errors_s"), style: "bad-line dashed" } ] },
  latency: { write: milliseconds, tick: tickMs, least: 1, note: "chart_latency_note", series: [
    { name: "series_p50", value: column("p50_ms"), style: "c1", area: true },
    { name: "series_p95", value: column("p95_ms"), style: "c2 dashed" },
    { name: "series_p99", value: column("p99_ms"), style: "c3 dotted" } ] },
  tokens: { write: rate, tick: count, least: 1, series: [
    { name: "series_prompt", value: column("prompt_tokens_s"), style: "c1", area: true, gap: 5, when: anyKnown("prompt_tokens_s") },
    { name: "series_generated", value: column("generated_tokens_s"), style: "c2 dashed", gap: 5, when: anyKnown("prompt_tokens_s") },
    { name: "series_used", value: column("tokens_used_s"), style: "c1", area: true, when: (rows) => !anyKnown("prompt_tokens_s")(rows) } ] },
  queue: { write: count, tick: count, least: 4, server: true, series: [
    { name: "series_running", value: column("running"), style: "c1", area: true, gap: 5 },
    { name: "series_waiting", value: column("waiting"), style: "c2 dashed", gap: 5 } ] },
  load: { write: share, tick: share, least: 100, most: 100, series: [
    { name: "series_cpu", value: column("cpu_percent"), style: "c1", area: true, gap: 90 },
    { name: "series_memory", value: column("memory_percent"), style: "c2 dashed", gap: 90 } ] },
};
// Slots put together where a chart has more of them than it can show: 2 min of 2 s, 10 min of 4 s, 30 min of 12 s.
const POINTS = 150;
const mean = (values) => (values.length ? values.reduce((sum, each) => sum + each, 0) / values.length : null);
const highest = (values) => (values.length ? Math.max(...values) : null);
const newestOf = (values) => values.at(-1) ?? null;
const TOGETHER = {
  p50_ms: newestOf, p95_ms: newestOf, p99_ms: newestOf,  // percentiles have no mean; each is of a whole minute
  waiting: highest, running: highest, prompt_tokens_s: mean, generated_tokens_s: mean, cpu_percent: mean, memory_percent: mean,
};
const binned = (rows, seconds) => {
  const bins = new Map();
  for (const row of rows) {
    const at = Math.floor(row.at / seconds) * seconds;
    if (!bins.has(at)) bins.set(at, []);
    bins.get(at).push(row);
  }
  return [...bins].map(([at, members]) => {
    const row = { at };
    for (const name of ["requests", "errors", "tokens_used"]) row[name + "_s"] = mean(members.map((each) => each[name])) / state.slot_s;
    for (const [name, put] of Object.entries(TOGETHER)) row[name] = put(members.map((each) => each[name]).filter(known));
    return row;
  });
};
const words = {
  clock, name: say, now: () => say("now"), nothing: () => say("nothing_yet"),
  tell: (text) => { $("cursor-said").textContent = text; },
  describe: (title, values, time) => say("chart_said", { title, values, time }),
};
const charts = Object.entries(CHARTS).map(([name, spec]) => {
  const title = make("h3"), at = make("span", { class: "at" }), keys = make("ul", { class: "keys" });
  const place = make("div", { class: "plot", tabindex: 0, role: "img", id: "chart-" + name });
  $("day").before(make("article", { class: "card chart" }, make("div", { class: "bar" }, title, at), keys, place));
  const draw = chart(place, spec, { title, at, keys }, words);
  return (rows, from, to, seconds) => {
    title.replaceChildren(say("chart_" + name), spec.note ? make("span", { class: "note" }, say(spec.note)) : "");
    place.setAttribute("aria-description", say("chart_keys"));
    draw(rows, from, to, seconds, spec.server && /^no_/.test(state.server.standing) ? say("needs_server") : null);
  };
});
const drawCharts = () => {
  const span = 60 * Number(kept("range") || 10);
  const seconds = Math.max(1, Math.ceil(span / POINTS / state.slot_s)) * state.slot_s;
  // The slot that is being filled is left out, and one more second, in which the last lines are read.
  const to = Math.floor((state.now - 1) / state.slot_s) * state.slot_s - state.slot_s;
  const rows = [...state.rows.values()].filter((row) => row.at >= to - span && row.at <= to).sort((a, b) => a.at - b.at);
  for (const one of charts) one(binned(rows, seconds), to - span, to, seconds);
};

const fact = (list, name, value, style = null) => {
  if (known(value) && value !== "") list.push(make("dt", {}, say(name)), make("dd", { class: style }, value));
};
const drawDeployment = () => once("deployment", [state.deployment, state.server], () => {
  const { deployment, server } = state;
  $("served").textContent = deployment ? [`${deployment.name} ${deployment.version}`, deployment.engine, server.url].filter(Boolean).join(" · ") : server.standing === "no_source" ? say("no_server_line") : server.url;
  $("state").hidden = !deployment;
  if (!deployment) return fill("deployment", make("p", { class: "dim" }, say(server.standing === "no_source" ? "deployment_no_server" : "deployment_none")));
  const shown = deployment.state;
  $("state").textContent = TEXTS["state_" + shown] ? say("state_" + shown) : shown;
  $("state").className = "badge " + (shown === "ready" ? "good" : shown === "starting" || shown === "draining" || shown === "restarting" ? "open" : "bad");
  const list = [], figure = (name, key) => fact(list, name, known(deployment[key]) ? number(deployment[key]) : null);
  const counted = (name, key, unit) => fact(list, name, known(deployment[key]) ? say(unit, { count: number(deployment[key]) }) : null);
  fact(list, "field_name", `${deployment.name} ${deployment.version}`);
  fact(list, "field_reason", deployment.reason, "bad-text");
  fact(list, "field_engine", deployment.engine);
  fact(list, "field_device", deployment.device);
  counted("field_weight_bits", "weight_bits", "bits");
  counted("field_kv_cache_bits", "kv_cache_bits", "bits");
  if (server.memory_limit_bytes) fact(list, "field_memory", say("of", { used: bytes(server.memory_bytes), limit: bytes(server.memory_limit_bytes) }));
  figure("field_threads", "threads");
  figure("field_slots", "slots");
  figure("field_max_queue", "max_queue");
  counted("field_context_tokens", "context_tokens", "tokens");
  counted("field_kv_tokens", "kv_tokens", "tokens");
  counted("field_request_timeout_s", "request_timeout_s", "seconds");
  fact(list, "field_weights_bytes", known(deployment.weights_bytes) ? bytes(deployment.weights_bytes) : null);
  fact(list, "field_source", deployment.source);
  fact(list, "field_tasks", deployment.tasks?.join(", "));
  fact(list, "field_categories", deployment.categories?.length ? number(deployment.categories.length) : null);
  fact(list, "field_loaded_since", deployment.loaded_since ? dayAndTime(deployment.loaded_since) : null);
  figure("field_restarts", "restarts");
  for (const model of deployment.models ?? [])  // of an Ollama
    list.push(make("dt", {}, model.name), make("dd", {}, [bytes(model.bytes), model.quantization, model.loaded ? say("loaded") : null].filter(Boolean).join(" · ")));
  fact(list, "field_url", server.url);
  fill("deployment", make("dl", { class: "facts" }, ...list));
});

// -- the day ----------------------------------------------------------------------------------------------

let summary = null, summaryAsked = 0, dayChosen = false;
const drawDay = () => once("day-figures", summary, () => {
  $("day-failure").hidden = !summary || !summary.error;
  if (!summary) return;
  if (summary.error) {
    $("day-failure").textContent = summary.error.code === "wrong_date" ? say("day_wrong") : say("day_failed", { reason: summary.error.message });
    return fill("day-figures");
  }
  if (!dayChosen) $("date").value = $("date").max = summary.day;
  const list = [];
  const figure = (name, value, style = null) => list.push(make("div", {}, make("dt", {}, say(name)), make("dd", { class: style }, value)));
  const ms = (value) => (known(value) ? milliseconds(value) : "–"), part = (value) => (known(value) ? number(value, 1) + "%" : "–");
  figure( "day_total", number(summary.total_requests));
  figure( "day_successful", number(summary.successful_requests));
  figure( "day_errors", number(summary.error_requests) + (summary.error_requests ? ` (${percent(summary.error_requests / summary.total_requests, 2)})` : ""), summary.error_requests ? "bad-text" : null);
  figure( "day_avg", ms(summary.avg_latency_ms));
  figure( "day_max", ms(summary.max_latency_ms));
  figure( "day_percentiles", together([summary.p50_latency_ms, summary.p95_latency_ms, summary.p99_latency_ms]));
  figure( "day_cpu", part(summary.avg_cpu_percent));
  figure( "day_memory", part(summary.max_memory_percent));
  if (summary.corrupt_lines) figure("day_corrupt", number(summary.corrupt_lines), "bad-text");
  fill("day-figures", ...list);
});
const askDay = async () => {
  summaryAsked = Date.now();
  const asked = dayChosen ? $("date").value || "?" : "today";
  try {
    const found = await (await fetch("/api/summary?date=" + encodeURIComponent(asked))).json();
    if (asked === (dayChosen ? $("date").value || "?" : "today")) summary = found;
  } catch { return; }  // the connection's own word says it
  drawDay();
};

// -- the requests -----------------------------------------------------------------------------------------

const asked = () => {
  const chosen = [...new FormData($("filters"))].filter(([, value]) => value.trim() !== "");
  return new URLSearchParams([["limit", 100], ...chosen]);
};
let lines = [], linesFailure = null, seen = -1, pausedAt = null, asking = false, again = false;
const drawRequests = () => {
  const filtered = [...asked().keys()].length > 1;
  const text = pausedAt !== null ? say("paused", { count: number(state.read - pausedAt) }) : say(filtered ? "shown_fitting" : "shown", { count: number(lines.length) });
  if ($("shown").textContent !== text) $("shown").textContent = text;
  $("pause").textContent = say(pausedAt === null ? "pause" : "resume");
  $("pause").setAttribute("aria-pressed", pausedAt !== null);
  once("rows", [lines, filtered, linesFailure, state.files], () => {
    $("requests-failure").hidden = linesFailure === null;
    $("requests-failure").textContent = linesFailure === null ? "" : say("requests_failed", { reason: linesFailure });
    const longest = Math.max(1, ...lines.map((line) => line.latency_ms));
    fill("rows", ...lines.map((line) => {
      const latency = make("td", { class: "number latency" }, milliseconds(line.latency_ms));
      latency.style.setProperty("--share", (100 * line.latency_ms / longest).toFixed(1));
      const outcome = make("td", { class: "outcome" }, line.error ?? line.category ?? "");
      if (line.error === null && known(line.confidence)) outcome.append(make("span", { class: "share" }, percent(line.confidence, 0)));
      outcome.title = line.error ?? line.category ?? "";
      const id = make("td", {}, line.request_id ?? "");
      id.title = [line.request_id, line.trace_id].filter(Boolean).join(" / ");
      const time = make("td", {}, clock(new Date(line.timestamp) / 1000));
      time.title = line.timestamp;
      const model = make("td", {}, line.model);
      model.title = line.model;
      const sizes = make("td", { class: "number" }, `${number(line.prompt_length)} → ${number(line.response_length)}`);
      sizes.title = say("lengths_said", { prompt: number(line.prompt_length), response: number(line.response_length) });
      return make("tr", { class: line.status },
        time, make("td", { class: "status" }, say("status_" + line.status)), latency,
        make("td", { class: "number" }, known(line.first_token_ms) ? milliseconds(line.first_token_ms) : "–"),
        sizes, make("td", { class: "number" }, known(line.tokens_used) ? number(line.tokens_used) : "–"), outcome, model, id);
    }));
    $("rows-empty").hidden = lines.length > 0;
    $("rows-empty").textContent = say(filtered ? "rows_none_fitting" : "rows_none", { folder: state.files ? state.files.folder : "" });
  });
};
// One question at a time; what changed meanwhile is asked next.
const askRequests = async () => {
  if (asking) { again = true; return; }
  asking = true;
  do {
    again = false;
    const query = asked(), read = state.read;
    try {
      const answer = await fetch("/api/recent_requests?" + query), found = await answer.json();
      if (String(query) !== String(asked())) { again = true; continue; }
      [linesFailure, lines, seen] = answer.ok ? [null, found, read] : [found.error.message, [], read];
    } catch { break; }
    drawRequests();
  } while (again);
  asking = false;
};
let typing = null;
$("filters").addEventListener("input", () => { clearTimeout(typing); typing = setTimeout(askRequests, 150); });
$("filters").addEventListener("reset", () => setTimeout(askRequests));
$("filters").addEventListener("submit", (event) => event.preventDefault());
$("pause").addEventListener("click", () => {
  pausedAt = pausedAt === null ? state.read : null;
  if (pausedAt === null) askRequests();
  drawRequests();
});

// -- a classification -------------------------------------------------------------------------------------

let answer = null;
const drawTry = () => once("try", [answer, state.try_off], () => {
  const off = known(state.try_off);
  $("try").hidden = off;
  $("try-off").hidden = !off;
  if (off) $("try-off").textContent = say("try_off_" + state.try_off);
  const busy = answer !== null && answer.asking;
  $("ask").textContent = say(busy ? "try_asking" : "try_button");
  $("ask").disabled = busy;
  if (answer === null || busy) return fill("answer");
  if (answer.failure !== undefined) return fill("answer", make("p", { class: "failure" }, say("try_failed", { reason: answer.failure ?? say("try_page_gone") })));
  const { category, confidence, probabilities, needs_review: review } = answer.found;
  const odds = Object.entries(probabilities ?? {}).sort(([, a], [, b]) => b - a).map(([name, probability]) => {
    const rod = make("i");
    rod.style.setProperty("--share", (probability * 100).toFixed(1));
    const label = make("span", {}, name);
    label.title = name;
    return make("li", {}, label, make("div", { class: "rod" }, rod), make("b", {}, percent(probability)));
  });
  fill("answer", make("div", { class: "verdict" },
    make("p", { class: "category" }, category),
    make("p", { class: "bar" }, make("span", { class: "badge " + (review ? "open" : "good") }, say(review ? "needs_review" : "no_review")),
      make("span", { class: "dim" }, (known(confidence) ? say("confidence", { percent: percent(confidence) }) : say("confidence_unknown")) + " · " + say("try_took", { time: milliseconds(answer.took) }))),
    make("ul", { class: "odds", "aria-label": say("probabilities") }, ...odds)));
});
$("try").addEventListener("submit", async (event) => {
  event.preventDefault();
  answer = { asking: true };
  drawTry();
  const began = performance.now();
  try {
    const got = await fetch("/api/classify", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ text: $("text").value }) });
    const found = await got.json();
    answer = got.ok ? { found, took: performance.now() - began } : { failure: found.error.message };
  } catch { answer = { failure: null }; }
  drawTry();
});
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("try").requestSubmit();
});
for (const text of EXAMPLES) {
  const button = make("button", { type: "button", lang: "zh", title: text }, text);
  button.addEventListener("click", () => { $("text").value = text; $("text").focus(); });
  $("examples").append(button);
}

// -- the whole --------------------------------------------------------------------------------------------

const draw = () => {
  drawConnection();
  if (!state.rates) return;
  drawNotices();
  drawAlerts();
  drawTiles();
  drawCharts();
  drawDeployment();
  drawTry();
  drawRequests();
  drawDay();
  $("footer").textContent = say("footer", { count: number(state.read), time: dayAndTime(state.began * 1000) });
};
const drawTitle = () => {
  const firing = state.alerts ? state.alerts.firing.length : 0;
  document.title = (firing ? `(${firing}) ` : "") + say("title");
};
const translate = () => {
  drawTitle();
  for (const place of document.querySelectorAll("[data-text]")) place.textContent = say(place.dataset.text);
  for (const place of document.querySelectorAll("[data-label]")) place.setAttribute("aria-label", say(place.dataset.label));
  for (const place of document.querySelectorAll("[data-hint]")) place.placeholder = say(place.dataset.hint);
  drawTry();
  draw();
};

const choose = (name, value, change) => {
  for (const input of document.querySelectorAll(`input[name=${name}]`)) {
    input.checked = input.value === value;
    input.addEventListener("change", () => { keep(name, input.value); change(input.value); });
  }
};
choose("language", language(), (value) => { document.documentElement.lang = value; translate(); });
choose("theme", kept("theme") || "auto", (value) => {
  if (value === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = value;
});
choose("range", kept("range") || "10", draw);
$("date").addEventListener("change", () => { dayChosen = $("date").value !== $("date").max; askDay(); });

const connect = () => {
  const source = new EventSource("/api/live");
  source.addEventListener("message", (event) => {
    const message = JSON.parse(event.data);
    state.connected = true;
    take(message);
    drawTitle();
    // A hidden tab takes the rows and draws when it is looked at.
    if (document.hidden) return;
    draw();
    if (pausedAt === null && (state.read !== seen || message.whole)) askRequests();
    if (Date.now() - summaryAsked > 5000 || message.whole) askDay();
  });
  source.addEventListener("error", () => {
    state.connected = false;
    drawConnection();
    // The browser tries again by itself unless it was answered with something else than a stream.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 1000);
  });
};
document.addEventListener("visibilitychange", () => { if (!document.hidden) { draw(); askRequests(); } });
translate();
connect();
