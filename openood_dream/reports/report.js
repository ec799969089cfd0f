for (const input of document.querySelectorAll("input[type=search]")) {
  // The table that follows keeps the rows that have every word.
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    for (const row of input.nextElementSibling.querySelector("tbody").rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every(word => text.includes(word));
    }
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => {
    // Numbers start with the largest, names with A; a second click turns the order round.
    const first = header.classList.contains("number") ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? other : first;
    headers.forEach(h => h.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const compare = (a, b) => a - b || a.localeCompare(b);
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => sign * compare(value(a, column), value(b, column)));
    table.tBodies[0].append(...rows);
  }));
}
