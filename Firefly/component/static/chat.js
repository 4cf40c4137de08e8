// The chat page: each question goes to every chosen model at once; each model keeps its own history of answers.
"use strict";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "max_new_tokens", "repetition_penalty", "seed"];
const REASONS = { stop: "自然结束", length: "到长度上限", stopped: "已停止" };

let models = []; // [{name, defaults}]
let turns = []; // [{question, answers: {name: {text, wait, notice, error, reason, tokens, seconds, seed}}}]
const asking = new Set(); // one AbortController for each answer under way

// What the model is sent: the system prompt, the turns that it answered, and the question of the last one.
function messagesFor(name, count) {
  const system = $("system").value.trim();
  const messages = system ? [{ role: "system", content: system }] : [];
  for (const turn of turns.slice(0, count - 1)) {
    const text = turn.answers[name]?.text;
    if (text) messages.push({ role: "user", content: turn.question }, { role: "assistant", content: text });
  }
  return [...messages, { role: "user", content: turns[count - 1].question }];
}

function settings() {
  const given = NUMBERS.filter((key) => $(key).value.trim() !== "").map((key) => [key, Number($(key).value)]);
  return { seed: Math.floor(Math.random() * 1e6), ...Object.fromEntries(given) };
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

// Asks one model for its answer to turn number `count`, and shows it as it comes.
async function answer(name, count, values) {
  const control = new AbortController();
  const turn = turns[count - 1];
  const result = (turn.answers[name] = { text: "", seed: values.seed, waiting: true });
  const started = performance.now();
  asking.add(control);
  showAnswer(turn, name);
  try {
    const response = await fetch("api/chat", {
      method: "POST",
      signal: control.signal,
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ model: name, messages: messagesFor(name, count), settings: values }),
    });
    if (!response.ok) {
      const said = await response.json().catch(() => ({}));
      throw new Error(said.error ?? `服务出错（HTTP ${response.status}），原因见启动它的终端。`);
    }
    for await (const event of events(response)) {
      result.wait = event.wait;
      if (event.text) result.text += event.text;
      if (event.notice) result.notice = event.notice;
      if (event.error) result.error = event.error;
      if (event.done) Object.assign(result, { text: event.done.text, reason: event.done.finish_reason, tokens: event.done.completion_tokens });
      drawSoon(turn, name);
    }
    if (!result.reason && !result.error) result.error = "服务中途断开，回答不完整。";
  } catch (error) {
    if (control.signal.aborted) result.reason = "stopped";
    else result.error = error instanceof TypeError ? "连不上服务，请检查启动它的终端。" : error.message;
  }
  Object.assign(result, { waiting: false, wait: undefined });
  result.seconds = (performance.now() - started) / 1000;
  asking.delete(control);
  if (turns.includes(turn)) finish(turn, name);
}

function finish(turn, name) {
  showAnswer(turn, name);
  showButtons();
  save();
}

function chosen() {
  return models.map((model) => model.name).filter((name, i) => $(`model-${i}`).checked);
}

function ask(question) {
  turns.push({ question, answers: {} });
  const values = settings();
  const names = chosen();
  showTurn(turns.at(-1), names);
  for (const name of names) answer(name, turns.length, values);
  showButtons();
  scrollTo(0, document.body.scrollHeight);
}

function stop() {
  for (const control of asking) control.abort();
}

// ---- drawing

const drawn = new Map(); // turn -> {name: its card}
const waitingToDraw = new Set();
const drawingTook = new WeakMap(); // card -> milliseconds

// At most one drawing a frame, since a fast model sends many pieces in between; and drawing takes a fifth of the time
// at most, since each draws the whole answer anew, which takes long once that is long.
function drawSoon(turn, name) {
  const card = drawn.get(turn)?.[name];
  if (!card || waitingToDraw.has(card)) return;
  waitingToDraw.add(card);
  setTimeout(() => requestAnimationFrame(() => {
    waitingToDraw.delete(card);
    const started = performance.now();
    showAnswer(turn, name);
    drawingTook.set(card, performance.now() - started);
  }), 4 * (drawingTook.get(card) ?? 0));
}

function showTurn(turn, names) {
  const cards = Object.fromEntries(names.map((name) => [name, element("article")]));
  for (const [name, card] of Object.entries(cards)) {
    card.className = "answer";
    card.dataset.model = name;
  }
  const question = element("p", turn.question);
  question.className = "question";
  const answers = element("div", "", ...Object.values(cards));
  answers.className = "answers";
  const section = element("section", "", question, answers);
  section.className = "turn";
  document.querySelector(".empty")?.remove();
  $("turns").append(section);
  drawn.set(turn, cards);
}

