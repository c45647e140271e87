// What the page shows, it asks the sidecar for: load and database every two seconds while the tab is in view, a search when somebody searches. Whatever
// comes is written as text, never as markup.

const POLL_MS = 2000;
const WAIT_MS = 60_000;
const SAMPLES = 150;
const FEWEST = 30; // that a line is drawn for, so that the first minute is not a dot
const TOKEN = "nv_embed.token";

const find = (selector) => document.querySelector(selector);
const base = new URL("ui/", location.href);
const needsToken = document.documentElement.dataset.needsToken === "yes";
let token = sessionStorage.getItem(TOKEN) ?? "";
let shown = [];

// --- asking

class Refusal extends Error {
  constructor(message, status, waitS) {
    super(message);
    this.status = status;
    this.waitS = waitS;
  }
}

async function ask(path, asked) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (asked) headers["Content-Type"] = "application/json";
  let answer;
  try {
    const signal = AbortSignal.timeout(WAIT_MS);
    answer = await fetch(new URL(path, base), { method: asked ? "POST" : "GET", headers, body: asked && JSON.stringify(asked), credentials: "omit", signal });
  } catch {
    throw new Refusal("the sidecar does not answer; is it running, and does the network reach it?", 0, 0);
  }
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  if (answer.status === 401) leave(said.error?.message);
  throw new Refusal(said.error?.message ?? `the sidecar answered with status ${answer.status}`, answer.status, Number(answer.headers.get("Retry-After")));
}

function poll(path, show) {
  const panel = find(`[data-error="${path}"]`);
  let timer;
  let isAsking = false;
  async function look() {
    clearTimeout(timer);
    if (isAsking || document.hidden || (needsToken && !token)) return;
    isAsking = true;
    let waitMs = POLL_MS;
    try {
      const told = await ask(path);
      show(told);
      write(panel, "");
    } catch (error) {
      write(panel, error.message);
      if (path === "load") tellState("no answer", "no");
      waitMs = Math.max(POLL_MS, (error.waitS || 0) * 1000);
    }
    isAsking = false;
    timer = setTimeout(look, waitMs);
  }
  document.addEventListener("visibilitychange", look);
  return look;
}

// --- the token

function enter() {
  const isIn = !needsToken || token !== "";
  find("#entry").hidden = isIn;
  find("#panels").hidden = !isIn;
  find("#leave").hidden = !(needsToken && isIn);
  if (isIn) looks.forEach((look) => look());
  else find("#token").focus();
}

function leave(why = "") {
  token = "";
  sessionStorage.removeItem(TOKEN);
  samples.length = 0;
  shown = [];
  find("#columns").replaceChildren();
  document.querySelectorAll("tbody").forEach((body) => body.replaceChildren());
  document.querySelectorAll("#answered, #version, [data-error]").forEach((element) => write(element, ""));
  tellState("no token", "");
  write(find("#entry-error"), why);
  enter();
}

find("#entry").addEventListener("submit", (event) => {
  event.preventDefault();
  token = find("#token").value.trim();
  find("#token").value = "";
  sessionStorage.setItem(TOKEN, token);
  write(find("#entry-error"), "");
  enter();
});
find("#leave").addEventListener("click", () => leave());

// --- writing

function write(element, text) {
  if (element.textContent !== String(text)) element.textContent = text;
}

function make(name, className, text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== "") element.textContent = text;
  return element;
}

/** Rows of a table, each a list of texts, or of shares as {share}. Cells stay where they are, so that nothing that is selected is lost. */
function fill(table, rows) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  while (body.rows.length > rows.length) body.lastElementChild.remove();
  rows.forEach((cells, index) => {
    const row = body.rows[index] ?? body.insertRow();
    cells.forEach((content, place) => {
      const cell = row.cells[place] ?? row.insertCell();
      const isFailure = heads[place].textContent === "failed" && content !== "0";
      cell.className = `${heads[place].className} ${isFailure ? "failed" : ""}`.trim();
      if (content !== null && typeof content === "object") fillShare(cell, content.share, heads[place].textContent);
      else write(cell, content);
    });
  });
  table.hidden = rows.length === 0;
}

