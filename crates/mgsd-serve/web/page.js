// The page: puts board, question, answer and walk together.

import * as answer from "./answer.js";
import { ask, call } from "./api.js";
import * as grid from "./grid.js";
import * as overlay from "./overlay.js";
import { sideOf } from "./state.js";

const get = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const STEP_MILLIS = 450;

let info = null;
/** What the server says of the board that is shown. */
let board = null;
/** Counts boards, so that what comes late for an earlier one is dropped. */
let version = 0;
let walk = null;
let facts = null;
let running = null;
let timer = null;

function say(id, text, kind = "") {
  get(id).textContent = text;
  get(id).className = kind;
}

/** Most of an answer that is read aloud at once. */
const ALOUD = 600;

/** Tells those who do not see the page what has come of it. */
function tell(text) {
  if (!text) return;
  const spoken = get("spoken");
  spoken.append(Object.assign(document.createElement("p"), { textContent: text }));
  while (spoken.children.length > 6) spoken.firstChild.remove();
}

// ---- theme

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}
get("theme").value = localStorage.getItem("mgsd-theme") ?? "";
setTheme(get("theme").value);
get("theme").addEventListener("change", ({ target }) => {
  localStorage.setItem("mgsd-theme", target.value);
  setTheme(target.value);
});

// ---- board

function show(described) {
  board = described;
  grid.show(board.board);
  overlay.resize(sideOf(board.board));
  get("picture").src = board.picture;
  forgetWalk();
  answer.clear();
  say("answer-status", "Nothing was asked about this board yet.");
  showQuestion();
  const plan = board.plan;
  if (plan === null) say("board-status", "No plan solves this board.", "bad");
  else say("board-status", `A shortest plan: ${plan || "none needed"}`);
}

async function load(path, body) {
  const mine = ++version;
  running?.abort();
  try {
    const described = await call(path, body);
    if (mine === version) show(described);
  } catch (error) {
    if (mine === version) say("board-status", error.message, "bad");
  }
}

grid.connect(
  (state) => {
    // The cells at once, the picture as soon as the server has drawn it.
    grid.show(state);
    load("/api/board", { board: state });
  },
  (why) => say("board-status", why, "bad"),
);

function generate() {
  const wanted = { task: get("task").value, level: Number(get("level").value), seed: Number(get("seed").value) };
  if (wanted.task !== "frozenlake") wanted.difficulty = get("difficulty").value;
  return load("/api/generate", wanted);
}
get("generate").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
get("next").addEventListener("click", () => {
  get("seed").value = Number(get("seed").value) + 1;
  generate();
});
get("task").addEventListener("change", () => {
  const { sides } = info.tasks.find(({ task }) => task === get("task").value);
  [get("level").min, get("level").max] = sides;
  get("difficulty-field").hidden = get("task").value === "frozenlake";
  generate();
});

// ---- question

function messages(list) {
  const withPicture = (part) => (part.type === "image_url" ? { ...part, image_url: { url: board.picture } } : part);
  return list.map(({ role, content }) => ({ role, content: Array.isArray(content) ? content.map(withPicture) : content }));
}

function showQuestion() {
  const part = (one) => (one.type === "text" ? one.text : "[the picture]");
  const text = ({ content }) => (Array.isArray(content) ? content.map(part).join("") : content);
  if (board) get("question").textContent = board.messages[chosen("modality")][chosen("kind")].map(text).join("\n\n");
}
for (const input of document.querySelectorAll("input[name=modality], input[name=kind]")) input.addEventListener("change", showQuestion);

get("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!board || running) return;
  const [asked, kind, mine] = [board, chosen("kind"), version];
  const question = messages(asked.messages[chosen("modality")][kind]);
  running = new AbortController();
  get("stop").disabled = false;
  forgetWalk();
  answer.clear();
  say("answer-status", "The model is answering…");
  let text = "";
  const ids = [];
  const began = performance.now();
  try {
    const body = { messages: question, temperature: Number(get("temperature").value), max_tokens: Number(get("most").value) };
    const end = await ask(body, running.signal, (piece) => {
      text += piece.text;
      ids.push(...piece.ids);
      answer.add(piece.text);
    });
    const seconds = (performance.now() - began) / 1000;
    const cut = end.finish === "length" ? ", cut at its length" : "";
    say("answer-status", `${end.usage.completion_tokens} tokens in ${seconds.toFixed(2)} s${cut}.`);
    tell(text.length > ALOUD ? `The answer begins: ${text.slice(0, ALOUD)}` : `The answer: ${text || "nothing"}`);
    await follow(asked, text, kind);
    if (info.teacher && kind === "plan" && ids.length) {
      const scored = await call("/api/kl", { messages: question, teacher_messages: asked.messages.teacher, token_ids: ids });
      tell(answer.colour(scored));
    }
  } catch (error) {
    if (mine === version) {
      const stopped = error.name === "AbortError";
      say("answer-status", stopped ? "Stopped." : error.message, stopped ? "" : "bad");
    }
  } finally {
    running = null;
    get("stop").disabled = true;
  }
});
get("stop").addEventListener("click", () => running?.abort());

