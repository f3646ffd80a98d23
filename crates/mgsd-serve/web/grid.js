// The cells that lie over the picture: drawing by mouse, by touch and by keyboard.

import { TOOLS, describe, draw, sideOf, toggleWall } from "./state.js";

const cells = document.getElementById("cells");
const tools = document.getElementById("tools");
const keys = document.getElementById("keys");
const ARROWS = { ArrowUp: "up", ArrowDown: "down", ArrowLeft: "left", ArrowRight: "right" };
const STEPS = { up: [-1, 0], down: [1, 0], left: [0, -1], right: [0, 1] };

let state = null;
let shape = "";
let current = [0, 0];
let onChange = () => {};
let onRefusal = () => {};

/** Sets what happens when a board was changed, and when it could not be. */
export function connect(changed, refused) {
  onChange = changed;
  onRefusal = refused;
}

/** Shows a board's cells. */
export function show(board) {
  state = board;
  const side = sideOf(state);
  const wanted = `${state.task} ${side}`;
  if (wanted !== shape) build(side);
  if (!shape.startsWith(`${state.task} `)) showTools();
  shape = wanted;
  for (const cell of cells.querySelectorAll("[role=gridcell]")) {
    const [row, col] = place(cell);
    cell.setAttribute("aria-label", `row ${row}, column ${col}: ${describe(state, row, col)}`);
  }
}

function build(side) {
  cells.style.setProperty("--side", side);
  cells.setAttribute("aria-rowcount", side);
  cells.setAttribute("aria-colcount", side);
  current = [Math.min(current[0], side - 1), Math.min(current[1], side - 1)];
  const rows = Array.from({ length: side }, (_, row) => {
    const line = document.createElement("div");
    line.setAttribute("role", "row");
    line.append(...Array.from({ length: side }, (_, col) => {
      const cell = document.createElement("div");
      cell.setAttribute("role", "gridcell");
      cell.tabIndex = row === current[0] && col === current[1] ? 0 : -1;
      cell.dataset.cell = `${row} ${col}`;
      return cell;
    }));
    return line;
  });
  cells.replaceChildren(...rows);
}

function showTools() {
  const choice = ([letter, name], index) => {
    const label = document.createElement("label");
    label.className = "check";
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "tool", value: letter, checked: index === 0 });
    label.append(input, ` ${name} (${letter === "." ? "dot" : letter})`);
    return label;
  };
  const legend = tools.querySelector("legend");
  tools.replaceChildren(legend, ...TOOLS[state.task].map(choice));
  keys.textContent = state.task === "maze"
    ? "Click near an edge to build or tear down a wall. Keys: arrows move, Shift and an arrow changes that wall, S and G set start and goal."
    : `Click to draw. Keys: arrows move, Enter or Space draws, ${TOOLS[state.task].map(([letter]) => letter).join(" ")} draw directly.`;
}

const tool = () => tools.querySelector("input:checked").value;
const place = (cell) => cell.dataset.cell.split(" ").map(Number);
const cellAt = (row, col) => cells.children[row]?.children[col];

function focus(row, col) {
  const next = cellAt(row, col);
  if (!next) return;
  cellAt(...current).tabIndex = -1;
  next.tabIndex = 0;
  current = [row, col];
  next.focus();
}

function apply(result) {
  if (typeof result === "string") onRefusal(result);
  else if (JSON.stringify(result) !== JSON.stringify(state)) onChange(result);
}

/** The side of a cell that a click is nearest to. */
function nearest(cell, event) {
  const box = cell.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  return [["left", x], ["right", 1 - x], ["up", y], ["down", 1 - y]].sort((a, b) => a[1] - b[1])[0][0];
}

cells.addEventListener("click", (event) => {
  const cell = event.target.closest("[role=gridcell]");
  if (!cell || !state) return;
  const [row, col] = place(cell);
  focus(row, col);
  const letter = tool();
  apply(letter === "W" ? toggleWall(state, row, col, nearest(cell, event)) : draw(state, letter, row, col));
});

cells.addEventListener("keydown", (event) => {
  if (!state || event.ctrlKey || event.metaKey || event.altKey) return;
  const [row, col] = current;
  const arrow = ARROWS[event.key];
  const letter = TOOLS[state.task].find(([known]) => known === event.key.toUpperCase())?.[0];
  if (arrow && event.shiftKey && state.task === "maze") apply(toggleWall(state, row, col, arrow));
  else if (arrow) focus(row + STEPS[arrow][0], col + STEPS[arrow][1]);
  else if (event.key === "Home") focus(row, 0);
  else if (event.key === "End") focus(row, sideOf(state) - 1);
  else if (event.key === "Enter" || event.key === " ") {
    if (tool() === "W") onRefusal("Shift and an arrow changes a wall.");
    else apply(draw(state, tool(), row, col));
  } else if (letter && letter !== "W") apply(draw(state, letter, row, col));
  else return;
  event.preventDefault();
});