function fillShare(cell, share, label) {
  if (!cell.querySelector("progress")) {
    const whole = make("div", "share");
    whole.append(make("progress"), make("span"));
    cell.replaceChildren(whole);
    cell.querySelector("progress").setAttribute("aria-label", label);
  }
  const bar = cell.querySelector("progress");
  bar.value = share ?? 0;
  write(cell.querySelector("span"), share === null ? "–" : percent(share));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
const rate = (value) => (value === null || value === undefined ? "–" : value < 100 ? tenth.format(value) : short.format(value));
// Rounded down: only what is whole is 100 %.
const percent = (share) => `${tenth.format(Math.floor(share * 1000) / 10)} %`;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.0005) return "0 s";
  if (seconds < 1) return `${whole.format(seconds * 1000)} ms`;
  if (seconds < 90) return `${tenth.format(seconds)} s`;
  if (seconds < 5400) return `${whole.format(seconds / 60)} min`;
  return `${tenth.format(seconds / 3600)} h`;
}

function tellState(text, isServing) {
  write(find("#state"), text);
  find("#state").dataset.serving = isServing;
}

// --- the sidecar

const samples = [];

function showLoad(load) {
  const last = samples.at(-1);
  if (last && last.requests > load.requests) samples.length = 0; // another process answers
  samples.push(load);
  if (samples.length > SAMPLES + 1) samples.shift();
  write(find("#version"), load.version);
  tellState(load.is_serving ? "serving" : "not serving", load.is_serving ? "yes" : "no");
  for (const name of ["requests", "texts", "tokens"]) showRate(name);
  fill(find("#queue"), Object.entries(load.waiting).map(([priority, waiting]) => [
    priority, count(waiting.texts), count(waiting.cost), duration(waiting.oldest_s), { share: recentFill(priority) },
  ]));
  fill(find("#models"), load.models.map((model) => [
    model.name, model.revision, model.trained_dims.join(", ") + (model.declared_dims.length > 0 ? ` (${model.declared_dims.join(", ")} declared)` : ""),
    `${count(model.max_tokens)} tokens`, `${model.device}, ${model.precision}`, rate(model.tokens_per_s),
  ]));
}

function showRate(name) {
  const rates = samples.slice(1).map((sample, index) => (sample[name] - samples[index][name]) / (sample.at_s - samples[index].at_s));
  write(find(`[data-rate="${name}"]`), rate(rates.at(-1)));
  const top = Math.max(...rates, 1e-9);
  const step = 150 / (Math.max(rates.length, FEWEST) - 1);
  const points = rates.map((value, index) => `${(150 - (rates.length - 1 - index) * step).toFixed(1)},${(31 - (30 * value) / top).toFixed(1)}`);
  find(`[data-line="${name}"] polyline`).setAttribute("points", points.join(" "));
}

/** Of the batches since the oldest sample, else of all. */
function recentFill(priority) {
  const [first, last] = [samples[0].fill[priority], samples.at(-1).fill[priority]];
  const batches = last[0] - first[0];
  if (batches > 0) return (last[1] - first[1]) / batches;
  return last[0] > 0 ? last[1] / last[0] : null;
}

// --- the database

const stored = (dim, storage) => `${dim} × ${storage}`;
const named = (row) => `${row.relation} · ${row.target}`;

