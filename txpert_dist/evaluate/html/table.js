"use strict";
// Sorts and filters the tables marked data-sortable. Without it the page shows every row as it was written.
const FIRST = 100; // rows shown until more are asked for

function value(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.v === undefined ? cell.textContent.trim() : cell.dataset.v;
  if (!cell.hasAttribute("data-v")) return text.toLowerCase();
  return text === "" ? null : Number(text);
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null); // undefined ones last, whatever the order
  if (typeof a === "number") return sign * (a - b);
  return sign * a.localeCompare(b, undefined, { numeric: true });
}

function prepare(table) {
  const body = table.tBodies[0];
  const written = Array.from(body.rows);
  const texts = new Map(written.map((row) => [row, row.dataset.names.toLowerCase()]));
  const controls = document.getElementById(table.id + "-controls");
  const filter = controls.querySelector("input");
  const more = controls.querySelector("button");
  const said = controls.querySelector("output");
  let rows = written;
  let most = FIRST;

  function show() {
    const wanted = filter.value.trim().toLowerCase();
    const found = rows.filter((row) => texts.get(row).includes(wanted));
    const shown = new Set(found.slice(0, most));
    for (const row of written) row.hidden = !shown.has(row);
    more.hidden = shown.size === found.length;
    said.textContent = `${shown.size.toLocaleString("en")} of ${found.length.toLocaleString("en")} rows`;
  }

  table.tHead.querySelectorAll("button").forEach((button) => {
    const head = button.closest("th");
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "descending";
      const first = head.dataset.first === "ascending";
      const order = head.hasAttribute("aria-sort") ? (down ? "ascending" : "descending")
        : (first ? "ascending" : "descending");
      table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const keys = new Map(written.map((row) => [row, value(row, head.cellIndex)]));
      rows = [...written].sort((a, b) => compare(keys.get(a), keys.get(b), sign));
      body.append(...rows);
      show();
    });
  });
  filter.addEventListener("input", () => { most = FIRST; show(); });
  more.addEventListener("click", () => { most = Infinity; show(); });
  controls.hidden = false;
  show();
}

document.querySelectorAll("table[data-sortable]").forEach(prepare);
