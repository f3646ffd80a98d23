// The answer as text, its tokens coloured by how far student and teacher are apart, and what it states.

const answer = document.getElementById("answer");
const kl = document.getElementById("kl");
const mean = document.getElementById("kl-mean");
const table = document.querySelector("#kl-table tbody");
const perception = document.getElementById("perception");
const facts = document.getElementById("facts");
const factsCount = document.getElementById("facts-count");

/** An empty answer. */
export function clear() {
  answer.textContent = "";
  kl.hidden = true;
  perception.hidden = true;
}

/** Adds text to the answer while it comes. */
export function add(text) {
  const atEnd = answer.scrollTop + answer.clientHeight >= answer.scrollHeight - 4;
  answer.append(text);
  if (atEnd) answer.scrollTop = answer.scrollHeight;
}

const number = (value) => (value < 0.0005 ? "0.000" : value.toFixed(3));

/** Colours the tokens of the answer; returns the mean in words. */
export function colour({ mean_kl, tokens }) {
  answer.replaceChildren(...tokens.map(({ text, score }) => {
    const span = document.createElement("span");
    span.className = score.kl >= 1 ? "token strong" : "token";
    span.style.setProperty("--share", Math.min(1, Math.max(0, score.kl)) * 0.85);
    span.textContent = text;
    span.title = `KL ${number(score.kl)}, p student ${number(Math.exp(score.student_log_prob))}, p teacher ${number(Math.exp(score.teacher_log_prob))}`;
    return span;
  }));
  mean.textContent = `Mean over ${tokens.length} tokens: ${number(mean_kl)} nats.`;
  const most = [...tokens].sort((a, b) => b.score.kl - a.score.kl).slice(0, 8);
  table.replaceChildren(...most.map(({ text, score }) => {
    const row = document.createElement("tr");
    const values = [JSON.stringify(text), number(score.kl), number(Math.exp(score.student_log_prob)), number(Math.exp(score.teacher_log_prob))];
    row.append(...values.map((value) => Object.assign(document.createElement("td"), { textContent: value })));
    return row;
  }));
  kl.hidden = false;
  return mean.textContent;
}

function inWords({ size, cells, directions, openings }) {
  const cell = ([row, col]) => `(${row},${col})`;
  const list = (items) => (items.length ? items.join(" ") : "none");
  if (size) return `${size[0]} x ${size[1]}`;
  if (cells) return list(cells.map(cell));
  if (directions) return list(directions);
  return `${openings.length} cells`;
}

/** Lists what the answer states, with whether it is so; returns how much of it is, in words. */
export function state(stated) {
  perception.hidden = stated.length === 0;
  facts.replaceChildren(...stated.map(({ question, stated: said, right }) => {
    const mark = Object.assign(document.createElement("span"), { className: right ? "good" : "bad", textContent: right ? "✓ right: " : "✗ wrong: " });
    const line = document.createElement("li");
    line.append(mark, `${question.replaceAll("_", " ")} ${inWords(said)}`);
    return line;
  }));
  const right = stated.filter((fact) => fact.right).length;
  factsCount.textContent = stated.length ? `${right} of ${stated.length} stated facts are right.` : "";
  return factsCount.textContent;
}