function showDatabase(told) {
  const missing = find("[data-missing]");
  missing.hidden = !told.missing;
  write(missing, told.missing ?? "");
  const embeddings = told.embeddings ?? [];
  const reembeddings = told.reembeddings ?? [];
  fill(find("#embeddings"), embeddings.map((row) => [
    named(row), row.model, stored(row.dim, row.storage), row.mode, { share: row.coverage }, count(row.rows), count(row.pending), count(row.failed), rate(row.rate), duration(row.eta_s),
  ]));
  find("#uncounted").hidden = embeddings.every((row) => row.is_counted);
  find("#no-embeddings").hidden = Boolean(told.missing) || embeddings.length > 0;
  fill(find("#reembeddings"), reembeddings.map((row) => [
    named(row), `${row.from_model}, ${stored(row.from_dim, row.from_storage)}`, `${row.to_model}, ${stored(row.to_dim, row.to_storage)}`, row.state, { share: row.progress },
    count(row.pending), count(row.failed), rate(row.rate), duration(row.eta_s),
  ]));
  find("#no-reembeddings").hidden = Boolean(told.missing) || reembeddings.length > 0;
  offer(embeddings);
}

function offer(embeddings) {
  const names = embeddings.map(named);
  const choice = find("#embedding");
  if (names.join("\n") !== shown.map(named).join("\n")) {
    const chosen = choice.value;
    choice.replaceChildren(...names.map((name) => new Option(name)));
    if (names.includes(chosen)) choice.value = chosen;
  }
  shown = embeddings;
  document.querySelectorAll("#embedding, #question").forEach((element) => { element.disabled = embeddings.length === 0; });
  if (!isSearching) find("#search button").disabled = embeddings.length === 0;
}

// --- the search

let isSearching = false;

find("#search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const embedding = shown[find("#embedding").selectedIndex];
  if (isSearching || !embedding) return;
  isSearching = true;
  find("#search button").disabled = true;
  write(find('[data-error="search"]'), "");
  write(find("#answered"), "searching …");
  try {
    const asked = { relation: embedding.relation, target: embedding.target, question: find("#question").value, rescore: find("#ranking").value !== "" };
    showColumns(await ask("search", asked));
  } catch (error) {
    find("#columns").replaceChildren();
    write(find("#answered"), "");
    write(find('[data-error="search"]'), error.message);
  }
  isSearching = false;
  find("#search button").disabled = shown.length === 0;
});

function showColumns(told) {
  const widest = told.columns[0];
  const known = new Set(widest?.hits?.map((hit) => hit.key));
  const areOthers = told.columns.some((column) => widest.hits && column.hits?.some((hit) => !known.has(hit.key)));
  const shaded = areOthers ? ` Shaded is what is not among the hits at ${widest.dim} dimensions.` : "";
  write(find("#answered"), `The question took ${tenth.format(told.embed_ms)} ms to embed with ${told.model}, once.${shaded}`);
  find("#columns").replaceChildren(...told.columns.map((column) => columnOf(column, widest, known)));
}

function columnOf(column, widest, known) {
  const whole = make("section", "column");
  whole.append(make("h3", "", `${column.dim} dimensions`));
  if (column.error) {
    whole.append(make("p", "error", column.error));
    return whole;
  }
  const facts = make("dl");
  const tell = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
  tell("in SQL", `${tenth.format(column.ms)} ms`);
  tell("a vector", `${count(column.vector_bytes)} bytes`);
  if (widest.hits) tell(column === widest ? "hits" : `as at ${widest.dim}`, column === widest ? count(column.hits.length) : `${column.same} of ${widest.hits.length}`);
  const hits = make("ol");
  hits.append(...column.hits.map((hit) => hitOf(hit, widest.hits && !known.has(hit.key), widest.dim)));
  whole.append(facts, column.hits.length > 0 ? hits : make("p", "", "nothing is found: no row has a vector yet"));
  return whole;
}

function hitOf(hit, isOther, dim) {
  const item = make("li", isOther ? "other" : "");
  const head = make("div", "hit");
  head.append(make("b", "", hit.key), make("span", "", hit.score === null ? "–" : hit.score.toFixed(3)));
  item.append(head, make("p", "", hit.text));
  if (isOther) item.title = `not among those found at ${dim} dimensions`;
  return item;
}

const looks = [poll("load", showLoad), poll("database", showDatabase)];
enter();
