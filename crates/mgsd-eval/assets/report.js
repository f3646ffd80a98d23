"use strict";
(() => {
  const filters = document.getElementById("filters");
  if (!filters) return;
  const cards = [...document.querySelectorAll("#cards .card")];
  const count = document.getElementById("count");
  const more = document.getElementById("more");
  const first = Number(filters.dataset.first);
  const wanted = {};
  let limit = first;

  const show = () => {
    let matching = 0;
    for (const card of cards) {
      const fits = Object.entries(wanted).every(([key, value]) => !value || card.dataset[key] === value);
      if (fits) matching += 1;
      card.hidden = !fits || matching > limit;
    }
    const shown = Math.min(matching, limit);
    count.textContent = shown < matching ? `${shown} of ${matching} boards` : `${matching} ${matching === 1 ? "board" : "boards"}`;
    more.hidden = shown === matching;
  };

  filters.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    wanted[button.dataset.key] = button.dataset.value;
    for (const other of button.parentElement.querySelectorAll("button")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    limit = first;
    show();
  });
  more.addEventListener("click", () => {
    limit += 4 * first;
    show();
  });
  filters.hidden = false;
  show();
})();
