"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column, words) => {
    const text = row.cells[column].textContent.trim();
    return words ? text : parseFloat(text);
  };
  heads.forEach((head, column) => {
    const words = head.classList.contains("word");
    head.querySelector("button").addEventListener("click", () => {
      const first = words || column === 0 ? "ascending" : "descending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].map((row) => [value(row, column, words), row]);
      rows.sort(([a], [b]) => {
        if (words) return sign * a.localeCompare(b, undefined, { numeric: true });
        if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
        return sign * (a - b);
      });
      for (const [, row] of rows) body.append(row);
      for (const each of heads) each.setAttribute("aria-sort", each === head ? order : "none");
    });
  });
  const section = table.closest("section");
  if (!table.classList.contains("board")) continue;
  const filter = section.querySelector("input[type=search]");
  const all = section.querySelector("input[type=checkbox]");
  const count = section.querySelector("output");
  const show = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !((all.checked || row.dataset.ranked === "yes") && wanted.every((word) => text.includes(word)));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${body.rows.length} shown`;
  };
  filter.addEventListener("input", show);
  all.addEventListener("change", show);
  show();
}
for (const choice of document.querySelectorAll("input[data-sets]")) {
  const set = () => { if (choice.checked) choice.closest("section").dataset[choice.dataset.sets] = choice.value; };
  choice.addEventListener("change", set);
  set();
}
const closed = [];
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details:not([open])")) {
    closed.push(details);
    details.open = true;
  }
});
addEventListener("afterprint", () => { while (closed.length) closed.pop().open = false; });
