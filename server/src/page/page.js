// The page's behaviour: pictures in, a question over /v1/chat/completions, the answer as it streams,
// and what /inspect says of each picture. State is the list of turns; the page is made from it.

const $ = (id) => document.getElementById(id);
const KEY = "kiln-api-key";

let model = "";
let limit = 1; // pictures of one conversation; 0: the model takes none
let turns = []; // {role, text, pictures}; those of the conversation that is going on
let pending = []; // pictures of the next question
let running = null; // AbortController of the answer that streams
let shown = null; // the picture whose facts are shown

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const say = (words) => { $("status").textContent = words; };
function complain(words) {
  $("trouble").textContent = words;
  $("trouble").hidden = !words;
}

// ---- The server -------------------------------------------------------------------------------

class Refusal extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const key = sessionStorage.getItem(KEY);
  if (key) headers.Authorization = `Bearer ${key}`;
  if (options.body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server can't be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const words = body?.error?.message ?? response.statusText;
  if (response.status === 401) {
    askForKey();
    throw new Refusal(key ? "The server does not accept this API key." : "The server wants an API key.");
  }
  if (response.status === 429 || response.status === 503) {
    const wait = Number(response.headers.get("Retry-After"));
    const when = wait > 0 ? ` in ${plural(wait, "second")}` : " in a moment";
    throw new Refusal(`The server is busy: try again${when}. (${words})`);
  }
  throw new Refusal(words ? capital(words) : `The server answered ${response.status}.`);
}

const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

async function connect() {
  try {
    const list = await ask("/v1/models").then((response) => response.json());
    const card = list.data[0];
    model = card.id;
    limit = card.modalities.image?.max_items ?? 0;
    const pictures = limit ? `${plural(limit, "picture")} a conversation` : "text only";
    $("model").textContent = `${model} · ${pictures} · context of ${card.max_model_len}`;
    $("pick").hidden = $("sample").hidden = limit === 0;
    $("key-form").hidden = true;
    complain("");
    for (const picture of pending) if (picture === shown) show(picture, true);
  } catch (error) {
    $("model").textContent = "not connected";
    complain(error.message);
  }
}

/** Calls `each` with the content of every SSE `data:` line. */
async function events(response, each) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      each(JSON.parse(data));
    }
  }
}

// ---- Pictures ---------------------------------------------------------------------------------

const dataUrl = (blob) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Refusal("The file can't be read."));
  reader.readAsDataURL(blob);
});

async function add(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) {
    if (files.length) complain("That is no picture.");
    return;
  }
  if (limit === 0) return complain("This model takes no pictures.");
  complain("");
  for (const file of pictures) {
    if (limit === 1) pending = [];
    else if (pending.length >= limit) {
      complain(`The server takes ${plural(limit, "picture")} a conversation (--limit-mm-per-prompt).`);
      break;
    }
    try {
      const picture = { name: file.name || "pasted picture", url: await dataUrl(file) };
      pending.push(picture);
      show(picture);
    } catch (error) {
      complain(error.message);
    }
  }
  drawPending();
  say(`${plural(pending.length, "picture")} ready to ask about.`);
  $("question").focus();
}

function thumb(picture) {
  const button = make("button", {
    type: "button", class: "thumb", "aria-pressed": String(picture === shown),
    "aria-label": `Show how the model sees ${picture.name}`, onclick: () => show(picture),
  }, make("img", { src: picture.url, alt: "" }));
  picture.buttons = [...(picture.buttons ?? []).filter((b) => b.isConnected), button];
  return button;
}

function drawPending() {
  $("pending").replaceChildren(...pending.map((picture) => make("li", {}, thumb(picture),
    make("button", {
      type: "button", class: "away", "aria-label": `Remove ${picture.name}`,
      onclick: () => {
        pending = pending.filter((other) => other !== picture);
        drawPending();
        say(`${picture.name} removed.`);
        $("question").focus();
      },
    }, "×"))));
}

// ---- How the model sees a picture ---------------------------------------------------------------

async function show(picture, again = false) {
  shown = picture;
  for (const button of document.querySelectorAll(".thumb")) {
    button.setAttribute("aria-pressed", String(picture.buttons?.includes(button) ?? false));
  }
  if (again) picture.facts = null;
  picture.facts ??= ask("/inspect", { method: "POST", body: JSON.stringify({ images: [picture.url] }) })
    .then((response) => response.json());
  $("seen-none").hidden = true;
  $("seen").setAttribute("aria-busy", "true");
  try {
    const facts = await picture.facts;
    if (shown === picture) $("seen-facts").replaceChildren(...factsOf(picture, facts));
  } catch (error) {
    picture.facts = null;
    if (shown === picture) $("seen-facts").replaceChildren(make("p", { class: "trouble" }, error.message));
  } finally {
    if (shown === picture) $("seen").removeAttribute("aria-busy");
  }
}