function showAnswer(turn, name) {
  const card = drawn.get(turn)?.[name];
  if (!card) return;
  const atEnd = innerHeight + scrollY > document.body.scrollHeight - 60;
  const result = turn.answers[name];
  const text = element("div", "", ...markdown(result.text));
  text.className = result.waiting ? "text waiting" : "text";
  card.replaceChildren(element("h2", name), text);
  for (const kind of ["wait", "notice", "error"]) {
    if (!result[kind]) continue;
    const line = element("p", result[kind]);
    line.className = kind;
    card.append(line);
  }
  card.setAttribute("aria-busy", String(Boolean(result.waiting)));
  if (!result.waiting) card.append(footer(turn, name, result));
  if (atEnd) scrollTo(0, document.body.scrollHeight);
}

function footer(turn, name, result) {
  const facts = [REASONS[result.reason], result.tokens && `${result.tokens} token`];
  if (result.seconds) facts.push(`${result.seconds.toFixed(1)} 秒`);
  facts.push(`种子 ${result.seed}`);
  const copy = button("复制", () => copyText(result.text, copy));
  const again = button("重新生成", () => {
    answer(name, turns.length, settings());
    showButtons();
  });
  again.className = "again";
  again.hidden = turn !== turns.at(-1) || asking.size > 0 || !models.some((model) => model.name === name);
  return element("footer", "", element("span", facts.filter(Boolean).join(" · ")), copy, again);
}

function button(text, action) {
  const node = element("button", text);
  node.type = "button";
  node.addEventListener("click", action);
  return node;
}

async function copyText(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // over plain http from another machine there is no clipboard API
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  from.textContent = "已复制";
  setTimeout(() => { from.textContent = "复制"; }, 1200);
}

// Only the last turn can be answered anew, and only when nothing is under way.
function showButtons() {
  $("send").hidden = asking.size > 0;
  $("stop").hidden = asking.size === 0;
  $("send").disabled = chosen().length === 0;
  const last = $("turns").lastElementChild;
  for (const again of document.querySelectorAll(".again")) again.hidden = asking.size > 0 || !last.contains(again);
}

function showEmpty() {
  const hint = element("p", models.length > 1 ? "问一个问题，几个模型并排回答。" : "问一个问题吧。");
  hint.className = "empty";
  $("turns").replaceChildren(hint);
}

function clear() {
  stop();
  turns = [];
  drawn.clear();
  showEmpty();
  save();
  $("question").focus();
}

// ---- what a reload keeps: this tab's conversation and settings

function save() {
  const values = Object.fromEntries(["system", ...NUMBERS].map((key) => [key, $(key).value]));
  sessionStorage.setItem("chat", JSON.stringify({ turns, values }));
}

function restore() {
  const kept = JSON.parse(sessionStorage.getItem("chat") ?? "null");
  if (!kept) return;
  for (const [key, value] of Object.entries(kept.values)) $(key).value = value;
  turns = kept.turns;
  for (const turn of turns) {
    showTurn(turn, Object.keys(turn.answers));
    for (const [name, result] of Object.entries(turn.answers)) {
      if (result.waiting) Object.assign(result, { waiting: false, wait: undefined, reason: "stopped" });
      showAnswer(turn, name);
    }
  }
}

function showModels() {
  models.forEach((model, i) => {
    const box = element("input");
    Object.assign(box, { type: "checkbox", id: `model-${i}`, checked: i === 0 || models.length <= 3 });
    box.addEventListener("change", showButtons);
    const label = element("label", "", box, model.name);
    $("models").append(label);
    if (models.length === 1) box.hidden = true;
  });
  for (const key of NUMBERS.slice(0, -1)) $(key).placeholder = models[0].defaults[key] ?? "服务端默认";
}

function fitQuestion() {
  const area = $("question");
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

function send(event) {
  event?.preventDefault();
  const question = $("question").value;
  if (!question.trim() || asking.size || !chosen().length) return;
  $("question").value = "";
  fitQuestion();
  ask(question);
}

async function start() {
  const about = await (await fetch("api/models")).json();
  models = about.models;
  $("system").value = about.system;
  showModels();
  showEmpty();
  restore();
  showButtons();
  $("ask").addEventListener("submit", send);
  $("stop").addEventListener("click", stop);
  $("clear").addEventListener("click", clear);
  $("settings").addEventListener("change", save);
  $("question").addEventListener("input", fitQuestion);
  $("question").addEventListener("keydown", (event) => {
    // an input method also uses Enter, to take a candidate; Safari says so by the key code alone
    const composing = event.isComposing || event.keyCode === 229;
    if (event.key === "Enter" && !event.shiftKey && !composing) send(event);
  });
  $("question").focus();
}

start();