// ---- walk

/** Reads an answer: what it states, and where its plan leads. */
async function follow(asked, text, kind) {
  const seen = await call("/api/walk", { board: asked.board, answer: text });
  if (asked !== board) return;
  facts = seen.perception.length ? seen.perception : null;
  tell(answer.state(seen.perception));
  if (kind === "plan") setWalk(seen);
  else redraw();
}

function forgetWalk() {
  pause();
  walk = facts = null;
  get("walk").hidden = true;
  redraw();
}

function setWalk(seen) {
  walk = seen;
  get("walk").hidden = false;
  get("step").max = walk.score.steps_executed;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches || walk.score.steps_executed === 0;
  setStep(still ? walk.score.steps_executed : 0, still);
  if (!still) play();
}

const REASONS = {
  fell_into_hole: "falls into a hole", out_of_bounds: "leaves the board", wall_blocked: "runs into a wall",
  entered_table: "runs into the table", entered_printer: "runs into the printer",
  pick_not_adjacent_to_printer: "picks where no printer is near", pick_while_carrying: "picks with full hands",
  drop_without_printer: "drops without the printer", drop_not_adjacent_to_table: "drops away from the table",
};

function verdict(step) {
  const { score, actions } = walk;
  if (!actions.length) return ["The answer holds no plan.", "bad"];
  if (step < score.steps_executed) return [step ? `Step ${step}: ${actions[step - 1]}` : "At the start.", ""];
  if (score.success) {
    return [score.optimal_success ? "The aim is reached by a shortest plan." : "The aim is reached, but not by a shortest plan.", "good"];
  }
  const reason = score.invalid_reason?.split(":")[0];
  if (reason) return [`Step ${step}, ${actions[step - 1]}: the plan ${REASONS[reason] ?? reason}.`, "bad"];
  return ["The plan ends short of its aim.", "bad"];
}

/** Shows the walk up to a step; `aloud` unless more steps follow by themselves. */
function setStep(step, aloud) {
  const [text, kind] = verdict(step);
  get("step").value = step;
  get("step-count").textContent = `${step} of ${walk.score.steps_executed}`;
  get("step").setAttribute("aria-valuetext", `${step} of ${walk.score.steps_executed}`);
  say("verdict", text, kind);
  if (aloud) tell(text);
  redraw();
}

function redraw() {
  overlay.draw(walk, Number(get("step").value), get("lay").checked ? facts : null);
}

function pause() {
  clearInterval(timer);
  timer = null;
  get("play").textContent = "Walk";
  get("play").setAttribute("aria-pressed", "false");
}

function play() {
  if (Number(get("step").value) >= walk.score.steps_executed) setStep(0, false);
  get("play").textContent = "Pause";
  get("play").setAttribute("aria-pressed", "true");
  clearInterval(timer);
  timer = setInterval(() => {
    const step = Number(get("step").value) + 1;
    if (step <= walk.score.steps_executed) setStep(step, step === walk.score.steps_executed);
    if (step >= walk.score.steps_executed) pause();
  }, STEP_MILLIS);
}
get("play").addEventListener("click", () => (timer ? pause() : play()));
get("step").addEventListener("input", () => {
  pause();
  setStep(Number(get("step").value), true);
});
get("lay").addEventListener("change", redraw);

get("own").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!board) return;
  // Letters may stand together; the benchmark's rules want them apart where PICK and DROP occur.
  const actions = get("plan").value.match(/pick|drop|[lrud]/gi) ?? [];
  follow(board, `<answer>${actions.join(",")}</answer>`, "plan").catch((error) => say("board-status", error.message, "bad"));
});
get("solve").addEventListener("click", () => {
  get("plan").value = board?.plan ?? "";
  get("own").requestSubmit();
});

// ---- start

try {
  info = await call("/api/info");
  const million = (info.parameters / 1e6).toFixed(1);
  say("model", `${info.model}, ${million} M parameters, ${info.teacher ? "with a teacher" : "no teacher"}, ${info.prompts} prompts`);
  get("task").append(...info.tasks.map(({ task, name }) => new Option(name, task)));
  get("difficulty-field").hidden = true;
  await generate();
} catch (error) {
  say("model", error.message, "bad");
}