function* factsOf(picture, { items, prompt, sheet }) {
  const [item] = items;
  const { file, views } = item;
  yield make("p", { class: "faint" },
    `${picture.name}: ${file.format}, ${file.width} × ${file.height}${file.turned_upright ? ", turned upright" : ""}`);
  yield make("p", { class: "count" }, `${item.tokens} `, make("small", {},
    `${item.tokens === 1 ? "token" : "tokens"}${item.tokens_are ? `: ${item.tokens_are}` : ""}`));
  if (views.count) {
    const patches = views.patches ? `, ${views.patches[0]} × ${views.patches[1]} patches${views.count > 1 ? " each" : ""}` : "";
    yield make("p", { id: "tiles" },
      `${plural(views.count, views.count > 1 ? "tile" : "view")} of ${views.width} × ${views.height}${patches}`
      + (item.seen ? `; ${item.seen}` : ""));
  }
  const image = make("img", { src: sheet, alt: words(item, prompt) });
  yield make("button", { type: "button", class: "sheet", "aria-label": "Enlarge the drawing of what the model sees",
    onclick: () => { $("zoom-picture").src = sheet; $("zoom-picture").alt = image.alt; $("zoom").showModal(); } }, image);
  if (item.steps) {
    yield make("details", {}, make("summary", {}, "What the processor does"),
      make("ol", { class: "steps" }, ...item.steps.map((step) => make("li", {}, step))));
  }
  const share = (100 * prompt.tokens / prompt.context).toFixed(1);
  const bar = make("div", { class: "bar", role: "img",
    "aria-label": `Of ${prompt.tokens} tokens of the prompt, ${item.positions} are the picture's` });
  for (const segment of prompt.segments) {
    const part = make("span", { class: segment.item == null ? "" : "item",
      title: `${segment.from} to ${segment.to - 1}: ${segment.text}` });
    part.style.flexGrow = segment.to - segment.from;
    bar.append(part);
  }
  yield make("div", {},
    make("p", {}, `In a prompt of ${prompt.tokens} tokens (${share}% of the context)`), bar,
    make("div", { class: "legend" },
      make("span", { class: "item" }, make("i"), `picture: ${item.positions}`),
      make("span", {}, make("i"), `words: ${prompt.tokens - item.positions}`)));
  yield make("details", {}, make("summary", {}, "The prompt itself"), make("p", { class: "prompt" },
    ...prompt.segments.map((s) => s.item == null ? s.text : make("b", {}, s.text))));
}

const words = (item, prompt) => [
  ...(item.steps ?? []), item.seen, `${item.tokens} tokens`, `${prompt.tokens} tokens of the prompt in all`,
].filter(Boolean).join("; ");

// ---- The conversation ---------------------------------------------------------------------------

function messages() {
  const system = $("system").value.trim();
  const list = system ? [{ role: "system", content: system }] : [];
  for (const { role, text, pictures } of turns) {
    const parts = (pictures ?? []).map(({ url }) => ({ type: "image_url", image_url: { url } }));
    list.push({ role, content: parts.length ? [...parts, { type: "text", text }] : text });
  }
  return list;
}

function append(element) {
  const log = $("log");
  $("welcome").hidden = true;
  log.append(element);
  element.scrollIntoView({ block: "nearest" });
}

function startAnew(note) {
  running?.abort();
  turns = [];
  if (note) append(make("p", { class: "ended" }, note));
  else {
    $("log").replaceChildren($("welcome"));
    $("welcome").hidden = false;
    $("timing").hidden = true;
    shown = null;
    $("seen-facts").replaceChildren();
    $("seen-none").hidden = false;
  }
}

async function submit(event) {
  event?.preventDefault();
  const text = $("question").value.trim();
  if (running || !text) return;
  const used = turns.flatMap((turn) => turn.pictures ?? []).length;
  if (turns.length && used + pending.length > limit && pending.length) {
    startAnew(`A new conversation: the model takes ${plural(limit, "picture")} in one.`);
  }
  complain("");
  const turn = { role: "user", text, pictures: pending };
  turns.push(turn);
  const asked = make("article", { class: "turn asked" }, make("h2", {}, "You"),
    turn.pictures.length ? make("ul", { class: "thumbs" }, ...turn.pictures.map((p) => make("li", {}, thumb(p)))) : null,
    make("p", { class: "words" }, text));
  const answer = make("p", { class: "words" });
  const took = make("p", { class: "took" });
  const given = make("article", { class: "turn answer busy" }, make("h2", {}, "Model"), answer, took);
  append(asked);
  append(given);
  pending = [];
  $("question").value = "";
  fit();
  drawPending();
  busy(true);
  say("Asked. The answer is under way.");
  const result = { text: "", began: performance.now() };
  try {
    await stream(result, answer);
  } catch (error) {
    if (error.name !== "AbortError") result.trouble = error.message;
    else result.stopped = true;
  }
  given.classList.remove("busy");
  busy(false);
  if (result.trouble && !result.text) {
    // What was asked goes back to where it can be changed.
    asked.remove();
    given.remove();
    turns.pop();
    pending = turn.pictures;
    $("question").value = $("question").value || text;
    fit();
    drawPending();
  } else {
    turns.push({ role: "assistant", text: result.text });
    took.textContent = summary(result);
    say(`${result.stopped ? "Stopped. " : ""}The answer: ${result.text}`);
    timing(result);
  }
  if (result.trouble) complain(result.trouble);
  if ($("key-form").hidden) $("question").focus();
}

