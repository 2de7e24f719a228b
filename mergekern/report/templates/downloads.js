"use strict";
// Tables as CSV, plots as PNG, and text for the clipboard.

const csvSources = new Map(); // id of a table -> function that yields its rows, where the page has more than it shows

const fileName = (id) => id.replace(/-(plot|table)$/, "");

function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  announce(`${name} was saved`);
}

// What a spreadsheet would run as a formula stands after an apostrophe, as in the files of tables.
const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/;

function csvCell(value) {
  if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
  const text = FORMULA.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// The texts of a table of the page; a cell over several columns is followed by empty ones.
function* shownRows(table) {
  for (const row of table.rows) {
    yield [...row.cells].flatMap((cell) => {
      const text = (cell.dataset.value ?? cell.textContent).trim().replace(/\s+/g, " ");
      return [/^-?\d[\d.]*(e[+-]\d+)?$/.test(text) ? Number(text) : text, ...Array(cell.colSpan - 1).fill("")];
    });
  }
}

function saveTable(id) {
  const parts = [];
  let lines = [];
  for (const row of csvSources.get(id)?.() ?? shownRows(byId(id))) {
    lines.push(row.map(csvCell).join(","));
    if (lines.length < 10_000) continue;
    // The rows of half a million pairs are too long for one text.
    parts.push(`${lines.join("\n")}\n`);
    lines = [];
  }
  parts.push(`${lines.join("\n")}\n`);
  save(new Blob(parts, { type: "text/csv" }), `${fileName(id)}.csv`);
}

async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Without permission, or in a browser for which a file is no secure place.
    const field = element("textarea", { class: "hidden", "aria-hidden": "true" });
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
  announce(`${what} was copied`);
}

function copied(button) {
  const label = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = label), 1500);
}

for (const button of document.querySelectorAll("[data-csv]")) {
  button.addEventListener("click", () => saveTable(button.dataset.csv));
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await copy(byId(button.dataset.copy).textContent, "The command");
    button.focus();
    copied(button);
  });
}
