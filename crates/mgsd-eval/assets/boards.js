"use strict";
// Draws boards on canvases from their keys, as the pictures that models are shown look.
const Boards = (() => {
  const MOVES = { L: [0, -1], D: [1, 0], R: [0, 1], U: [-1, 0] };
  const NORTH = 1, SOUTH = 2, WEST = 4, EAST = 8;

  // {task, side, start, goal, letters | walls} of a key; null when there is none.
  const parse = (key) => {
    const colon = key.indexOf(":");
    if (colon < 0) return null;
    const task = key.slice(0, colon);
    const rest = key.slice(colon + 1);
    const cell = (index, side) => [Math.floor(index / side), index % side];
    if (task === "maze") {
      const [ends, layout] = rest.split(":");
      const walls = layout.split("/").map((row) => row.split(" ").map(Number));
      const [start, goal] = ends.split(">").map((index) => cell(Number(index), walls.length));
      return { task, side: walls.length, start, goal, walls };
    }
    const letters = rest.split("/");
    const find = (letter) => {
      const row = letters.findIndex((line) => line.includes(letter));
      return row < 0 ? null : [row, letters[row].indexOf(letter)];
    };
    const [start, goal] = task === "frozenlake" ? ["S", "G"] : ["A", "P"];
    return { task, side: letters.length, start: find(start), goal: find(goal), letters };
  };

  const middle = (at, cell) => [(at[1] + 0.5) * cell, (at[0] + 0.5) * cell];

  const lake = (pen, board, cell, tiles) => {
    const size = tiles.naturalWidth / 2;
    const place = { S: [0, 0], G: [1, 0], H: [0, 1], F: [1, 1] };
    board.letters.forEach((line, row) => [...line].forEach((letter, col) => {
      const [x, y] = place[letter];
      pen.drawImage(tiles, x * size, y * size, size, size, col * cell, row * cell, cell, cell);
    }));
  };

  const maze = (pen, board, cell) => {
    const size = board.side * cell;
    const half = Math.max(2, Math.floor(cell / 4)) / 2;
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, size, size);
    const open = (row, col, bit) => (board.walls[row][col] & bit) === 0;
    for (const [color, thick] of [["#fff", half], ["#e0e0e0", Math.max(0.5, cell / 32)]]) {
      pen.fillStyle = color;
      board.walls.forEach((line, row) => line.forEach((_, col) => {
        const [x, y] = [col * cell, row * cell];
        if (thick === half) pen.fillRect(x + half, y + half, cell - 2 * half, cell - 2 * half);
        if (open(row, col, SOUTH) && row + 1 < board.side) pen.fillRect(x + half, y + cell - thick, cell - 2 * half, 2 * thick);
        if (open(row, col, EAST) && col + 1 < board.side) pen.fillRect(x + cell - thick, y + half, 2 * thick, cell - 2 * half);
      }));
    }
    for (const [at, color] of [[board.start, "#ff0"], [board.goal, "#00f"]]) {
      pen.fillStyle = color;
      pen.beginPath();
      pen.arc(...middle(at, cell), Math.max(3, (cell - 2 * half) / 4), 0, 7);
      pen.fill();
    }
  };

  const room = (pen, board, cell) => {
    const size = board.side * cell;
    pen.fillStyle = "#000";
    pen.fillRect(0, 0, size, size);
    pen.fillStyle = "#b58f60";
    board.letters.forEach((line, row) => [...line].forEach((letter, col) => {
      if (letter === "T") pen.fillRect(col * cell + 1, row * cell + 1, cell - 2, cell - 2);
    }));
    if (board.goal) {
      const [x, y] = middle(board.goal, cell);
      const box = (left, top, right, bottom) => pen.fillRect(x + left * cell, y + top * cell, (right - left) * cell, (bottom - top) * cell);
      pen.fillStyle = "#fff";
      box(-0.174, -0.26, 0.174, -0.08);
      box(-0.29, -0.125, 0.29, 0.115);
      box(-0.186, 0.03, 0.186, 0.26);
      pen.fillStyle = "#000";
      box(-0.16, -0.02, 0.22, 0.03);
    }
    if (board.start) {
      const [x, y] = [board.start[1] * cell, board.start[0] * cell];
      pen.fillStyle = "#ff1810";
      pen.beginPath();
      pen.moveTo(x + 0.78 * cell, y + 0.5 * cell);
      pen.lineTo(x + 0.22 * cell, y + 0.2 * cell);
      pen.lineTo(x + 0.22 * cell, y + 0.8 * cell);
      pen.fill();
    }
    pen.strokeStyle = "#3c3c3c";
    pen.lineWidth = 1;
    pen.beginPath();
    for (let line = 0; line <= board.side; line += 1) {
      pen.moveTo(line * cell, 0);
      pen.lineTo(line * cell, size);
      pen.moveTo(0, line * cell);
      pen.lineTo(size, line * cell);
    }
    pen.stroke();
  };

  // The same lines first broad and white, then in their colour: readable on any ground.
  const stroked = (pen, width, color, draw) => {
    for (const [style, wide] of [["#fff", width * 1.9], [color, width]]) {
      pen.strokeStyle = style;
      pen.lineWidth = wide;
      pen.beginPath();
      draw();
      pen.stroke();
    }
  };

  // last: 0 the last step was done, 1 something was in the way, 2 it led into a hole.
  const walk = (pen, board, cell, steps, last, solved) => {
    if (!board.start) return;
    const width = Math.max(1.5, cell * 0.09);
    pen.lineCap = pen.lineJoin = "round";
    let at = board.start;
    const path = [at];
    const rings = [];
    let blocked = null;
    [...steps].forEach((step, index) => {
      const stuck = last === 1 && index === steps.length - 1;
      const move = MOVES[step];
      if (stuck) blocked = move ? [at[0] + move[0] / 2, at[1] + move[1] / 2] : at;
      else if (move) path.push((at = [at[0] + move[0], at[1] + move[1]]));
      else rings.push(at);
    });
    stroked(pen, width, "#dc0096", () => path.forEach((cellAt, index) => {
      const [x, y] = middle(cellAt, cell);
      if (index) pen.lineTo(x, y);
      else pen.moveTo(x, y);
    }));
    for (const ring of rings) {
      stroked(pen, width, "#dc0096", () => pen.arc(...middle(ring, cell), cell * 0.17, 0, 7));
    }
    for (const [style, radius] of [["#fff", width * 1.7], ["#dc0096", width * 1.2]]) {
      pen.fillStyle = style;
      pen.beginPath();
      pen.arc(...middle(at, cell), radius, 0, 7);
      pen.fill();
    }
    if (!solved) {
      const inside = (value) => Math.min(Math.max(value, 0.28 * cell), (board.side - 0.28) * cell);
      const [x, y] = middle(blocked || at, cell).map(inside);
      const arm = Math.max(4, cell * 0.2);
      stroked(pen, width * 1.2, "#e61414", () => {
        pen.moveTo(x - arm, y - arm);
        pen.lineTo(x + arm, y + arm);
        pen.moveTo(x - arm, y + arm);
        pen.lineTo(x + arm, y - arm);
      });
    }
  };

  // What is stated and not there: dashed boxes with the stated thing's letter, dashed lines for walls.
  const misread = (pen, board, stated, cell) => {
    pen.lineCap = "butt";
    pen.setLineDash([cell * 0.12, cell * 0.08]);
    const frame = (at, text) => {
      const [x, y] = [at[1] * cell, at[0] * cell];
      const edge = cell * 0.08;
      stroked(pen, Math.max(1.5, cell * 0.05), "#a040ff", () => pen.rect(x + edge, y + edge, cell - 2 * edge, cell - 2 * edge));
      if (!text) return;
      pen.font = `600 ${Math.max(9, cell * 0.3)}px sans-serif`;
      pen.textBaseline = "top";
      pen.lineJoin = "round";
      pen.setLineDash([]);
      pen.strokeStyle = "#fff";
      pen.lineWidth = 3;
      pen.strokeText(text, x + 2 * edge, y + 2 * edge);
      pen.fillStyle = "#a040ff";
      pen.fillText(text, x + 2 * edge, y + 2 * edge);
      pen.setLineDash([cell * 0.12, cell * 0.08]);
    };
    const size = Math.min(board.side, stated.side);
    if (board.task === "maze") {
      for (const [name, letter] of [["start", "S"], ["goal", "G"]]) {
        if (stated[name] && `${stated[name]}` !== `${board[name]}`) frame(stated[name], letter);
      }
      stroked(pen, Math.max(1.5, cell * 0.07), "#a040ff", () => {
        for (let row = 0; row < size; row += 1) {
          for (let col = 0; col < size; col += 1) {
            const wrong = board.walls[row][col] ^ stated.walls[row][col];
            const [x, y, z] = [col * cell, row * cell, cell];
            const line = (x0, y0, x1, y1) => (pen.moveTo(x0, y0), pen.lineTo(x1, y1));
            if (wrong & NORTH) line(x, y, x + z, y);
            if (wrong & SOUTH) line(x, y + z, x + z, y + z);
            if (wrong & WEST) line(x, y, x, y + z);
            if (wrong & EAST) line(x + z, y, x + z, y + z);
          }
        }
      });
    } else {
      for (let row = 0; row < size; row += 1) {
        for (let col = 0; col < size; col += 1) {
          const letter = stated.letters[row][col];
          if (letter !== board.letters[row][col]) frame([row, col], letter === "F" || letter === "." ? "\u2013" : letter);
        }
      }
    }
    pen.setLineDash([]);
  };

  // answer: {steps, last, solved, stated}; stated is a key or null.
  const draw = (canvas, key, tiles, answer) => {
    const board = parse(key);
    const pen = canvas.getContext("2d");
    const size = canvas.width;
    if (!board) {
      pen.fillStyle = "#8884";
      pen.fillRect(0, 0, size, size);
      return;
    }
    const cell = size / board.side;
    ({ frozenlake: lake, maze, minibehaviour: room })[board.task](pen, board, cell, tiles);
    const stated = answer.stated && parse(answer.stated);
    if (stated) misread(pen, board, stated, cell);
    if (answer.steps) walk(pen, board, cell, answer.steps, answer.last, answer.solved);
  };

  return { draw };
})();