async function stream(result, answer) {
  running = new AbortController();
  const body = { model, messages: messages(), stream: true, stream_options: { include_usage: true } };
  const temperature = Number($("temperature").value);
  body.temperature = Number.isFinite(temperature) ? temperature : 0;
  if ($("max").value) body.max_tokens = Number($("max").value);
  const response = await ask("/v1/chat/completions",
    { method: "POST", body: JSON.stringify(body), signal: running.signal });
  const log = $("log");
  try {
    await events(response, (event) => {
      if (event.error) throw new Refusal(capital(event.error.message ?? "the answer failed"));
      if (event.usage) result.usage = event.usage;
      const [choice] = event.choices ?? [];
      if (choice?.finish_reason) result.reason = choice.finish_reason;
      const piece = choice?.delta?.content;
      if (!piece) return;
      result.first ??= performance.now();
      result.last = performance.now();
      result.text += piece;
      const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
      answer.append(piece);
      if (near) log.scrollTop = log.scrollHeight;
    });
  } catch (error) {
    if (error.name === "AbortError" || error instanceof Refusal) throw error;
    throw new Refusal("The connection broke before the answer was whole.");
  }
}

const seconds = (ms) => ms < 1000 ? `${Math.max(1, Math.round(ms))} ms` : `${(ms / 1000).toFixed(2)} s`;

/** Tokens a second behind the first one; of an answer too short to tell, over all of its time. */
function rate({ usage, began, first, last }) {
  const long = last - first >= 100;
  const tokens = (usage?.completion_tokens ?? 0) - (long ? 1 : 0);
  if (tokens < 2 || !(last > began)) return null;
  const each = tokens / (last - (long ? first : began)) * 1000;
  return `${each.toFixed(each < 100 ? 1 : 0)} tokens/s`;
}

function summary(result) {
  const reasons = { length: "cut off: no more tokens", content_filter: "filtered" };
  return [
    result.stopped ? "stopped" : reasons[result.reason],
    result.first && `first token after ${seconds(result.first - result.began)}`,
    rate(result),
  ].filter(Boolean).join(" · ");
}

function timing(result) {
  const usage = result.usage;
  const details = usage?.prompt_tokens_details ?? {};
  const figures = {
    "Time to first token": result.first && seconds(result.first - result.began),
    "Speed": rate(result),
    "Whole answer": result.last && seconds(result.last - result.began),
    "New tokens": usage?.completion_tokens,
    "Prompt tokens": usage?.prompt_tokens,
    "of pictures": details.image_tokens,
    "from the cache": details.cached_tokens,
  };
  $("figures").replaceChildren(...Object.entries(figures).filter(([, value]) => value != null && value !== "")
    .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value)))));
  $("timing").hidden = false;
}

function busy(on) {
  if (!on) running = null;
  $("log").setAttribute("aria-busy", String(on));
  const focused = document.activeElement === $(on ? "send" : "stop");
  $("send").hidden = on;
  $("stop").hidden = !on;
  if (focused) $(on ? "stop" : "send").focus();
}

// ---- What people do -----------------------------------------------------------------------------

function fit() {
  const box = $("question");
  box.style.height = "auto";
  box.style.height = `${box.scrollHeight}px`;
}

$("ask").addEventListener("submit", submit);
$("question").addEventListener("input", fit);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
});
$("stop").addEventListener("click", () => running?.abort());
$("new").addEventListener("click", () => {
  startAnew();
  complain("");
  say("A new conversation.");
  $("question").focus();
});
$("pick").addEventListener("click", () => $("files").click());
$("files").addEventListener("change", async () => {
  await add($("files").files);
  $("files").value = "";
});
$("sample").addEventListener("click", async () => {
  const blob = await fetch("/page/sample.png").then((response) => response.blob());
  await add([new File([blob], "sample.png", { type: "image/png" })]);
  $("question").value ||= "Describe the picture.";
  fit();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value);
  $("key").value = "";
  connect().then(() => { if ($("key-form").hidden) $("question").focus(); });
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) {
    event.preventDefault();
    add(event.clipboardData.files);
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running && !$("zoom").open) running.abort();
});
let depth = 0;
const carries = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => {
  if (carries(event)) { depth += 1; $("drop").hidden = false; }
});
document.addEventListener("dragleave", (event) => {
  if (carries(event)) { depth -= 1; $("drop").hidden = depth > 0 ? false : true; }
});
document.addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!carries(event)) return;
  event.preventDefault();
  depth = 0;
  $("drop").hidden = true;
  add(event.dataTransfer.files);
});

connect();
