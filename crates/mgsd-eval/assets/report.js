"use strict";
// Filters over the boards, and two runs side by side on the same board.
(() => {
  const source = document.getElementById("explorer-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  source.remove();
  const byId = (id) => document.getElementById(id);
  const [first, second, nameField, statedField] = ["first", "second", "name", "stated"].map(byId);
  const [filters, count, cards, more] = ["filters", "count", "cards", "more"].map(byId);
  const FIRST = Number(more.dataset.first);
  const RUN = 0, BOARD = 1, OUTCOME = 2, ENDING = 3, CAUSE = 4, VERDICT = 5, STEPS = 6, LAST = 7, PLANNED = 8, TEXT = 9, STATED = 10, MISREAD = 11;
  const ID = 0, TASK = 1, LEVEL = 2, KEY = 3, SHORTEST = 4;

  // answers by run, then by board
  const answers = data.evaluations.map(() => new Map());
  for (const answer of data.answers) answers[answer[RUN]].set(answer[BOARD], answer);
  const runName = (run) => `${data.evaluations[run][0]}, from ${data.evaluations[run][1] === "image" ? "the picture" : "text"}`;
  const option = (select, value, text) => select.add(new Option(text, value));
  option(second, "", "no other run");
  data.evaluations.forEach((_, run) => {
    option(first, run, runName(run));
    option(second, run, runName(run));
  });

  const solved = (answer) => answer[OUTCOME] <= 1;
  const levels = [...new Set(data.boards.map((board) => board[LEVEL]))].sort((a, b) => a - b);
  const list = (names, of) => ({ values: names.map(([key, text]) => [key, text]), of });
  const groups = {
    task: { label: "Task", ...list(data.tasks, (board) => board[TASK]) },
    level: { label: "Side", values: levels.map((level) => [String(level), `${level}\u00d7${level}`]), of: (board) => String(board[LEVEL]) },
    who: {
      label: "Solved by",
      values: [["both", "both"], ["first", "only the first"], ["second", "only the second"], ["neither", "neither"]],
      of: (_, a, b) => b && (solved(a) ? (solved(b) ? "both" : "first") : (solved(b) ? "second" : "neither")),
    },
    outcome: { label: "Outcome", ...list(data.outcomes, (_, a) => data.outcomes[a[OUTCOME]][0]) },
    ending: { label: "Failure", ...list(data.endings, (_, a) => a[ENDING] !== null && data.endings[a[ENDING]][0]) },
    cause: { label: "Cause", ...list(data.causes, (_, a) => a[CAUSE] !== null && data.causes[a[CAUSE]][0]) },
  };
  const wanted = {};
  let limit = FIRST;
  let shown = [];

  // A row of buttons a group; those that occur in no board of the run are left out.
  for (const [key, group] of Object.entries(groups)) {
    const row = document.createElement("div");
    row.setAttribute("role", "group");
    row.setAttribute("aria-label", group.label);
    row.dataset.key = key;
    const label = document.createElement("span");
    label.className = "group";
    label.textContent = group.label;
    row.append(label);
    for (const [value, text] of [["", "all"], ...group.values]) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.value = value;
      button.setAttribute("aria-pressed", String(!value));
      button.append(`${text} `, document.createElement("small"));
      row.append(button);
    }
    filters.append(row);
  }

  // Boards of the chosen runs that fit, and for each button how many it would leave.
  const select = () => {
    const [a, b] = [Number(first.value), second.value === "" ? null : Number(second.value)];
    const part = nameField.value.trim().toLowerCase();
    const counts = Object.fromEntries(Object.keys(groups).map((key) => [key, new Map()]));
    const totals = Object.fromEntries(Object.keys(groups).map((key) => [key, 0]));
    shown = [];
    for (const [place, answer] of answers[a]) {
      const other = b === null ? null : answers[b].get(place);
      if (b !== null && !other) continue;
      const board = data.boards[place];
      if (part && !board[ID].toLowerCase().includes(part)) continue;
      let wrong = null;
      let misses = 0;
      const values = {};
      for (const [key, group] of Object.entries(groups)) {
        values[key] = group.of(board, answer, other);
        if (wanted[key] && values[key] !== wanted[key]) {
          misses += 1;
          wrong = key;
        }
      }
      if (misses === 0) shown.push([board, answer, other]);
      for (const key of Object.keys(groups)) {
        if (misses === 0 || (misses === 1 && wrong === key)) {
          totals[key] += 1;
          if (values[key]) counts[key].set(values[key], (counts[key].get(values[key]) || 0) + 1);
        }
      }
    }
    for (const row of filters.children) {
      const key = row.dataset.key;
      for (const button of row.querySelectorAll("button")) {
        const value = button.dataset.value;
        const number = value ? counts[key].get(value) || 0 : totals[key];
        button.querySelector("small").textContent = number;
        button.setAttribute("aria-pressed", String((wanted[key] || "") === value));
        button.hidden = Boolean(value) && number === 0 && wanted[key] !== value;
      }
      row.hidden = (key === "who" && b === null) || (!wanted[key] && row.querySelectorAll("button:not([hidden])").length < 3 && key !== "who");
    }
  };

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text) made.textContent = text;
    return made;
  };

  const ARROWS = { L: "\u2190", D: "\u2193", R: "\u2192", U: "\u2191", P: " pick ", O: " drop " };
  const taskName = (task) => (data.tasks.find(([key]) => key === task) || [task, task])[1];

  const tiles = new Image();
  const draw = (canvas) => {
    const [board, answer] = canvas.shown;
    const size = Math.round(canvas.clientWidth * Math.min(window.devicePixelRatio || 1, 2)) || 200;
    canvas.width = canvas.height = size;
    const stated = statedField.checked ? answer[STATED] : null;
    Boards.draw(canvas, board[KEY], tiles, { steps: answer[STEPS], last: answer[LAST], solved: solved(answer), stated });
  };
  // A board is drawn when it comes near the window.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      tiles.decode().then(() => draw(entry.target), () => draw(entry.target));
    }
  }, { rootMargin: "400px" });

  const pane = (board, answer, run) => {
    const made = element("div", "pane");
    const canvas = element("canvas");
    canvas.shown = [board, answer];
    canvas.width = canvas.height = 1;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${taskName(board[TASK])} board, ${board[LEVEL]} by ${board[LEVEL]}, with the plan drawn on it: ${answer[VERDICT]}`);
    made.append(canvas);
    watcher.observe(canvas);
    const body = element("div", "card-body");
    if (run !== null) body.append(element("p", "meta", runName(run)));
    const kind = data.outcomes[answer[OUTCOME]][0];
    const verdict = element("span", `verdict ${kind}`);
    const mark = element("span", "", solved(answer) ? "\u2713" : kind === "none" ? "?" : "\u2717");
    mark.setAttribute("aria-hidden", "true");
    verdict.append(mark, ` ${answer[VERDICT]}`);
    body.append(verdict);
    if (answer[CAUSE] !== null && data.causes[answer[CAUSE]][0] !== "unstated") body.append(element("p", "meta", data.causes[answer[CAUSE]][1]));
    if (answer[PLANNED]) {
      const plan = element("p", "plan");
      plan.append(element("span", "", [...answer[STEPS]].map((step) => ARROWS[step]).join("").trim()));
      const shortest = board[SHORTEST] === null ? "" : `, shortest ${board[SHORTEST]}`;
      plan.append(element("small", "", `${answer[PLANNED]} steps${shortest}`));
      body.append(plan);
    }
    if (answer[MISREAD].length) {
      const misread = element("details");
      misread.append(element("summary", "", "Misread"));
      const table = element("dl", "misread");
      for (const [question, stated, there] of answer[MISREAD]) {
        table.append(element("dt", "", question), element("dd", "", `states ${stated || "nothing"}`), element("dd", "", `is ${there}`));
      }
      misread.append(table);
      body.append(misread);
    }
    if (answer[TEXT]) {
      const details = element("details");
      details.append(element("summary", "", "Answer"));
      // Filled when it is opened: most never are.
      details.addEventListener("toggle", () => {
        if (details.open && details.children.length === 1) details.append(element("pre", "", answer[TEXT]));
      });
      body.append(details);
    }
    made.append(body);
    return made;
  };

  const card = ([board, answer, other]) => {
    const made = element("article", other ? "card pair" : "card");
    const head = element("h3", "", `${taskName(board[TASK])} `);
    head.append(element("small", "", `${board[LEVEL]}\u00d7${board[LEVEL]}`), element("small", "case", board[ID]));
    made.append(head);
    made.append(pane(board, answer, other ? Number(first.value) : null));
    if (other) made.append(pane(board, other, Number(second.value)));
    return made;
  };

  let pending = 0;
  const show = () => {
    const start = cards.childElementCount;
    const next = document.createDocumentFragment();
    for (const item of shown.slice(start, limit)) next.append(card(item));
    cards.append(next);
    const visible = Math.min(shown.length, limit);
    count.textContent = visible < shown.length ? `${visible} of ${shown.length} boards` : `${shown.length} ${shown.length === 1 ? "board" : "boards"}`;
    more.hidden = visible === shown.length;
  };
  const renew = () => {
    limit = FIRST;
    watcher.disconnect();
    cards.replaceChildren();
    cards.classList.toggle("pairs", second.value !== "");
    select();
    show();
  };

  filters.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    wanted[button.parentElement.dataset.key] = button.dataset.value;
    renew();
  });
  for (const choice of [first, second]) {
    choice.addEventListener("change", () => {
      if (second.value === "") delete wanted.who;
      if (second.value === first.value) second.value = "";
      renew();
    });
  }
  nameField.addEventListener("input", () => {
    clearTimeout(pending);
    pending = setTimeout(renew, 120);
  });
  statedField.addEventListener("change", () => {
    for (const canvas of cards.querySelectorAll("canvas")) {
      if (canvas.width > 1) draw(canvas);
    }
  });
  more.addEventListener("click", () => {
    limit += 4 * FIRST;
    show();
  });
  tiles.src = data.tiles;
  byId("explorer").hidden = false;
  renew();
})();
